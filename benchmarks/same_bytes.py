"""Whether two checkouts give the same bytes: python benchmarks/same_bytes.py FOLDER

Deblurs small problems with each preset, on the CPU with one thread, and prints a sum of the image, the kernel and the
losses of each. Given the FOLDER of another checkout, does so in both and prints what differs; the exit status is 1 if
anything does. Of the other checkout only `selfdeblur.deblur` is used, so it may be an old one. Takes two minutes a
checkout on one core.

Bytes differ between kinds of CPUs and versions of PyTorch, so sums are compared on one machine only. What the tests
hold to a tolerance on every machine is written by --pin tests/method/pinned.json.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

# Preset, pixels a side, kernel size, deviation of the noise, changes of the settings.
CASES = (
    ("release", 48, 9, 0.0, {"num_iter": 8, "mse_steps": 4}),
    ("paper", 48, 9, 0.0, {"num_iter": 6}),
    ("nonblind", 48, 9, 0.0, {"num_iter": 6}),
    ("fast", 72, 13, 0.0, {"num_iter": 12}),
    ("fast", 72, 13, 0.02, {"num_iter": 12}),
    ("fast", 110, 21, 0.0, {"num_iter": 12}),
    ("fast", 110, 21, 0.02, {"num_iter": 12}),
    ("best", 72, 13, 0.0, {"num_iter": 8}),
    ("best", 72, 13, 0.02, {"num_iter": 8}),
    ("fast", 128, 15, 0.0, {}),
    ("fast", 128, 15, 0.02, {}),
)
# What the tests hold: all presets, in a few seconds. The first steps of Adam have the size of the learning rate,
# whatever the size of the gradient, so with the rate of the presets rounding decides what comes of them; with a
# thousandth of it the numbers of another CPU are near.
PINNED = (
    ("release", 96, 9, 0.0, {"num_iter": 4, "mse_steps": 2, "lr_image": 1e-5}),
    ("paper", 96, 9, 0.0, {"num_iter": 3, "lr_image": 1e-5}),
    ("nonblind", 96, 9, 0.0, {"num_iter": 3, "lr_image": 1e-5}),
    ("fast", 48, 5, 0.0, {"num_iter": 6, "lr_image": 1e-5}),
    ("best", 64, 5, 0.0, {"num_iter": 4, "lr_image": 1e-5}),
)
DIGITS = 16


def main(argv=None):
    """Run the command line and return its exit status."""
    sys.path.insert(0, str(ROOT))
    from selfdeblur.arguments import Parser

    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="another checkout to compare with")
    parser.add_argument("--pin", type=Path, metavar="FILE", help="write the numbers that the tests hold, and end")
    args = parser.parse_args(argv)
    if args.pin:
        pinned = {name_of(case): numbers(solve(case, *problem(case))) for case in PINNED}
        args.pin.write_text(json.dumps(pinned, indent=1) + "\n")
        return 0
    ours = sums_of(ROOT)
    print(json.dumps(ours, indent=1))
    if args.folder is None:
        return 0
    theirs = sums_of(args.folder.resolve())
    different = [name for name in ours if ours[name] != theirs[name]]
    for name in different:
        print(f"differs: {name}: {theirs[name]} in {args.folder}")
    if not different:
        print(f"all {len(ours)} are the same in {args.folder}")
    return 1 if different else 0


def name_of(case):
    preset, side, kernel_size, noise, changes = case
    return f"{preset} {side} {kernel_size} {noise} {changes.get('num_iter', 'full')}"


def problem(case):
    """Blurry image (side, side) and kernel of a case, made by this checkout."""
    import torch
    from skimage import data

    from selfdeblur.classical.kernels import camera_shake_kernel
    from selfdeblur.forward import blur

    _, side, size, noise, _ = case
    rows, columns = slice(100, 100 + side + size - 1), slice(180, 180 + side + size - 1)
    x = torch.tensor(data.camera()[rows, columns] / 255, dtype=torch.float32)
    kernel = camera_shake_kernel(size, rng=size)
    y = blur(x[None, None], torch.tensor(kernel, dtype=torch.float32)[None, None])[0, 0].numpy()
    y = y + noise * np.random.default_rng(0).standard_normal(y.shape)
    return np.clip(y, 0, 1).astype(np.float32), kernel


def solve(case, y, kernel):
    """The `Result` of a case by the package that is found first."""
    from selfdeblur import deblur

    preset, _, _, _, changes = case
    known = {"kernel": kernel} if preset == "nonblind" else {"kernel_size": kernel.shape}
    return deblur(y, preset=preset, device="cpu", **known, **changes)


def sums_of(checkout):
    """Sums of all cases by name, computed by the package of a checkout in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "problems.npz", *(array for case in CASES for array in problem(case)))
        code = (
            f"import sys; sys.path[:0] = {[str(checkout), str(ROOT / 'benchmarks')]!r}\n"
            f"import same_bytes; same_bytes.print_sums('problems.npz')"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, stdout=subprocess.PIPE, cwd=folder, env=environment, check=True)
    return json.loads(run.stdout)


def print_sums(problems):
    """Solve the problems of a file and print what is compared, as JSON: sums, disagreement, whether it is doubtful."""
    import torch

    torch.set_num_threads(1)
    with np.load(problems) as file:
        arrays = list(file.values())
    found = {}
    for case, y, kernel in zip(CASES, arrays[::2], arrays[1::2], strict=True):
        result = solve(case, y, kernel)
        sums = [digest(array) for array in (result.image, result.kernel, result.history["loss"])]
        found[name_of(case)] = [*sums, str(result.quality.get("disagreement")), result.quality["doubtful"]]
    print(json.dumps(found))


def digest(array):
    """The first digits of the SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:DIGITS]


def numbers(result):
    """Numbers of a result: losses; mean and deviation of the image; centroid, power, largest entry of the kernel."""
    rows, columns = np.indices(result.kernel.shape)
    return {
        "losses": [float(loss) for loss in result.history["loss"]],
        "image": [float(result.image.mean()), float(result.image.std())],
        "kernel": [
            float((rows * result.kernel).sum()),
            float((columns * result.kernel).sum()),
            float(np.square(result.kernel).sum()),
            float(result.kernel.max()),
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
