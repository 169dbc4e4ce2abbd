"""The name clients use for a model. Never here: what may stand in a name (dispatch/keys.py)."""

from dispatch.errors import PenstockError
from dispatch.keys import check_model_name
from dispatch.settings import WorkerSettings


def served_name(settings: WorkerSettings, derived: str) -> str:
    """What the settings say, else what the engine derived. Raises PenstockError("bad_setting") if that can be no name."""
    if settings.served_name:
        return settings.served_name
    try:
        return check_model_name(derived)
    except PenstockError as error:
        raise PenstockError(
            "bad_setting",
            f"Clients cannot use {derived[:140]!r} as a model's name. {error.hint}",
            hint="Give it another one with --name (PENSTOCK_WORKER__SERVED_NAME).",
            param="worker.served_name",
        ) from error
