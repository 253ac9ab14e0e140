"""Time and memory of one step: python benchmarks/step.py --image_size 255 255 --kernel_size 21 21 --steps 5

Prints one line of JSON. The step is that of the solver on a random image; with --plain every piece is taken in its
plain form, in the default allocator, as a straightforward PyTorch program would run it.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from selfdeblur.api import check_kernel_size, choose_device
from selfdeblur.arguments import Parser, guarded
from selfdeblur.memory import keep_freed_memory
from selfdeblur.settings import PRESETS, make_settings
from selfdeblur.solver import Run


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
    parser.add_argument("--plain", action="store_true", help="the plain form of the same step")
    parser.add_argument("--low_memory", action="store_true", help="the form that takes more time and less memory")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.plain:
        keep_freed_memory(large=not args.low_memory)
    device, kernel_size = choose_device(args.device), check_kernel_size(args.kernel_size)
    changes = {"mse_steps": args.mse_steps} if args.preset == "release" else {}
    changes["low_memory"] = args.low_memory
    y = torch.rand(1, 1, *args.image_size, generator=torch.Generator().manual_seed(0)).to(device)
    run = Run(
        y, kernel_size, make_settings(args.preset, num_iter=args.steps + args.warmup, **changes), plain=args.plain
    )
    seconds, cpu = [], []
    while run.steps_done < run.settings.num_iter:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        run.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - begun_cpu)
    line = {
        "seconds_per_step": round(statistics.median(seconds[args.warmup :]), 4),
        "cpu_seconds_per_step": round(statistics.median(cpu[args.warmup :]), 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "form": "plain" if args.plain else "low memory" if args.low_memory else "fast",
        "image_size": list(args.image_size),
        "kernel_size": list(kernel_size),
        "steps": args.steps,
        "preset": args.preset,
        "loss": run.losses[-1].item(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        line["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
