"""The scores against the published scripts, against a plain search, and against values known beforehand."""

import csv

import numpy as np
import pytest
from common import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from selfdeblur.files.images import read_image
from selfdeblur.scores import metrics


def plain_search(image, truth, maxshift, border=metrics.BORDER):
    """Sum of squared differences at every quarter-pixel shift, one by one on the pixels of 0..255."""
    image, truth = image * 255, truth * 255
    h, w = truth.shape
    inner = truth[border : h - border, border : w - border]
    image = np.pad(image, ((0, 1), (0, 1)), mode="edge")
    shifts = np.arange(-maxshift, maxshift + 0.125, 0.25)
    sums = np.empty((shifts.size, shifts.size))
    for i, dy in enumerate(shifts):
        for j, dx in enumerate(shifts):
            y, x = int(np.floor(dy)), int(np.floor(dx))
            fy, fx = dy - y, dx - x
            a = image[border + y : h - border + y + 1, border + x : w - border + x + 1]
            top = (1 - fx) * a[:-1, :-1] + fx * a[:-1, 1:]
            low = (1 - fx) * a[1:, :-1] + fx * a[1:, 1:]
            sums[i, j] = (((1 - fy) * top + fy * low - inner) ** 2).sum()
    return sums, shifts


def smooth(rng, shape):
    """A smooth random image with values of 8 bits, in 0..1."""
    coarse = rng.uniform(size=(shape[0] // 6 + 2, shape[1] // 6 + 2))
    image = np.kron(coarse, np.ones((6, 6)))[: shape[0], : shape[1]]
    image = (image + np.roll(image, 2, 0) + np.roll(image, 3, 1)) / 3
    return np.rint(image * 255) / 255


def assert_same_minimum(image, truth, maxshift):
    sums, shifts = plain_search(image, truth, maxshift)
    i, j = np.unravel_index(np.argmin(sums), sums.shape)
    found = metrics.align(image, truth, maxshift=maxshift)
    assert (found.shift_y, found.shift_x) == (shifts[i], shifts[j])
    assert np.sum((found.error * 255) ** 2) == pytest.approx(sums[i, j], rel=1e-10, abs=1e-9)
    assert found.on_rim == (maxshift > 0 and (i in (0, shifts.size - 1) or j in (0, shifts.size - 1)))
    return found


def test_agrees_with_the_published_scripts():
    table, data = SHARED / "calibration.csv", SHARED / "datasets"
    if not table.is_file() or not data.is_dir():
        pytest.skip(f"NOT CALIBRATED on the benchmarks: {table} or {data} is absent (set SELFDEBLUR_SHARED)")
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 35
    for row in rows:
        image = read_image(data / row["dataset"] / row["deblurred"])
        truth = read_image(data / row["dataset"] / row["ground_truth"])
        if truth.ndim == 3:
            truth = metrics.luminance(truth)
        found = metrics.align(image, truth, maxshift=int(row["maxshift"]))
        assert metrics.psnr(found.image, found.truth) == pytest.approx(float(row["psnr"]), abs=1e-6), row
        assert metrics.ssim(found.image, found.truth) == pytest.approx(float(row["ssim"]), abs=1e-6), row


@given(seed=st.integers(0, 2**32 - 1), maxshift=st.integers(0, 6), moved=st.tuples(*[st.integers(-8, 8)] * 2))
@settings(max_examples=25, deadline=None)
def test_finds_the_minimum_of_the_plain_search(seed, maxshift, moved):
    rng = np.random.default_rng(seed)
    truth = smooth(rng, (48, 53))
    image = np.roll(truth, moved, (0, 1)) * rng.uniform(0.5, 1) + 0.1 * rng.uniform(size=truth.shape)
    assert_same_minimum(image, truth, maxshift)
    assert_same_minimum(np.rint(image * 255) / 255, truth, maxshift)


def test_finds_the_minimum_at_the_widest_search():
    rng = np.random.default_rng(3)
    truth = smooth(rng, (60, 47))
    found = assert_same_minimum(np.roll(truth, (-9, 7), (0, 1)), truth, 15)
    assert (found.shift_y, found.shift_x) == (-9, 7)


@pytest.mark.parametrize("seed", range(6))
def test_of_equal_sums_the_first_by_rows_counts(seed):
    rng = np.random.default_rng(seed)
    truth = np.rint(rng.uniform(size=(45, 62)) * 255) / 255
    found = assert_same_minimum(np.full_like(truth, rng.integers(256) / 255), truth, 2)
    assert (found.shift_y, found.shift_x, found.on_rim) == (-2, -2, True)
    tile = np.tile(np.rint(rng.uniform(size=(2, 3)) * 255) / 255, (22, 15))[:44, :44]
    found = assert_same_minimum(tile, tile, 4)
    assert (found.shift_y, found.shift_x, found.on_rim) == (-4, -3, True)


def test_an_image_of_one_grey_takes_the_first_shift():
    truth = smooth(np.random.default_rng(8), (45, 62))
    for grey in (0, 0.123456, 1):  # the second is no value of 8 bits, so the shifts differ by rounding
        found = metrics.align(np.full_like(truth, grey), truth, maxshift=3)
        assert (found.shift_y, found.shift_x, found.on_rim) == (-3, -3, True)


def test_a_fraction_of_a_pixel_is_found_and_signed():
    truth = smooth(np.random.default_rng(5), (50, 50))
    quarter = 0.75 * truth[:, :-1] + 0.25 * truth[:, 1:]
    found = metrics.align(truth[:, :-1], quarter, maxshift=3)
    assert (found.shift_y, found.shift_x, found.on_rim) == (0, 0.25, False)
    np.testing.assert_allclose(found.error, 0, atol=1e-12)
    found = metrics.align(np.roll(truth, (2, -1), (0, 1)), truth, maxshift=2)
    assert (found.shift_y, found.shift_x, found.on_rim) == (2, -1, True)
    assert metrics.psnr(found.image, found.truth) == float("inf")


def test_rounding_cannot_hide_a_minimum_in_a_nearly_equal_image():
    rng = np.random.default_rng(6)
    truth = np.full((44, 44), 200 / 255)
    assert_same_minimum(truth + 1e-9 * rng.standard_normal(truth.shape), truth, 2)


@pytest.mark.parametrize(
    ("image", "truth", "maxshift", "message"),
    [
        ((40, 40), (40, 41), 5, "the sizes differ: 40 x 40 against 41 x 40"),
        ((30, 40), (30, 40), 5, "40 x 30 pixels are too few"),
        ((40, 40), (40, 40), 16, "maxshift is 16"),
        ((40, 40), (40, 40), -1, "maxshift is -1"),
        ((40, 40), (40, 40), 2.5, r"maxshift is 2\.5"),
        ((40, 40, 3), (40, 40), 5, "shape"),
    ],
)
def test_align_refuses(image, truth, maxshift, message):
    with pytest.raises(ValueError, match=message):
        metrics.align(np.zeros(image), np.zeros(truth), maxshift=maxshift)


def test_luminance_is_that_of_matlab():
    colours = np.random.default_rng(0).uniform(size=(5, 7, 3))
    np.testing.assert_allclose(metrics.luminance(colours) * 255, rgb2ycbcr(colours)[..., 0], atol=1e-10)
    np.testing.assert_allclose(metrics.luminance(np.array([[[0, 0, 0], [1, 1, 1.0]]])) * 255, [[16, 235]])
    with pytest.raises(ValueError, match="colour"):
        metrics.luminance(np.zeros((4, 4)))


def test_psnr_has_the_peak_one():
    assert metrics.psnr(np.full((3, 3), 0.6), np.full((3, 3), 0.5)) == pytest.approx(20)
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.psnr(np.zeros((3, 3)), np.zeros((3, 4)))


def test_plain_ssim_is_that_of_scikit_image():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(2, 70, 60))
    b = 0.7 * a + 0.3 * b
    expected = structural_similarity(
        a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11
    )
    assert metrics.ssim(a, b, downsample=False) == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim(a, b) == metrics.ssim(a, b, downsample=False)
    assert metrics.ssim(a, a) == pytest.approx(1)
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(a[:10], b[:10])


@pytest.mark.parametrize(("side", "factor"), [(383, 1), (384, 2), (639, 2), (640, 3), (900, 4)])
def test_ssim_halves_round_up_and_windows_are_placed_as_in_matlab(side, factor):
    rng = np.random.default_rng(2)
    a, b = rng.uniform(size=(2, side, side + 5))

    def reduce(image):
        before = (factor + 1) // 2 - 1
        padded = np.pad(image, ((before, factor - 1 - before),) * 2, mode="symmetric")
        sums = sum(padded[i : i + image.shape[0], j : j + image.shape[1]] for i in range(factor) for j in range(factor))
        return (sums / factor**2)[::factor, ::factor]

    expected = metrics.ssim(reduce(a), reduce(b), downsample=False)
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-12)


def test_error_ratios_are_two_numbers():
    reference = np.diag([2.0, 1.0, 1.0])
    error = np.diag([3.0, 3.0, 3.0])
    assert metrics.error_ratio(error, reference) == pytest.approx(1.5)
    assert metrics.ssd_ratio(error, reference) == pytest.approx(27 / 6)
    assert metrics.ssd_ratio(error, 0 * error) == metrics.error_ratio(error, 0 * error) == float("inf")
    assert metrics.ssd_ratio(0 * error, 0 * error) == metrics.error_ratio(0 * error, 0 * error) == 1


def test_kernel_similarity_knows_shift_and_scale_but_not_a_turn():
    kernel = np.random.default_rng(7).uniform(size=(5, 7)) ** 4
    wide = np.pad(3 * kernel, ((6, 1), (0, 9)))
    assert metrics.kernel_similarity(wide, kernel) == pytest.approx(1)
    turned = metrics.correlation_kernel(kernel)
    assert metrics.kernel_similarity(turned, kernel) < 0.9
    assert metrics.kernel_similarity(metrics.correlation_kernel(turned), kernel) == pytest.approx(1)
    assert metrics.kernel_similarity(np.zeros((3, 3)), kernel) == 0
