"""From settings and what an operator overrode to a pool's policy. Pure. Never here: what the policy causes (policy.py)."""

import re

from autoscaler.policy import Floor, PoolPolicy
from dispatch.errors import PenstockError
from dispatch.scaling import PoolOverride
from dispatch.settings_scale import PoolSettings

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FLOOR = re.compile(r"(?:(\S+) +)?(\d{1,2}):(\d{2}) *- *(\d{1,2}):(\d{2}) +(\d+)")
_MINUTES = 24 * 60


def policy_of(settings: PoolSettings, override: PoolOverride | None) -> PoolPolicy:
    """The pool's policy. What an operator set counts more, and of min and max the one that is theirs, else max."""
    override = override or PoolOverride()
    least = settings.min if override.min is None else override.min
    most = settings.max if override.max is None else override.max
    if override.max is None and override.min is not None:
        most = max(most, least)
    return PoolPolicy(
        min=min(least, most),
        max=most,
        initial=settings.initial,
        policies=settings.policies,
        target_s=override.target_s or settings.target_s,
        requests_per_worker=settings.requests_per_worker,
        utilisation=settings.utilisation,
        ttft_s=settings.ttft_s,
        up_window_s=settings.up_window_s,
        down_window_s=settings.down_window_s,
        step_up=settings.step_up,
        step_down=settings.step_down,
        idle_timeout_s=settings.idle_timeout_s,
        floors=tuple(floor_of(text) for text in settings.floors),
        paused=override.paused,
    )


def floor_of(text: str) -> Floor:
    """`mon-fri 08:00-18:00 2`, `sat,sun 22:00-06:00 1`, `08:00-18:00 1` (every day); UTC. A span may go over midnight."""
    match = _FLOOR.fullmatch(text.strip().lower())
    if not match:
        raise _bad(text, "it is not days, a span of time and a number")
    days, from_hour, from_minute, to_hour, to_minute, least = match.groups()
    starts, ends = _minute(text, from_hour, from_minute), _minute(text, to_hour, to_minute)
    if starts in (ends, _MINUTES):
        raise _bad(text, "its span of time is empty; a whole day is 00:00-24:00")
    return Floor(_days(text, days) if days else (), starts, ends, int(least))


def _days(text: str, named: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in named.split(","):
        first, dash, last = part.partition("-")
        for name in (first, last) if dash else (first,):
            if name not in _DAYS:
                raise _bad(text, f"{name!r} is none of {', '.join(_DAYS)}")
        start = _DAYS.index(first)
        count = (_DAYS.index(last) - start) % 7 if dash else 0
        found |= {(start + n) % 7 for n in range(count + 1)}
    return tuple(sorted(found))


def _minute(text: str, hour: str, minute: str) -> int:
    value = int(hour) * 60 + int(minute)
    if int(minute) > 59 or value > _MINUTES:
        raise _bad(text, f"there is no {hour}:{minute} in a day")
    return value


def _bad(text: str, why: str) -> PenstockError:
    return PenstockError(
        "bad_setting",
        f"The floor {text!r} cannot be understood: {why}.",
        hint='Write days, a span of time (UTC) and a number of workers, like "mon-fri 08:00-18:00 2".',
        param="floors",
    )
