"""The two benchmarks: where their files lie, what they are called, their kernel sizes."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """Names and sizes of one benchmark.

    Folders are relative to the folder that the scripts are run in. ``stem`` is
    the file name of a blurry image without its suffix; its groups ``truth`` and
    ``kernel`` name the sharp image and the kernel.
    """

    name: str
    blurry: Path
    ground_truth: Path
    true_kernel: Path | None
    results: Path
    stem: re.Pattern
    kernel_sizes: dict[str, int]
    mse_steps: int
    images: int

    def kernel_size(self, name):
        """Kernel size (h, w) that the published runs hand to the method for image ``name``; None if there is none."""
        match = self.stem.fullmatch(name)
        size = self.kernel_sizes.get(match["kernel"]) if match else None
        return size and (size, size)

    def truth_name(self, name):
        """Name of the sharp image that belongs to blurry image ``name``, or None."""
        match = self.stem.fullmatch(name)
        return match["truth"] if match else None

    def kernel_name(self, name):
        """Name of the kernel that blurry image ``name`` was blurred with, or None."""
        match = self.stem.fullmatch(name)
        return match["kernel"] if match else None


LEVIN = Benchmark(
    name="levin",
    blurry=Path("datasets/levin"),
    ground_truth=Path("datasets/levin/gt"),
    true_kernel=Path("datasets/levin/groundk"),
    results=Path("results/levin"),
    stem=re.compile(r"(?P<truth>im\d+)_(?P<kernel>kernel\d+)_img"),
    kernel_sizes={
        "kernel1": 17,
        "kernel2": 15,
        "kernel3": 13,
        "kernel4": 27,
        "kernel5": 11,
        "kernel6": 19,
        "kernel7": 21,
        "kernel8": 21,
    },
    mse_steps=1000,
    images=32,
)

LAI = Benchmark(
    name="lai",
    blurry=Path("datasets/lai/uniform_ycbcr"),
    ground_truth=Path("datasets/lai/ground_truth"),
    true_kernel=None,
    results=Path("results/lai/uniform"),
    stem=re.compile(r"(?P<truth>(?:manmade|natural|people|saturated|text)_\d\d)_(?P<kernel>kernel_\d\d)"),
    kernel_sizes={"kernel_01": 31, "kernel_02": 51, "kernel_03": 55, "kernel_04": 75},
    mse_steps=500,
    images=100,
)
