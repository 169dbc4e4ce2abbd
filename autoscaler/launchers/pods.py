"""What a pod's record says of the worker in it. Pure.

Never here: asking for pods (kubernetes_api.py), what follows from their state (kubernetes.py).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dispatch.scaling import LaunchReport, LaunchState

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
LOWEST_COST = "-2147483648"
NODE_WAIT_S = 300.0
"""How long a pod without a node may still get one: a cluster that adds nodes needs minutes."""
_MOST_RESTARTS = 6
_HOPELESS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
    | {"CreateContainerError", "RunContainerError"}
)


def is_leaving(pod: Mapping[str, Any]) -> bool:
    """It is being deleted, or its container has ended for good."""
    return "deletionTimestamp" in pod["metadata"] or pod["status"].get("phase") in ("Succeeded", "Failed")


def is_marked(pod: Mapping[str, Any]) -> bool:
    """It is the first to go when replicas are lowered."""
    return bool(pod["metadata"].get("annotations", {}).get(DELETION_COST) == LOWEST_COST)


def homeless(pod: Mapping[str, Any]) -> str:
    """Why no node takes it; "" if one does."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False" and condition.get("reason") == "Unschedulable":
            return str(condition.get("message") or "no node takes the pod")
    return ""


def exits(pod: Mapping[str, Any]) -> int:
    """How often its containers ended and were started again."""
    return sum(status.get("restartCount", 0) for status in pod["status"].get("containerStatuses", ()))


def report(pod: Mapping[str, Any], pool: str, now_s: float, last_words: tuple[str, ...] = ()) -> LaunchReport:
    """The pod as a launch."""
    made_at_s = datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).timestamp()
    state, error = _state(pod, now_s - made_at_s)
    return LaunchReport(
        id=pod["metadata"]["name"],
        pool=pool,
        state=state,
        host=pod["spec"].get("nodeName", ""),
        since_ms=int(made_at_s * 1000),
        exits=exits(pod),
        error=error,
        last_words=last_words,
    )


def _state(pod: Mapping[str, Any], age_s: float) -> tuple[LaunchState, str]:
    status = pod["status"]
    if "deletionTimestamp" in pod["metadata"]:
        return LaunchState.STOPPING, ""
    if status.get("phase") in ("Succeeded", "Failed"):
        return LaunchState.GONE, " ".join(filter(None, (status.get("reason"), status.get("message"))))
    if why := homeless(pod):
        return (LaunchState.REFUSED if age_s > NODE_WAIT_S else LaunchState.STARTING), why
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    for container in containers:
        waiting = container.get("state", {}).get("waiting")
        if not waiting:
            continue
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _HOPELESS:
            return LaunchState.REFUSED, f"{reason}: {message}".strip(": ")
        if reason == "CrashLoopBackOff":
            open_circuit = container.get("restartCount", 0) > _MOST_RESTARTS
            return (LaunchState.CRASH_LOOP if open_circuit else LaunchState.BACKOFF), _last_end(container) or message
        return LaunchState.STARTING, ""
    if status.get("phase") == "Running":
        return LaunchState.RUNNING, next(filter(None, map(_last_end, containers)), "")
    return LaunchState.STARTING, ""


def _last_end(container: Mapping[str, Any]) -> str:
    ended = container.get("lastState", {}).get("terminated")
    return f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode')}" if ended else ""
