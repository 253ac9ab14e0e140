"""What all command lines share: both spellings of an option, one line for a mistake."""

import argparse
import os
import sys

from selfdeblur.errors import StoppedError, UserError


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that ends with the default, where there is one to speak of."""

    def _get_help_string(self, action):
        if action.default in (None, False, 0) or action.default == (1, 1) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that takes --num-iter for --num_iter and whose errors are a `UserError`."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([_underscored(arg) for arg in args], namespace)

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def _underscored(arg):
    name, equals, value = arg.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if arg.startswith("--") else arg


def guarded(main):
    """Return the exit status of ``main()``; a `UserError` becomes one line on standard error and status 2."""
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough; what is left must not fail again on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        print(f"stopped by {stopped}; the same command goes on from the checkpoint", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
