"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A user's mistake: one line that names the field, file or line, and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """
