"""selfdeblur PHOTO... takes the blur out of pictures; selfdeblur COMMAND does what goes on around benchmarks.

A first argument that is the name of a command is that command; a picture of
such a name is given as ./fetch.
"""

import sys

from selfdeblur.arguments import Parser, guarded


def _fetch():
    from selfdeblur.data import fetch

    return fetch


def _sample():
    from selfdeblur.data import sample

    return sample


def _report():
    from selfdeblur.scores import report

    return report


def _status():
    from selfdeblur.runs import status

    return status


def _table():
    from selfdeblur.scores import tables

    return tables


def _serve():
    from selfdeblur.web import serve

    return serve


# What each command does, and what gives its module: loaded only when the command is chosen, which takes seconds.
COMMANDS = {
    "fetch": (_fetch, "get a benchmark and check its files"),
    "sample": (_sample, "make the sample images that need no download"),
    "report": (_report, "show a folder of results as one HTML page"),
    "status": (_status, "tell what is done, running and failed in a folder of results"),
    "table": (_table, "print the tables of scores of the README"),
    "serve": (_serve, "show a page in the browser that takes the blur out of a picture"),
}


def main(argv=None):
    """Run the command line and return its exit status."""
    return guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv):
    if not argv or argv[0] not in COMMANDS:
        from selfdeblur.runs.photo_options import parser as photo_parser

        args = photo_parser().parse_args(argv)
        from selfdeblur.runs import photo

        return photo.main(args)
    parser = Parser(prog="selfdeblur", description="Blind deconvolution of single images with SelfDeblur.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    module = None
    for name, (load, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if argv and argv[0] == name:
            module = load()
            module.add_arguments(command)
    args = parser.parse_args(argv)
    return module.main(args)


if __name__ == "__main__":
    sys.exit(main())
