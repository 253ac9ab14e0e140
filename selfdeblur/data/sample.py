"""The embedded sample: small blurry images with truth and kernel, made without a download.

The sharp images are photographs that ship inside scikit-image; the kernels
are random camera shakes. Those of the Levin part have the names and sizes of
the benchmark's table, so the script runs on them with ``--data_path`` alone;
those of the Lai part are smaller than in its table and need ``--kernel_size 13``.

Two folders are written. ``levin`` has the layout of the Levin benchmark:
``imN_kernelM_img.png`` (blurry), ``gt/imN.png`` (sharp, same size) and
``gt/kernelM.png`` (kernel / its maximum). ``lai`` has the layout of the Lai
benchmark: ``uniform_ycbcr/CATEGORY_NN_kernel_NN.png`` (blurry, grey) and
``ground_truth/CATEGORY_NN.png`` (sharp, colour).

Kernel files are in the correlation sense, like the ``NAME_k.png`` that a run
writes and like six of the eight files ``gt/kernelM.png`` of the real Levin
data, where only ``kernel4`` and ``kernel8`` are turned by 180 degrees (fit a
kernel to a sharp and a blurry image of the benchmark to see it).

The grey values of ``lai`` are MATLAB's Y, 16 to 235, because that is the truth
which a result is scored against. The real Lai files differ here: theirs are
full-range Y, 0 to 255, scored against the same 16 to 235, which costs every
method the same 1.3 dB or so.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from skimage.color import rgb2ycbcr

from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.files.images import read_image, write_image

FOLDER = Path("datasets/sample")
# Small images bear no blur of 31 pixels, which is the least in Lai's table.
LAI_KERNEL_SIZE = (13, 13)


@dataclass(frozen=True)
class _Item:
    """One blurry image: its name, and the crop of a halved or whole source that it shows."""

    name: str
    source: str
    halve: bool
    row: int
    column: int
    height: int
    width: int
    kernel_seed: int


_LEVIN = (
    _Item("im1_kernel5_img", "camera.png", True, 24, 56, 128, 128, 2),
    _Item("im2_kernel3_img", "astronaut.png", True, 4, 48, 128, 128, 7),
    _Item("im3_kernel5_img", "coffee.png", True, 30, 90, 128, 128, 2),
)
_LAI = (
    _Item("manmade_01_kernel_01", "coffee.png", True, 14, 56, 144, 176, 7),
    _Item("people_01_kernel_01", "astronaut.png", True, 0, 22, 144, 176, 7),
)
# Standard deviation of the noise, in grey values of 0..255: 0.3 %, as measured in the Levin images.
_NOISE = 0.8


def write_sample(folder=FOLDER):
    """Write both parts of the sample below ``folder``.

    Parameters
    ----------
    folder : str or Path
        Gets the folders ``levin`` and ``lai``; files of the same name are
        replaced.

    Returns
    -------
    list of Path
        The blurry images.

    Raises
    ------
    UserError
        If the folder cannot be written.

    Notes
    -----
    The pixels are the same on every machine: sharp image and kernel are
    rounded to 8 bits first and the noise is a sum of uniform numbers.
    """
    blurry = []
    for benchmark, items in ((LEVIN, _LEVIN), (LAI, _LAI)):
        root = Path(folder) / benchmark.name
        inside = Path("datasets") / benchmark.name
        for item in items:
            h, w = benchmark.kernel_size(item.name) if benchmark is LEVIN else LAI_KERNEL_SIZE
            kernel = camera_shake_kernel((h, w), rng=item.kernel_seed)
            kernel = np.rint(kernel / kernel.max() * 255)
            sharp = _crop(item, h, w, colour=benchmark is LAI)
            grey = rgb2ycbcr(sharp)[..., 0] if sharp.ndim == 3 else sharp.astype(np.float64)
            y = _blur(grey, kernel) + _NOISE * _noise((item.height, item.width), item.name)
            path = root / benchmark.blurry.relative_to(inside) / f"{item.name}.png"
            truth = root / benchmark.ground_truth.relative_to(inside)
            write_image(truth / f"{benchmark.truth_name(item.name)}.png", _centre(sharp, h, w) / 255)
            if benchmark is LEVIN:
                write_image(truth / f"{benchmark.kernel_name(item.name)}.png", kernel / 255)
            write_image(path, y / 255)
            blurry.append(path)
    return blurry


def _crop(item, h, w, *, colour):
    """Sharp image with the rim of the valid correlation, uint8, (H+h-1, W+w-1) or (.., .., 3)."""
    source = np.rint(read_image(Path(skimage.data.__file__).parent / item.source) * 255).astype(np.int64)
    if source.ndim == 3 and not colour:
        source = (299 * source[..., 0] + 587 * source[..., 1] + 114 * source[..., 2] + 500) // 1000
    if item.halve:
        source = source[: source.shape[0] // 2 * 2, : source.shape[1] // 2 * 2]
        source = (source[::2, ::2] + source[1::2, ::2] + source[::2, 1::2] + source[1::2, 1::2] + 2) // 4
    rows = slice(item.row, item.row + item.height + h - 1)
    columns = slice(item.column, item.column + item.width + w - 1)
    crop = source[rows, columns].astype(np.uint8)
    assert crop.shape[:2] == (item.height + h - 1, item.width + w - 1)
    return crop


def _centre(x, h, w):
    return x[(h - 1) // 2 : x.shape[0] - (h - 1) // 2, (w - 1) // 2 : x.shape[1] - (w - 1) // 2]


def _blur(x, k):
    """Valid correlation of ``x`` with ``k`` / sum; plain sums, because the order of an FFT's differs by machine."""
    h, w = k.shape
    y = np.zeros((x.shape[0] - h + 1, x.shape[1] - w + 1))
    for r, c in zip(*np.nonzero(k), strict=True):
        y += k[r, c] * x[r : r + y.shape[0], c : c + y.shape[1]]
    return y / k.sum()


def _noise(shape, name):
    """Nearly normal noise of standard deviation 1: the sum of 12 uniform numbers, exact on every machine."""
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(name.encode(), "little")))
    return rng.random((12, *shape)).sum(0) - 6


def add_arguments(parser):
    """Add the options of ``python -m selfdeblur sample`` to an argparse parser."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=FOLDER,
        metavar="FOLDER",
        help="where the folders levin and lai of the sample are put (default: %(default)s)",
    )


def main(args):
    """Run ``python -m selfdeblur sample``: write the sample and print where it lies; return the exit status."""
    blurry = write_sample(args.folder)
    for path in blurry:
        print(path)
    return 0
