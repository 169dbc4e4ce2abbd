"""The launchers by name. A new one is one new file and one row here; its module is imported when it is asked for.

Never here: which pool uses which (settings).
"""

from collections.abc import Callable, Mapping

from autoscaler.launchers.base import Launcher
from dispatch.errors import PenstockError
from dispatch.settings import Launcher as Name
from dispatch.settings import Settings


def _exec(settings: Settings) -> Launcher:
    from autoscaler.launchers.exec import ExecLauncher

    return ExecLauncher(settings)


def _docker(settings: Settings) -> Launcher:
    from autoscaler.launchers.docker import DockerLauncher

    return DockerLauncher(settings)


def _kubernetes(settings: Settings) -> Launcher:
    from autoscaler.launchers.kubernetes import KubernetesLauncher

    return KubernetesLauncher(settings)


BUILDERS: Mapping[Name, Callable[[Settings], Launcher]] = {
    Name.DOCKER: _docker,
    Name.KUBERNETES: _kubernetes,
    Name.EXEC: _exec,
}


def build(name: Name, settings: Settings) -> Launcher:
    """The launcher of that name. Raises PenstockError("bad_setting") if it cannot be built from settings alone."""
    if name not in BUILDERS:
        raise PenstockError(
            "bad_setting",
            f"The launcher {name.value!r} cannot be started here.",
            hint=f"From settings alone these can: {', '.join(sorted(BUILDERS))}.",
            param="autoscaler.launcher",
        )
    return BUILDERS[name](settings)
