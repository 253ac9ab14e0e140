"""Fits and searches of little arithmetic, for tests of what goes on around them."""

import time

CHANNELS = (8, 8)
STARTS = 1
GATE = 3


def make_thin(replace=setattr):
    """Give every generator of images two scales of few channels, and every search for a kernel one start.

    ``replace(object, name, value)`` sets an attribute.
    """
    from selfdeblur.settings import Settings

    check = Settings.__post_init__

    def post_init(settings):
        object.__setattr__(settings, "channels", CHANNELS)
        check(settings)

    replace(Settings, "__post_init__", post_init)
    make_searches_short(replace)


def make_searches_short(replace=setattr):
    """Give every search for a kernel one start."""
    from selfdeblur.classical import estimate_kernel

    replace(estimate_kernel, "__kwdefaults__", estimate_kernel.__kwdefaults__ | {"starts": STARTS})


def thin_folder(benchmark, args):
    """`selfdeblur.runs.command.deblur_folder` of little arithmetic, for tasks of a cluster.

    Where there is a file ``gate`` beside the folder of results, every image stops before step GATE, counted from 0,
    until the file is gone.
    """
    from selfdeblur.runs.command import deblur_folder
    from selfdeblur.stages import Run

    make_thin()
    gradient, gate = Run.gradient, args.save_path.parent / "gate"

    def gated(run):
        while run.steps_done == GATE and gate.exists():
            time.sleep(0.01)
        gradient(run)

    Run.gradient = gated
    try:
        return deblur_folder(benchmark, args)
    finally:
        Run.gradient = gradient
