"""selfdeblur PHOTO... takes the blur out of pictures; selfdeblur COMMAND does what goes on around benchmarks.

A first argument that is the name of a command is that command; a picture of
such a name is given as ./fetch.
"""

import sys

from selfdeblur import __version__
from selfdeblur.data import fetch, sample
from selfdeblur.runs import photo
from selfdeblur.runs.arguments import Parser, guarded
from selfdeblur.scores import report, tables

COMMANDS = {
    "fetch": (fetch, "get a benchmark and check its files"),
    "sample": (sample, "make the sample images that need no download"),
    "report": (report, "show a folder of results as one HTML page"),
    "table": (tables, "print the tables of scores of the README"),
}


def main(argv=None):
    """Run the command line and return its exit status."""
    return guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv):
    if not argv or argv[0] not in COMMANDS:
        return photo.main(argv)
    parser = Parser(prog="selfdeblur", description="Blind deconvolution of single images with SelfDeblur.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        module.add_arguments(command)
    args = parser.parse_args(argv)
    return COMMANDS[args.command][0].main(args)


if __name__ == "__main__":
    sys.exit(main())
