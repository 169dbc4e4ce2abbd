"""Workers as the pods of Deployments, one Deployment a pool: replicas up and down, and which pod goes first.

The cluster starts, places and restarts pods and gives them their names. Never here: what a pod's record means (pods.py).
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoscaler.launchers import pods
from autoscaler.launchers.fence import Fence
from autoscaler.launchers.kubernetes_api import ACCOUNT, KubernetesApi
from dispatch.errors import PenstockError
from dispatch.scaling import LauncherName, LaunchReport, LaunchState, Orders, PoolOrders
from dispatch.settings import Settings

EPOCH = "penstock.dev/epoch"
_TRIES = 5
_CHOICE_S = 10.0
"""How long the cluster has to end the pod we named, before we end it ourselves: it prefers pods that are not ready."""
_HOMELESS_S = 60.0
"""How long a pod that no node took is remembered after it was taken back: so that no loop of trying begins."""
_LAST_LINES = 10


class KubernetesLauncher:
    """See the module's docstring. `now_s` is the wall clock: it is compared with the cluster's times."""

    names_itself = True

    def __init__(
        self,
        settings: Settings,
        *,
        account: Path = ACCOUNT,
        environment: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._deployments = deployments(settings)
        self._api = KubernetesApi(settings.autoscaler.kubernetes_url, account=account, environment=environment)
        self._now_s = now_s
        self._fence = Fence()
        self._named: dict[str, frozenset[str]] = {}  # by pool: what the last orders named
        self._victims: dict[str, float] = {}  # pods that are to go, and since when
        self._homeless: dict[str, tuple[str, float]] = {}
        self._last_words: dict[str, tuple[int, tuple[str, ...]]] = {}

    async def apply(self, orders: Orders) -> None:
        self._fence.check(orders)
        first: PenstockError | None = None
        for pool in orders.pools:
            try:
                await self._apply(pool, orders)
            except PenstockError as error:  # one pool's trouble is not the others'
                first = first or error
        if first is not None:
            raise first

    async def reports(self) -> Mapping[str, LaunchReport]:
        found: dict[str, LaunchReport] = {}
        for pool, (namespace, name) in self._deployments.items():
            deployment = await self._api.deployment(namespace, name)
            for pod in await self._pods(namespace, deployment):
                told = pods.report(pod, pool, self._now_s(), await self._words_of(namespace, pod))
                if self._is_to_go(pool, pod) and told.state is not LaunchState.GONE:
                    told = LaunchReport(told.id, pool, LaunchState.STOPPING, told.host, since_ms=told.since_ms)
                if why := pods.homeless(pod):
                    self._homeless[pool] = (why, self._now_s())
                found[told.id] = told
        self._last_words = {name: words for name, words in self._last_words.items() if name in found}
        self._victims = {name: since for name, since in self._victims.items() if name in found}
        return found

    async def unplaceable(self, pool: str, need_bytes: int) -> str:
        """As of the last `reports`."""
        why, seen_at_s = self._homeless.get(pool, ("", 0.0))
        return why if self._now_s() - seen_at_s < _HOMELESS_S else ""

    async def close(self) -> None:
        await self._api.close()

    async def _apply(self, pool: PoolOrders, orders: Orders) -> None:
        if pool.pool not in self._deployments:
            raise PenstockError(
                "bad_setting",
                f"Pool {pool.pool!r} has no Deployment.",
                hint=f'Set deployment = "namespace/name" in [autoscaler.pools.{pool.pool}], or autoscaler.deployment.',
                param=f"autoscaler.pools.{pool.pool}.deployment",
            )
        namespace, name = self._deployments[pool.pool]
        replicas = len(pool.launches)
        named = frozenset(launch.id for launch in pool.launches)
        self._named[pool.pool] = named
        for _ in range(_TRIES):
            deployment = await self._api.deployment(namespace, name)
            meta = deployment["metadata"]
            written = int(meta.get("annotations", {}).get(EPOCH, 0))
            self._fence.check(orders, seen=written)
            version: str | None = meta["resourceVersion"]
            assert version is not None
            if written < orders.epoch:
                version = await self._api.annotate_deployment(namespace, name, version, {EPOCH: str(orders.epoch)})
                if version is None:
                    continue
            standing = [pod for pod in await self._pods(namespace, deployment) if not pods.is_leaving(pod)]
            await self._mark(namespace, pool, standing, replicas)
            right = deployment["spec"].get("replicas", 1) == replicas
            # Of the version we read: who has written since may be a newer leader.
            if not right and not await self._api.scale(namespace, name, version, replicas):
                continue
            await self._insist(namespace, standing, named)
            return
        raise PenstockError(
            "launcher_failed",
            f"The Deployment {namespace}/{name} changed {_TRIES} times while its replicas were being set.",
            hint="Look who else writes to it: no HorizontalPodAutoscaler or KEDA may scale a pool's Deployment.",
        )

    async def _mark(self, namespace: str, pool: PoolOrders, standing: list[dict[str, Any]], replicas: int) -> None:
        """Say which pods go first, before there are fewer replicas than pods; take it back from those that are kept."""
        named = self._named[pool.pool]
        unnamed = [pod for pod in standing if pod["metadata"]["name"] not in named]
        known = {pod["metadata"]["name"] for pod in unnamed if pods.is_marked(pod)}
        # A pod that the orders do not know may be new: it goes only if there are too many.
        new = [pod["metadata"]["name"] for pod in unnamed if not pods.is_marked(pod)]
        going = {*pool.retiring, *known, *new[: max(0, len(standing) - replicas - len(known))]}
        for pod in standing:
            name = pod["metadata"]["name"]
            first = name in going
            if first != pods.is_marked(pod):
                await self._api.annotate_pod(namespace, name, {pods.DELETION_COST: pods.LOWEST_COST if first else None})
            if first and name not in named:
                self._victims.setdefault(name, self._now_s())
            else:
                self._victims.pop(name, None)

    async def _insist(self, namespace: str, standing: list[dict[str, Any]], named: frozenset[str]) -> None:
        for pod in standing:
            name = pod["metadata"]["name"]
            if name not in named and name in self._victims and self._now_s() - self._victims[name] >= _CHOICE_S:
                await self._api.delete_pod(namespace, name)

    def _is_to_go(self, pool: str, pod: Mapping[str, Any]) -> bool:
        name = pod["metadata"]["name"]
        return name in self._victims and name not in self._named.get(pool, frozenset())

    async def _pods(self, namespace: str, deployment: Mapping[str, Any]) -> list[dict[str, Any]]:
        return await self._api.pods(namespace, deployment["spec"]["selector"]["matchLabels"])

    async def _words_of(self, namespace: str, pod: Mapping[str, Any]) -> tuple[str, ...]:
        """The last lines before its last end; asked for once an end."""
        name, ends = pod["metadata"]["name"], pods.exits(pod)
        if not ends:
            return ()
        if self._last_words.get(name, (0, ()))[0] != ends:
            self._last_words[name] = (ends, await self._api.last_words(namespace, name, _LAST_LINES))
        return self._last_words[name][1]


def deployments(settings: Settings) -> dict[str, tuple[str, str]]:
    """Namespace and name of the Deployment of each pool of this launcher. Raises PenstockError if two pools share one."""
    found: dict[str, tuple[str, str]] = {}
    for pool, asked in settings.autoscaler.pools.items():
        if (asked.launcher or settings.autoscaler.launcher) is not LauncherName.KUBERNETES:
            continue
        text = asked.deployment or settings.autoscaler.deployment
        if text is None:
            continue
        namespace, _, name = text.partition("/")
        if not namespace or not name or "/" in name:
            raise _bad(pool, f"{text!r} is not namespace/name")
        if (namespace, name) in found.values():
            raise _bad(pool, f"another pool has the Deployment {text} already")
        found[pool] = (namespace, name)
    return found


def _bad(pool: str, why: str) -> PenstockError:
    key = f"autoscaler.pools.{pool}.deployment"
    return PenstockError("bad_setting", f"{key}: {why}.", hint="Each pool has a Deployment of its own.", param=key)
