"""The one exception that means "the user can fix this"."""

from rftkit.visible import one_line


class UserError(Exception):
    """A user's mistake: one line that names the field, file or line, and the remedy.

    The command line prints it without a traceback and exits with status 2. Whatever the message
    quotes, its text is one line and commands no terminal.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())
