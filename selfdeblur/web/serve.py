"""``selfdeblur serve``: options, folder and server of the page."""

import importlib.util
import os
import signal
import socket
import tempfile
from pathlib import Path

from selfdeblur.errors import UserError

MISSING = 'selfdeblur serve needs Gradio: pip install "selfdeblur[demo]"'
# Bytes of a pixel in the largest file of a picture that is taken: three floats, or four integers of 16 bits and more.
BYTES = 12
# What ends the server in order.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def add_arguments(parser):
    """Add the options of ``selfdeblur serve`` to an argparse parser."""
    parser.epilog = (
        "Open the address that is printed in a browser. Pictures are kept in a private temporary folder; those of a "
        "page are removed when it is closed, all of them at the end (Ctrl-C). A run ends when its page is closed. "
        "Nothing is loaded from or sent to another machine. Whoever reaches the address can use it: no password is "
        "asked for, so leave --host as it is where you do not trust the network."
    )
    add = parser.add_argument
    add("--port", type=int, default=7860, metavar="N", help="port of the page; 0: any that is free")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is seen by other machines")
    add("--max_megapixels", type=float, default=12, metavar="N", help="largest picture that is taken")
    add("--queue", type=int, default=4, metavar="N", help="pictures that may wait while one is deblurred")
    add("--device", default="auto", help="cuda, cuda:1, cpu; auto takes CUDA where there is one")


def main(args):
    """Serve the page until Ctrl-C, SIGTERM or SIGHUP; returns the exit status.

    Raises
    ------
    UserError
        If Gradio is missing, an option is out of range, or the port is in use.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(MISSING)
    _check(args)
    with _listen(args.host, args.port) as listener, tempfile.TemporaryDirectory(prefix="selfdeblur-serve-") as folder:
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        _serve(args, listener, Path(folder))
    return 0


def _check(args):
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port: {args.port} is no port; take a number from 1024 to 65535, or 0")
    if not 0 < args.max_megapixels <= 67:
        raise UserError(f"--max_megapixels: {args.max_megapixels:g} found; take a number above 0, 67 at most")
    if args.queue < 0:
        raise UserError(f"--queue: {args.queue} found; take a number of at least 0")


def _listen(host, port):
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"--port: {host}:{port} cannot be used ({error.strerror or error}); take another one"
        ) from error


def _serve(args, listener, folder):
    # What Gradio reads when it is loaded: where uploads go, and that nothing is told to anybody.
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    from selfdeblur.web.visits import Visits, Work

    work = Work("prepare", str(folder / "samples"), args.device)  # it loads PyTorch while this process loads Gradio
    visits = Visits(folder, args.queue)
    try:
        from selfdeblur.web import application

        kind, samples = work.wait()
        application.run(args, listener, visits, samples, kind)
    finally:
        visits.close()
        work.close()
