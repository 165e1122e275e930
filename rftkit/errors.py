"""The one exception that means "the user can fix this", and its kind that training survives."""

from rftkit.visible import one_line


class UserError(Exception):
    """A user's mistake: one line that names the field, file or line, and the remedy.

    The command line prints it without a traceback and exits with status 2. Whatever the message
    quotes, its text is one line and commands no terminal.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def reason(error: Exception) -> str:
    """The first line of it: a user's mistake in its own words, anything else with its kind."""
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


class DivergedError(UserError):
    """A run whose settings broke it, after steps enough to be sure: a result, if a sad one."""


class BadStepError(UserError):
    """A step that must not change the weights: `what` is wrong, and its remedy."""

    def __init__(self, what: str, remedy: str):
        super().__init__(what, remedy)
        self.what = what

    def __str__(self) -> str:
        return one_line(": ".join(self.args))
