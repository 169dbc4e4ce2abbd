"""A worker's environment where its launcher makes it anew: in a container, on another machine. Pure.

It carries secrets (Redis's password, an upstream's key): those stand in the launcher's own settings, never in orders.
Never here: how the environment reaches the worker.
"""

from dispatch.configuration import as_environment, variable
from dispatch.errors import PenstockError
from dispatch.scaling import Launch
from dispatch.settings import Settings, WorkerSettings

_SECTIONS = ("redis", "queue", "worker", "log")
_NOT_ORDERED = frozenset({"pool", "launch", "upstream_api_key"})


def worker_variables(settings: Settings, launch: Launch) -> dict[str, str]:
    """The autoscaler's own `redis`, `queue`, `worker` and `log` settings, and over them what was ordered.

    Raises PenstockError("bad_setting") for an order that names no setting of workers, or a secret.
    """
    if not settings.redis.url:
        raise PenstockError(
            "bad_setting",
            "Workers would not know where Redis is: the autoscaler has no redis.url.",
            hint="Set PENSTOCK_REDIS__URL to an address that reaches Redis from the workers, too.",
            param="redis.url",
        )
    prefixes = tuple(variable(section) + "__" for section in _SECTIONS)
    found = {name: value for name, value in as_environment(settings).items() if name.startswith(prefixes)}
    for name, value in launch.worker.items():
        if name not in WorkerSettings.model_fields or name in _NOT_ORDERED:
            raise PenstockError(
                "bad_setting",
                f"Pool {launch.pool!r} orders workers with {name!r}, which no pool can set.",
                hint="A pool's `worker` takes the settings of the section worker by name, except secrets: those belong "
                "into the autoscaler's own environment.",
                param=f"autoscaler.pools.{launch.pool}.worker",
            )
        found[variable(f"worker.{name}")] = value
    found[variable("worker.pool")] = launch.pool
    found[variable("worker.launch")] = launch.id
    return found
