"""Which engines there are, by name; each module is imported only when chosen, so nobody pays for another's libraries.

Never here: what an engine does.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from dispatch.errors import PenstockError
from dispatch.settings import WorkerSettings
from worker.engines.base import Engine

ENGINES: Mapping[str, str] = {
    "transformers": "worker.engines.transformers:TransformersEngine",
    "sim": "worker.engines.sim:SimEngine",
    "upstream": "worker.engines.upstream:UpstreamEngine",
}
# These can take a process down (CUDA, out of memory): they run where they can die alone.
_IN_A_PROCESS = frozenset({"transformers"})


def load_engine(name: str, settings: WorkerSettings) -> Engine:
    """The engine of that name, not yet started, in this process."""
    path = ENGINES.get(name)
    if path is None:
        raise PenstockError(
            "bad_setting", f"There is no engine {name!r}.", hint=f"Use one of: {', '.join(ENGINES)}.", param="worker.engine"
        )
    module, _, attribute = path.partition(":")
    return cast(Engine, getattr(import_module(module), attribute)(settings))


def engine_for(settings: WorkerSettings) -> Engine:
    """The engine a worker with these settings runs, in a child process where it may crash."""
    if settings.engine in _IN_A_PROCESS if settings.isolate is None else settings.isolate:
        from worker.engines.process import ProcessEngine

        return ProcessEngine(settings.engine, settings)
    return load_engine(settings.engine, settings)
