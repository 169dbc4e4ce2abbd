"""What the command line says when something goes wrong: what, why, what to do; and the exit code."""

from dispatch.errors import PenstockError

OK, FAILED, USAGE, UNREACHABLE, TIMEOUT, INTERRUPTED = 0, 1, 2, 3, 4, 130

_EXIT_CODES = {"bad_setting": USAGE, "invalid_request": USAGE, "redis_unavailable": UNREACHABLE, "redis_unsuitable": UNREACHABLE}


class Failure(Exception):
    """An end of a command, in three short parts."""

    def __init__(self, what: str, why: str = "", to_do: str = "", exit_code: int = FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.to_do = to_do
        self.exit_code = exit_code

    def __str__(self) -> str:
        """As printed on stderr: one part a line."""
        lines = [f"penstock: {_sentence(self.what)}"]
        if self.why:
            lines.append(f"  why: {_sentence(self.why)}")
        if self.to_do:
            lines.append(f"  do:  {_sentence(self.to_do)}")
        return "\n".join(lines)


def failure_of(error: PenstockError) -> Failure:
    """An error of the other packages, in the command line's form."""
    return Failure(error.kind.title, error.message, error.hint, _EXIT_CODES.get(error.code, FAILED))


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?:" else f"{text}."
