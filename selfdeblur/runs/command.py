"""The command line of the benchmark scripts: a folder of blurry images in, a folder of results out."""

import os
from functools import partial
from pathlib import Path

import torch

from selfdeblur.api import choose_device
from selfdeblur.arguments import Parser, guarded
from selfdeblur.checks import check_kernel_size
from selfdeblur.errors import UserError
from selfdeblur.files.images import find_images
from selfdeblur.files.kernels import read_kernel
from selfdeblur.runs import cluster
from selfdeblur.runs.memory import keep_freed_memory
from selfdeblur.runs.reproduce import reproduce_files
from selfdeblur.runs.results import ResultFolder
from selfdeblur.runs.runner import Job, deblur_files
from selfdeblur.settings import (
    NOISE_FROM,
    NONBLIND,
    PRECISIONS,
    PRESETS,
    TV_WEIGHT_OF_NOISE,
    check_known_kernel,
    make_settings,
)

# What --kernel_size is where the size is to be estimated.
AUTO = ["auto"]


def benchmark_main(benchmark, argv=None):
    """Entry of ``selfdeblur_levin.py`` and ``selfdeblur_lai.py``; returns the exit status."""
    return guarded(lambda: deblur_folder(benchmark, _parser(benchmark).parse_args(argv)))


def deblur_folder(benchmark, args):
    """Deblur the folder that the options name, see `_parser`, or have a cluster do it; returns the exit status."""
    cluster.check(args)
    keep_freed_memory(large=not args.low_memory)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.data_path == benchmark.blurry and not args.data_path.is_dir():
        raise UserError(
            f"{args.data_path}: no such folder; get the benchmark by 'python -m selfdeblur fetch {benchmark.name}', "
            "or give --data_path"
        )
    shard, shards = args.shard
    paths = find_images(args.data_path, args.images)[shard - 1 :: shards]
    if args.cluster:
        if not args.reproduce:
            _jobs(args, benchmark, paths, torch.device("cpu"))  # mistakes show here, before anything waits in a queue
        return cluster.submit(partial(deblur_folder, benchmark), args, images=len(paths), folder=args.save_path)
    if not paths:
        return 0  # more shards than images
    # Streams beyond this number wait for each other; it is read when CUDA is started.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    device = choose_device(args.device)
    if args.reproduce:
        return reproduce_files(paths, args.save_path, kernel_size=lambda name: _size(args, benchmark, name))
    jobs = _jobs(args, benchmark, paths, device)
    folder = ResultFolder(
        args.save_path, jobs[0].settings.as_dict(), images=[job.name for job in jobs], overwrite=args.overwrite
    )
    if args.save_frequency is None:
        # On a GPU 100 steps take less time than writing their result.
        args.save_frequency = 1000 if device.type == "cuda" else 100
    counts, failures = deblur_files(
        jobs,
        folder,
        device=device,
        save_frequency=args.save_frequency,
        checkpoint_every=args.checkpoint_every,
        batch=args.batch,
    )
    parts = [f"{number} {what}" for what, number in counts.items() if number]
    if parts:
        failed = [f"{len(failures)} failed"] if failures else []
        print(f"{len(jobs)} of {args.data_path}: {', '.join(parts + failed)}; see {args.save_path}")
    return 2 if failures else 0


