"""The embedded sample and its camera-shake kernels."""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2ycbcr

from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.data import sample
from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.errors import UserError
from selfdeblur.files.images import find_images, read_image

# SHA-256 of the decoded pixels: the compressed bytes may differ between versions of zlib.
PIXELS = {
    "lai/ground_truth/manmade_01.png": "9e60ca0f20ad7d4a",
    "lai/ground_truth/people_01.png": "f4243b7ef972a27e",
    "lai/uniform_ycbcr/manmade_01_kernel_01.png": "d9f1c9e98aee324d",
    "lai/uniform_ycbcr/people_01_kernel_01.png": "38d6dfd410257ca7",
    "levin/gt/im1.png": "457cf641986d0d3c",
    "levin/gt/im2.png": "a67fdc1ac9eca5f0",
    "levin/gt/im3.png": "94f5b60cfa6ef9f0",
    "levin/gt/kernel3.png": "3f46a003b63f3a48",
    "levin/gt/kernel5.png": "3abb0367d06f7789",
    "levin/im1_kernel5_img.png": "b7d592d8e003a6fd",
    "levin/im2_kernel3_img.png": "562d989456f83731",
    "levin/im3_kernel5_img.png": "39922051bcfa78b9",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    sample.write_sample(folder)
    return folder


def bytes_of(path):
    return np.rint(read_image(path) * 255)


def residual(y, x, k):
    """Root mean square of y - (x correlated with k), x and y at the same position, away from the border."""
    h, w = k.shape
    k = k / k.sum()
    rows, columns = y.shape[0] - h + 1, y.shape[1] - w + 1
    blurred = sum(k[r, c] * x[r : r + rows, c : c + columns] for r in range(h) for c in range(w))
    inside = y[(h - 1) // 2 : (h - 1) // 2 + rows, (w - 1) // 2 : (w - 1) // 2 + columns]
    return np.sqrt(np.mean((blurred - inside) ** 2))


def test_layout_is_that_of_the_benchmarks(folder):
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        "lai/ground_truth/manmade_01.png",
        "lai/ground_truth/people_01.png",
        "lai/uniform_ycbcr/manmade_01_kernel_01.png",
        "lai/uniform_ycbcr/people_01_kernel_01.png",
        "levin/gt/im1.png",
        "levin/gt/im2.png",
        "levin/gt/im3.png",
        "levin/gt/kernel3.png",
        "levin/gt/kernel5.png",
        "levin/im1_kernel5_img.png",
        "levin/im2_kernel3_img.png",
        "levin/im3_kernel5_img.png",
    ]


@pytest.mark.parametrize("benchmark", [LEVIN, LAI], ids=lambda b: b.name)
def test_names_and_sizes_follow_the_tables(folder, benchmark):
    root = folder / benchmark.name
    blurry = root if benchmark is LEVIN else root / "uniform_ycbcr"
    truth = root / ("gt" if benchmark is LEVIN else "ground_truth")
    for path in find_images(blurry):
        size = benchmark.kernel_size(path.stem) if benchmark is LEVIN else sample.LAI_KERNEL_SIZE
        y, x = read_image(path), read_image(truth / f"{benchmark.truth_name(path.stem)}.png")
        assert y.ndim == 2
        assert y.shape == x.shape[:2]
        assert x.ndim == (2 if benchmark is LEVIN else 3)
        assert min(y.shape) > 2 * max(size)
        if benchmark is LEVIN:
            assert read_image(truth / f"{benchmark.kernel_name(path.stem)}.png").shape == size


@pytest.mark.parametrize("name", ["im1_kernel5_img", "im2_kernel3_img", "im3_kernel5_img"])
def test_blurry_is_the_correlation_of_truth_and_kernel(folder, name):
    y = bytes_of(folder / "levin" / f"{name}.png")
    x = bytes_of(folder / "levin/gt" / f"{LEVIN.truth_name(name)}.png")
    k = bytes_of(folder / "levin/gt" / f"{LEVIN.kernel_name(name)}.png")
    rounding = np.sqrt(1 / 12)
    assert 0.7 < residual(y, x, k) < 0.9 + rounding
    assert residual(y, x, k[::-1, ::-1]) > 5


@pytest.mark.parametrize("name", ["manmade_01_kernel_01", "people_01_kernel_01"])
def test_lai_grey_is_matlab_luma(folder, name):
    y = bytes_of(folder / "lai/uniform_ycbcr" / f"{name}.png")
    truth = bytes_of(folder / "lai/ground_truth" / f"{LAI.truth_name(name)}.png").astype(np.uint8)
    k = np.rint(255 * (k := camera_shake_kernel(13, rng=7)) / k.max())
    assert 0.7 < residual(y, rgb2ycbcr(truth)[..., 0], k) < 1.2
    assert residual(y, truth @ np.array([0.299, 0.587, 0.114]), k) > 4


def test_pixels_are_the_same_everywhere(folder):
    found = {}
    for path in sorted(folder.rglob("*.png")):
        pixels = bytes_of(path).astype(np.uint8)
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    assert found == PIXELS


def test_bytes_are_the_same_again(folder, tmp_path):
    sample.write_sample(tmp_path)
    for path in folder.rglob("*.png"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()


@pytest.mark.processes
def test_needs_no_network_and_no_pooch(tmp_path):
    code = (
        "import socket, sys\n"
        "sys.modules['pooch'] = None\n"
        "def refuse(*a, **k): raise AssertionError('network used')\n"
        "socket.socket.connect = refuse\n"
        "from selfdeblur.data.sample import write_sample\n"
        f"write_sample({str(tmp_path)!r})\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "HOME": str(tmp_path / "home")}, capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()
    assert len(list(tmp_path.rglob("*.png"))) == 12


def test_command_writes_and_names_the_files(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    assert parser.parse_args([]).folder == Path("datasets/sample")
    assert sample.main(parser.parse_args(["--folder", str(tmp_path / "new")])) == 0
    lines = capsys.readouterr().out.split("\n")
    assert str(tmp_path / "new/levin/im1_kernel5_img.png") in lines


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "levin").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        sample.write_sample(tmp_path)


@pytest.mark.parametrize("size", [3, 11, 17, 31, 75, (9, 21), (21, 9)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_camera_shake_kernel(size, seed):
    k = camera_shake_kernel(size, rng=seed)
    h, w = (size, size) if isinstance(size, int) else size
    assert k.shape == (h, w)
    assert k.dtype == np.float64
    assert k.min() >= 0
    assert k.sum() == pytest.approx(1, abs=1e-12)
    rows, columns = np.nonzero(k.sum(1))[0], np.nonzero(k.sum(0))[0]
    spans = (rows[-1] - rows[0] + 1) / h, (columns[-1] - columns[0] + 1) / w
    if min(h, w) > 3:
        assert max(spans) > 0.75
        assert abs(rows[0] + rows[-1] - (h - 1)) <= 1
        assert abs(columns[0] + columns[-1] - (w - 1)) <= 1
        assert np.count_nonzero(k) >= max(h, w) - 3
        assert k.max() < 0.5


def test_camera_shake_kernel_depends_on_the_generator_alone():
    np.random.seed(1)
    a = camera_shake_kernel(15, rng=3)
    np.random.seed(2)
    b = camera_shake_kernel(15, rng=np.random.Generator(np.random.PCG64(3)))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, camera_shake_kernel(15, rng=4))


@pytest.mark.parametrize("size", [0, 1, 2, 10, -3, (11, 12)])
def test_camera_shake_kernel_refuses_sizes(size):
    with pytest.raises(ValueError, match="odd and at least 3"):
        camera_shake_kernel(size, rng=0)
