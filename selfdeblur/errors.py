"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake the user can mend; its message is one line for the terminal.

    The message names the file or option, what was found and what to do. The
    command line prints it without a traceback and exits with status 2.
    """