def _jobs(args, benchmark, paths, device):
    changes = {name: getattr(args, name) for name in ("mse_steps", "tv_weight") if getattr(args, name) is not None}
    if args.noise_sigma is not None:
        changes.setdefault("tv_weight", TV_WEIGHT_OF_NOISE * args.noise_sigma)
    preset = args.preset or (NONBLIND if args.kernel else "release")
    if preset == "release":
        changes.setdefault("mse_steps", benchmark.mse_steps)
    changes |= {"precision": args.precision, "low_memory": args.low_memory}
    changes["noise_from"] = args.noise_from or device.type
    settings = make_settings(preset, num_iter=args.num_iter, seed=args.seed, **changes)
    check_known_kernel(preset, args.kernel is not None, kernel="--kernel")
    kernel = read_kernel(args.kernel) if args.kernel else None
    if kernel is not None and args.kernel_size not in (None, AUTO) and kernel.shape != _size(args, benchmark, ""):
        given = " x ".join(map(str, _size(args, benchmark, "")))
        raise UserError(f"--kernel_size: {given}, but {args.kernel} holds {kernel.shape} numbers")
    jobs = []
    for path in paths:
        size = kernel.shape if kernel is not None else _size(args, benchmark, path.stem)
        jobs.append(Job(path, size, settings, kernel=kernel, kernel_file=args.kernel))
    return jobs


def _size(args, benchmark, name):
    """The kernel size (h, w) for the image of a name; None where it is to be estimated."""
    if args.kernel_size is None:
        return benchmark.kernel_size(name)
    return None if args.kernel_size == AUTO else check_kernel_size(args.kernel_size)


def _number_or_auto(text):
    return text if text in AUTO else int(text)


def _parser(benchmark):
    presets = "; ".join(f"{name}: {text}" for name, (text, _) in PRESETS.items())
    parser = Parser(
        description=f"Deblur the images of the {benchmark.name} benchmark, or of any folder, with SelfDeblur.",
        epilog=f"Presets. {presets}.",
    )
    add = parser.add_argument
    add("--data_path", type=Path, default=benchmark.blurry, help="folder of blurry images")
    add("--save_path", type=Path, default=benchmark.results, help="folder of results")
    add("--images", metavar="PATTERN", default="*", help="only images whose name matches, say 'im1_*'")
    add("--preset", choices=PRESETS, help=f"see below; by default release, or {NONBLIND} with --kernel")
    add("--num_iter", type=_whole, help="steps of the optimiser; by default those of the preset")
    text = "height and width, or one number for both, odd; auto: estimated, as for names that are not the benchmark's"
    add("--kernel_size", type=_number_or_auto, nargs="+", metavar="N", help=text)
    add("--kernel", type=Path, metavar="FILE", help="known kernel (image or .npy), in correlation sense")
    add("--mse_steps", type=_whole, help="steps with the mean squared error before 1 - SSIM")
    add("--tv_weight", type=float, help="weight of the total variation")
    add("--noise_sigma", type=float, help=f"noise level in 0 to 1; sets --tv_weight to {TV_WEIGHT_OF_NOISE} times it")
    add("--seed", type=_whole, default=0, help="seed of all random numbers")
    add("--device", default="auto", help="cuda, cuda:1, cpu; auto takes CUDA where there is one")
    add("--threads", type=_whole, help="CPU threads; by default all cores")
    add("--batch", type=_batch, default=1, metavar="N", help="images at once; auto: 1 on the CPU, on a GPU what fits")
    add("--precision", choices=PRECISIONS, default="float32", help="arithmetic of the image generator on a GPU")
    add("--noise_from", choices=NOISE_FROM, help="what draws the noise of the steps; by default the device of the run")
    add("--low_memory", action="store_true", help="for large images: two thirds of the memory, a third more time")
    add("--save_frequency", type=_whole, help="steps between results; 0 for none; by default 100, on a GPU 1000")
    add("--checkpoint_every", type=_whole, default=0, help="steps between checkpoints; 0 for one a minute")
    add("--overwrite", action="store_true", help="run images again that are finished")
    add("--reproduce", action="store_true", help="render images and kernels from the models in --save_path")
    cluster.add_arguments(parser)
    return parser


def _whole(text):
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _batch(text):
    """Images at once; 0 for as many as fit."""
    number = 0 if text == "auto" else int(text)
    if text != "auto" and number < 1:
        raise ValueError
    return number


_whole.__name__ = "number of at least 0"
_batch.__name__ = "number of at least 1, or auto"
