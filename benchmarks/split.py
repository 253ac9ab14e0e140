"""Where the time of a preset goes: python benchmarks/split.py --preset fast --image_size 255 255 --kernel_size 19

Deblurs one image several times and prints a line of JSON: the seconds of kernel searches, of the steps of the stages,
and of the rest (votes, deconvolutions, quality), and their sum. The first round of a process also loads programs,
plans transforms and compiles; the others are what an image more takes. The image is a picture that comes with
scikit-image, mirrored at its borders where it is too small, and blurred by a drawn kernel.
"""

import contextlib
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from skimage import data

from selfdeblur import api, restore, stages
from selfdeblur.api import choose_device
from selfdeblur.arguments import Parser, guarded
from selfdeblur.checks import check_kernel_size
from selfdeblur.classical import size as sizes
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.classical.recorded import Recorded
from selfdeblur.forward import blur
from selfdeblur.graphs import FixedStep
from selfdeblur.settings import QUICK

PRESETS = (QUICK, "fast", "best")


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="fast")
    parser.add_argument("--image_size", type=int, nargs=2, default=(255, 255), metavar=("H", "W"))
    parser.add_argument("--kernel_size", type=int, nargs="+", default=(19, 19), metavar="K")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--num_iter", type=int, help="steps; by default those of the preset")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    device, size = choose_device(args.device), check_kernel_size(args.kernel_size)
    y = problem(args.image_size, size)
    line = {
        "rounds": [split(args.preset, y, size, device, args.num_iter) for _ in range(args.rounds)],
        "preset": args.preset,
        "image_size": list(args.image_size),
        "kernel_size": list(size),
        "recorded": device.type == "cuda" and FixedStep.recordable and Recorded.recordable,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        line["peak_gpu_reserved_mb"] = round(torch.cuda.max_memory_reserved(device) / 2**20)
    print(json.dumps(line))
    return 0


def problem(image_size, kernel_size):
    """A blurry image (H, W)."""
    sharp = data.camera().astype(np.float32) / 255
    needed = [n + k - 1 for n, k in zip(image_size, kernel_size, strict=True)]
    sharp = np.pad(sharp, [(0, max(n - m, 0)) for n, m in zip(needed, sharp.shape, strict=True)], mode="reflect")
    x = torch.from_numpy(sharp[: needed[0], : needed[1]].copy())
    kernel = torch.from_numpy(camera_shake_kernel(kernel_size, rng=0)).float()
    return blur(x[None, None], kernel[None, None])[0, 0].clamp(0, 1).numpy()


class Watch:
    """Seconds in functions, by name."""

    def __init__(self, device):
        self.device, self.seconds, self.calls = device, Counter(), Counter()

    def now(self):
        """The time, when all that the device was told is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on(self, owner, name):
        """A context in which the calls of a function are timed."""
        function = getattr(owner, name)

        def watched(*arguments, **options):
            begun = self.now()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += self.now() - begun
                self.calls[name] += 1

        return mock.patch.object(owner, name, watched)


def split(preset, y, size, device, num_iter):
    """Seconds of one image, and where they went."""
    watch = Watch(device)
    with contextlib.ExitStack() as stack:
        places = (stages, "estimate_kernel"), (sizes, "estimate_kernel")
        for place in (*places, (api, "take_steps"), (stages.Run, "begin")):
            stack.enter_context(watch.on(*place))
        begun = watch.now()
        if preset == QUICK:
            restore.restore(y, kernel_size=size, preset=QUICK, device=device)
        else:
            api.deblur(y, size, preset=preset, device=device, num_iter=num_iter)
        total = watch.now() - begun
    search, steps = watch.seconds["estimate_kernel"], watch.seconds["take_steps"] - watch.seconds["begin"]
    parts = {"search": search, "steps": steps, "end": total - search - steps, "total": total}
    return {name: round(seconds, 3) for name, seconds in parts.items()} | {"searches": watch.calls["estimate_kernel"]}


if __name__ == "__main__":
    sys.exit(guarded(main))
