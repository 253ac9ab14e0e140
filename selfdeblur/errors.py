"""The exceptions that end a program in order."""


class UserError(ValueError):
    """A mistake the user can mend; its message is one line for the terminal.

    The message names the file or option, what was found and what to do. The
    command line prints it without a traceback and exits with status 2.
    """


class OutputError(UserError):
    """A file could not be written; what comes after it could not be written either."""


class StoppedError(Exception):
    """A signal asked the program to end; the message is the signal's name."""


class MissingExtraError(UserError, ImportError):
    """A part of the package needs an extra that is not installed; the message says which `pip install` brings it."""
