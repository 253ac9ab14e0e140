"""Time and memory of one step: python benchmarks/step.py --image_size 255 255 --kernel_size 21 21 --steps 5

Prints one line of JSON. The step is that of the solver on a random image. With --plain every piece is taken in its
plain form, in the default allocator, as a straightforward PyTorch program would run it; with --graph the step is that
on fixed buffers which runs take on a GPU, recorded as a CUDA graph where there is one; --batch does so with several
images side by side. --compile puts torch.compile to the plain
layers of the image generator, to be measured only.

Times are those of one step of one image: of N images side by side, the time of a round divided by N. On a GPU the
clock is read after every fifth of the steps, so that nothing waits in between.
"""

import contextlib
import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from selfdeblur.api import choose_device
from selfdeblur.arguments import Parser, guarded
from selfdeblur.checks import check_kernel_size
from selfdeblur.errors import UserError
from selfdeblur.graphs import FixedStep
from selfdeblur.runs.memory import keep_freed_memory
from selfdeblur.settings import PRECISIONS, PRESETS, make_settings
from selfdeblur.stages import Run


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--image_size", type=int, nargs=2, default=(255, 255), metavar=("H", "W"))
    parser.add_argument("--kernel_size", type=int, nargs="+", default=(21, 21), metavar="K")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them that do not")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", choices=[name for name in PRESETS if name != "nonblind"], default="release")
    parser.add_argument("--mse_steps", type=int, default=0, help="0: the data term is 1 - SSIM from the start")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="arithmetic on a GPU")
    parser.add_argument("--plain", action="store_true", help="the plain form of the same step")
    parser.add_argument("--graph", action="store_true", help="the step on fixed buffers, as on a GPU")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images side by side; with --graph")
    parser.add_argument("--compile", action="store_true", help="compile the plain image generator")
    parser.add_argument("--tune", action="store_true", help="let cuDNN try its algorithms")
    parser.add_argument("--low_memory", action="store_true", help="the form that takes more time and less memory")
    args = parser.parse_args(argv)
    if args.batch > 1 and not args.graph:
        raise UserError("--batch: goes with --graph")
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.plain:
        keep_freed_memory(large=not args.low_memory)
    torch.backends.cudnn.benchmark = args.tune
    device, kernel_size = choose_device(args.device), check_kernel_size(args.kernel_size)
    y = torch.rand(1, 1, *args.image_size, generator=torch.Generator().manual_seed(0)).to(device)
    changes = {"mse_steps": args.mse_steps} if args.preset == "release" else {}
    changes |= {"num_iter": args.steps + args.warmup, "precision": args.precision, "low_memory": args.low_memory}
    changes["noise_from"] = device.type
    runs = []
    for number in range(args.batch):
        runs.append(Run(y, kernel_size, make_settings(args.preset, seed=number, **changes), plain=args.plain))
        if args.compile:
            runs[-1].fit.G_x.plain = True
            runs[-1].fit.G_x.compile()
    with contextlib.ExitStack() as stack:
        steps = [run.step for run in runs]
        if args.graph:
            fixed = [FixedStep(run.fit) for run in runs]
            for one in fixed:
                stack.callback(one.close)
            steps = [one.step for one in fixed]
        seconds, cpu = measure(steps, args.warmup, args.steps, device)
    form = "plain" if args.plain else "compiled" if args.compile else "low memory" if args.low_memory else "fast"
    line = {
        "seconds_per_step": round(seconds / args.batch, 6),
        "cpu_seconds_per_step": round(cpu / args.batch, 6),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "form": form + (" graph" if args.graph else "") + (" tuned" if args.tune else ""),
        "recorded": args.graph and device.type == "cuda" and FixedStep.recordable,
        "batch": args.batch,
        "precision": args.precision,
        "image_size": list(args.image_size),
        "kernel_size": list(kernel_size),
        "steps": args.steps,
        "preset": args.preset,
        "loss": runs[0].losses[-1].item(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        line["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        # With the gaps, but without the 300 to 500 MB that CUDA itself takes.
        line["peak_gpu_reserved_mb"] = round(torch.cuda.max_memory_reserved(device) / 2**20)
    print(json.dumps(line))
    return 0


def measure(steps, warmup, count, device):
    """Median seconds of a round of steps, one of each run, and CPU seconds, after some that do not count."""
    on_gpu = device.type == "cuda"
    block = max(1, count // 5) if on_gpu else 1
    seconds, cpu = [], []
    for rounds in [1] * warmup + [block] * (count // block):
        if on_gpu:
            torch.cuda.synchronize(device)
        begun, begun_cpu = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            for step in steps:
                step()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - begun) / rounds)
        cpu.append((time.process_time() - begun_cpu) / rounds)
    return statistics.median(seconds[warmup:]), statistics.median(cpu[warmup:])


if __name__ == "__main__":
    sys.exit(guarded(main))
