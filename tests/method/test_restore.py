"""One picture of any size and kind: borders, flat pictures, colours, tiles, stops.

The search for the kernel is tested elsewhere; most tests here put the true
kernel in its place and look at what goes on around it.
"""

import itertools

import numpy as np
import pytest
import torch
from skimage import data

from selfdeblur import UserError, restore, tiles
from selfdeblur.classical.kernels import camera_shake_kernel, disk
from selfdeblur.classical.size import MOST_APART, OfAnySize
from selfdeblur.colour import luminance
from selfdeblur.forward import blur
from selfdeblur.restore import inner_part
from selfdeblur.restore import restore as deblurred
from selfdeblur.tiles import deconvolve_tiled, free_memory, overlap, tile_side

KERNEL = camera_shake_kernel(9, rng=3).astype(np.float32)


def psnr(a, b, cut=8):
    a, b = (v[cut:-cut, cut:-cut].astype(np.float64) for v in (a, b))
    return -10 * np.log10(np.mean((np.clip(a, 0, 1) - b) ** 2))


def blurred(sharp, kernel=KERNEL):
    """Valid blur of (H, W[, 3]) and the sharp picture that lies over it."""
    planes = np.atleast_3d(sharp).transpose(2, 0, 1)
    y = blur(torch.from_numpy(np.ascontiguousarray(planes))[:, None], torch.from_numpy(kernel)[None, None])
    h, w = (n // 2 for n in kernel.shape)
    y = y[:, 0].numpy().transpose(1, 2, 0).clip(0, 1)
    return (y if sharp.ndim == 3 else y[:, :, 0]), sharp[h:-h, w:-w]


@pytest.fixture(scope="module")
def colour():
    sharp = (data.astronaut()[60:140, 180:276] / 255).astype(np.float32)
    return blurred(sharp)


@pytest.fixture
def known(monkeypatch):
    """The search finds the true kernel; returns what it was asked for."""
    asked = []

    def estimate(y, size, progress, **_):
        asked.append((tuple(y.shape), size))
        progress(1, 1, torch.from_numpy(KERNEL))
        return torch.from_numpy(KERNEL)

    monkeypatch.setattr(restore, "estimate_kernel_within", estimate)
    monkeypatch.setattr(
        restore, "estimate_kernel_of_any_size", lambda y, progress: OfAnySize(estimate(y, None, progress), None)
    )
    return asked


def test_a_photograph_becomes_better(known, colour):
    y, sharp = colour
    result = deblurred(y, preset="quick")
    assert result.image.shape == y.shape
    assert result.image.dtype == np.float32
    assert psnr(result.image, sharp) > psnr(y, sharp) + 5
    assert result.improved
    assert not result.unchanged
    assert np.array_equal(result.kernel, KERNEL)
    assert result.quality["reasons"] == []
    assert known == [(y.shape[:2], None)]


def test_colours_sharpened_are_nearer_to_the_truth_than_colours_kept(known, colour):
    y, sharp = colour
    each, kept = (deblurred(y, preset="quick", colour=name).image for name in ("rgb", "luminance"))
    assert psnr(each, sharp) > psnr(kept, sharp) + 0.3
    assert np.abs(luminance(each.clip(0, 1)) - luminance(kept)).mean() < 0.01
    assert np.abs(each.mean((0, 1)) - y.mean((0, 1))).max() < 0.005, "no colour shift"


def test_grey_stored_as_rgb_stays_grey(known, colour):
    y = luminance(colour[0])
    result = deblurred(np.dstack([y] * 3), preset="quick")
    assert (result.image == result.image[:, :, :1]).all()
    assert np.allclose(result.image[:, :, 0], deblurred(y, preset="quick").image, atol=2e-3)


@pytest.mark.parametrize("shape", [(64, 80), (64, 80, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_a_flat_picture_comes_back_bit_for_bit_at_once(known, shape, dtype):
    array = np.full(shape, 77 if dtype == np.uint8 else 0.3, dtype)
    result = deblurred(array)
    assert result.unchanged
    assert not result.improved
    assert np.array_equal(result.image, array if dtype == np.float64 else array / np.float32(255))
    assert "flat" in result.quality["reasons"][0]
    assert result.seconds < 1
    assert not known


def test_a_kernel_that_the_searches_for_its_size_do_not_find_is_doubted(monkeypatch, colour):
    for apart, doubted in ((0.9 * MOST_APART, False), (1.1 * MOST_APART, True)):
        found = OfAnySize(torch.from_numpy(KERNEL), apart)
        monkeypatch.setattr(restore, "estimate_kernel_of_any_size", lambda *_, found=found: found)
        result = deblurred(colour[0], preset="quick")
        assert result.quality["apart"] == pytest.approx(apart)
        assert result.improved != doubted
        assert doubted == any("name its size" in reason for reason in result.quality["reasons"])


@pytest.mark.parametrize("size", [None, 9])
def test_a_simple_kernel_that_explains_the_picture_needs_no_networks(monkeypatch, size):
    kernel = torch.from_numpy(disk(5.0, (9, 9)).astype(np.float32))
    monkeypatch.setattr(restore, "estimate_kernel_of_any_size", lambda *_: OfAnySize(kernel, 0.0))
    monkeypatch.setattr(restore, "estimate_kernel", lambda *_, **__: kernel)
    monkeypatch.setattr(restore, "start", lambda *_, **__: pytest.fail("networks were fitted"))
    y, sharp = blurred((data.camera()[100:250, 150:320] / 255).astype(np.float32), kernel.numpy())
    result = deblurred(y, kernel_size=size, preset="fast")
    assert result.improved
    assert "no networks" in result.notes[0]
    assert psnr(result.image, sharp) > psnr(y, sharp) + 3


def test_a_kernel_that_is_a_point_hands_the_picture_back(monkeypatch, colour):
    point = torch.zeros(9, 9)
    point[4, 4] = 1
    monkeypatch.setattr(restore, "estimate_kernel_of_any_size", lambda *_: OfAnySize(point, None))
    result = deblurred(colour[0], preset="quick")
    assert result.unchanged
    assert not result.improved
    assert "sharp already" in result.quality["reasons"][0]
    assert np.array_equal(result.image, colour[0])


def test_a_sharp_picture_is_handed_back_at_once_unless_a_size_is_named(known):
    sharp = data.camera()[100:250, 150:320]
    result = deblurred(sharp, preset="quick")
    assert result.unchanged
    assert not result.improved
    assert "sharp already" in result.quality["reasons"][0]
    assert np.array_equal(np.rint(result.image * 255), sharp)
    assert not known
    assert not deblurred(sharp, kernel_size=9, preset="quick").unchanged
    assert known


# Borders


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("bars", [(20, 30, 0, 0), (0, 0, 17, 11), (12, 10, 14, 9), (25, 0, 0, 0)])
def test_bars_are_found(colour, value, bars):
    y = luminance(colour[0])
    above, below, left, right = bars
    barred = np.pad(y, ((above, below), (left, right)), constant_values=value)
    assert inner_part(barred) == (slice(above, above + y.shape[0]), slice(left, left + y.shape[1]))


def test_bars_stay_and_the_picture_is_as_good_as_without_them(known, colour):
    y, sharp = colour
    value, bars = 0.0, (20, 30, 0, 11)
    above, below, left, right = bars
    barred = np.pad(y, ((above, below), (left, right), (0, 0)), constant_values=value)
    rows, columns = slice(above, above + y.shape[0]), slice(left, left + y.shape[1])
    result = deblurred(barred, preset="quick")
    assert "borders left as they are" in result.notes[0]
    outside = np.ones(barred.shape[:2], bool)
    outside[rows, columns] = False
    assert (result.image[outside] == np.float32(value)).all()
    assert psnr(result.image[rows, columns], sharp) == pytest.approx(
        psnr(deblurred(y, preset="quick").image, sharp), abs=0.01
    )


def test_bars_of_a_jpeg_are_found_with_what_its_blocks_mixed():
    import cv2

    y = luminance((data.astronaut()[60:140, 180:276] / 255).astype(np.float32))
    barred = (np.pad(y, ((21, 30), (0, 0))) * 255).astype(np.uint8)
    read = cv2.imdecode(cv2.imencode(".jpg", barred, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0) / np.float32(255)
    rows, columns = inner_part(read)
    assert 21 <= rows.start <= 29
    assert 101 - 8 <= rows.stop <= 101
    assert columns == slice(0, 96)


def test_black_borders_of_a_scan_are_left_out():
    rng = np.random.default_rng(0)
    y = luminance((data.astronaut()[60:140, 180:276] / 255).astype(np.float32)) * 0.7 + 0.2
    scan = np.pad(y, ((15, 12), (9, 14))) + 0.03 * rng.random((y.shape[0] + 27, y.shape[1] + 23), np.float32)
    rows, columns = inner_part(scan)
    for found, wanted in ((rows, (15, 15 + y.shape[0])), (columns, (9, 9 + y.shape[1]))):
        assert wanted[0] <= found.start <= wanted[0] + 8
        assert wanted[1] - 8 <= found.stop <= wanted[1]


def test_what_is_no_border_is_left_in():
    whole = slice(0, 512), slice(0, 512)
    assert inner_part((data.camera() / 255).astype(np.float32)) == whole
    night = np.zeros((120, 130), np.float32)
    night[60:62, 70:72] = 1
    assert inner_part(night) == (slice(0, 120), slice(0, 130)), "next to nothing would be left"
    rng = np.random.default_rng(1)
    dark = (0.06 * rng.random((200, 200))).astype(np.float32)
    dark[90:110] += 0.5
    assert inner_part(dark) == (slice(0, 200), slice(0, 200)), "a night scene is dark at its rim"


def test_the_transparent_rim_is_left_as_it_is(known, colour):
    y, sharp = colour
    framed = np.pad(y, ((10, 10), (20, 0), (0, 0)), constant_values=0.2)
    framed[:10] += 0.1 * np.random.default_rng(0).random(framed[:10].shape, np.float32)
    opaque = np.zeros(framed.shape[:2], bool)
    opaque[10:-10, 20:] = True
    result = deblurred(framed, preset="quick", opaque=opaque)
    assert np.array_equal(result.image[:10], framed[:10])
    assert psnr(result.image[10:-10, 20:], sharp) > psnr(y, sharp) + 5


# Large pictures


def large(height, width):
    sharp = np.tile((data.camera() / 255).astype(np.float32), (2, 2))[: height + 8, : width + 8]
    return torch.from_numpy(blurred(sharp)[0])


def test_tiles_show_no_seams():
    y, kernel = large(330, 360), torch.from_numpy(KERNEL)
    y = y + 2e-3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    whole = deconvolve_tiled(y, kernel, weight=1e-4, side=1000)
    told = []
    tiled = deconvolve_tiled(y, kernel, weight=1e-4, side=150, progress=lambda *done: told.append(done))
    assert told[-1] == (12, 12)
    difference = (whole - tiled).abs()
    assert float(difference[5:-5, 5:-5].max()) < 0.02
    assert float(difference.mean()) < 5e-4
    # A seam is a step along a whole line: the mean step across each row and column is as in the untiled picture.
    for axis in (0, 1):
        steps = [(image.diff(dim=axis)).mean(1 - axis) for image in (whole, tiled)]
        assert float((steps[0] - steps[1]).abs().max()) < 1e-3


def test_tiles_cover_every_picture_and_fade_to_one():
    for length in (50, 199, 200, 201, 333, 1000, 1001):
        spans = tiles._spans(length, 200, 50)
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(later[0] <= sooner[1] - 50 for sooner, later in itertools.pairwise(spans))
        total = torch.zeros(length)
        for first, last in spans:
            weights = tiles._fade(first, last, length, 50)
            assert len(weights) == last - first
            total[first:last] += weights
        assert float(total.min()) > 0


def test_the_memory_that_is_free_says_how_large_tiles_are(monkeypatch):
    assert free_memory() > 1 << 20
    sides = [tile_side((61, 61), free) for free in (1 << 28, 1 << 30, 1 << 40)]
    assert sides == sorted(sides)
    assert sides[0] >= 2 * overlap((61, 61))
    assert sides[0] ** 2 * 4 * tiles.NUMBERS <= 1 << 27
    with pytest.raises(UserError, match="memory does not suffice"):
        tile_side((61, 61), 1 << 20)


def test_a_large_picture_takes_its_kernel_from_a_part(known, monkeypatch):
    monkeypatch.setattr(restore, "WHOLE", 50_000)
    monkeypatch.setattr("selfdeblur.classical.judge.JUDGED_SIDE", 100)
    y = large(240, 250).numpy()
    told = []
    result = deblurred(y, kernel_size=9, preset="quick", side=150, callback=told.append)
    assert known == [((100, 100), (9, 9))]
    assert any("tiles" in note for note in result.notes)
    assert result.image.shape == y.shape
    assert {step["stage"] for step in told} == {"kernel", "deconvolution"}
    assert result.improved


def test_a_large_picture_is_fitted_in_a_part(monkeypatch):
    thin_fast(monkeypatch)
    monkeypatch.setattr(restore, "WHOLE", 50_000)
    monkeypatch.setattr("selfdeblur.classical.judge.JUDGED_SIDE", 96)
    result = deblurred(large(230, 240).numpy(), kernel_size=9, preset="fast", device="cpu")
    assert result.image.shape == (230, 240)


# Stops


def thin_fast(monkeypatch, steps=4):
    """Preset fast with so few steps that it is only good for tests."""
    from selfdeblur.settings import PRESETS

    text, changes = PRESETS["fast"]
    monkeypatch.setitem(PRESETS, "fast", (text, {**changes, "num_iter": steps, "channels": (4, 4)}))
    found = torch.from_numpy(KERNEL)
    monkeypatch.setattr("selfdeblur.stages.estimate_kernel", lambda *_, **__: found.clone())


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_no_network_is_fitted_to_much_noise(known, monkeypatch, colour, preset):
    def fitted(*_, **__):
        raise AssertionError("a network was fitted")

    monkeypatch.setattr(restore, "start", fitted)
    y = colour[0] + 0.05 * np.random.default_rng(0).standard_normal(colour[0].shape)
    result = deblurred(y.clip(0, 1).astype(np.float32), preset=preset)
    assert known
    assert any("too much noise" in note for note in result.notes)
    assert np.allclose(result.kernel, KERNEL)


def test_without_a_size_the_networks_check_what_was_found_with_it(known, monkeypatch, colour):
    thin_fast(monkeypatch)

    def searched(*_, **__):
        raise AssertionError("the kernel was searched for twice")

    monkeypatch.setattr("selfdeblur.stages.estimate_kernel", searched)
    y = luminance(colour[0])
    result = deblurred(y, preset="fast", device="cpu")
    assert known == [(y.shape, None)]
    assert result.kernel_size == KERNEL.shape
    # So few steps change little, so the check confirms it.
    assert np.allclose(result.kernel, KERNEL)
    assert result.quality["vote"] == "the check confirms the estimate"
    stopped = deblurred(y, preset="fast", device="cpu", callback=lambda told: told["loss"] is None)
    assert stopped.stopped == "callback"
    assert np.allclose(stopped.kernel, KERNEL)


def test_the_callback_sees_every_step_and_may_end_the_fit(monkeypatch, colour):
    thin_fast(monkeypatch)
    y = luminance(colour[0])
    told = []
    result = deblurred(y, kernel_size=9, preset="fast", device="cpu", callback=told.append)
    steps = [step for step in told if step["loss"] is not None]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert {step["stage"] for step in steps} == {"check"}
    assert all(step["steps"] == 4 and step["seconds"] > 0 and step["left"] >= 0 for step in steps)
    assert not result.stopped
    for end in (1, 3):

        def stop(told, end=end):
            return told["loss"] is not None and told["step"] == end

        stopped = deblurred(y, kernel_size=9, preset="fast", device="cpu", callback=stop)
        assert stopped.stopped == "callback"
        assert not stopped.improved
        assert any("ended early" in reason for reason in stopped.quality["reasons"])
        assert stopped.image.shape == y.shape


def test_what_is_fitted_can_be_looked_at_without_changing_it(monkeypatch, colour):
    thin_fast(monkeypatch)
    y = luminance(colour[0])
    seen = []

    def look(told):
        if told["loss"] is not None:
            seen.append(told["so_far"]())

    result = deblurred(y, kernel_size=9, preset="fast", device="cpu", callback=look)
    assert len(seen) == 4
    for image, kernel in seen:
        assert (image.shape, kernel.shape) == (y.shape, (9, 9))
        assert image.min() >= 0
        assert image.max() <= 1
        assert kernel.sum() == pytest.approx(1, abs=1e-4)
    assert not np.array_equal(seen[0][0], seen[-1][0])
    unseen = deblurred(y, kernel_size=9, preset="fast", device="cpu")
    assert np.array_equal(result.image, unseen.image)


def test_time_limit_and_interrupt_hand_back_the_best_so_far(monkeypatch, colour):
    thin_fast(monkeypatch)
    y = luminance(colour[0])
    result = deblurred(y, kernel_size=9, preset="fast", device="cpu", time_limit=1e-6)
    assert result.stopped == "time limit"
    assert np.isfinite(result.image).all()

    def interrupt(told):
        if told["step"] == 3 and told["loss"] is not None:
            raise KeyboardInterrupt

    result = deblurred(y, kernel_size=9, preset="fast", device="cpu", callback=interrupt)
    assert result.stopped == "interrupted"
    assert np.isfinite(result.image).all()

    def second_scale(told):
        if told["stage"] == "kernel" and told["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.undo()
    result = deblurred(y, kernel_size=9, preset="quick", device="cpu", callback=second_scale)
    assert result.stopped == "interrupted"
    result = deblurred(y, kernel_size=9, preset="quick", device="cpu", time_limit=1e-6)
    assert result.stopped == "time limit"
    assert result.kernel.shape == (9, 9)
    assert result.kernel.sum() == pytest.approx(1)
    stages = []

    def at_once(told):
        stages.append((told["stage"], told["step"]))
        return True

    result = deblurred(y, preset="quick", device="cpu", callback=at_once)
    assert result.stopped == "callback"
    assert [stage for stage in stages if stage[0] != "deconvolution"] == [("size", 1), ("kernel", 1)]

    def before_all(told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deblurred(y, kernel_size=9, preset="quick", device="cpu", callback=before_all)


def test_a_known_kernel_is_used(colour):
    y, sharp = (luminance(image) for image in colour)
    result = deblurred(y, kernel=KERNEL * 7)
    assert psnr(result.image, sharp) > psnr(y, sharp) + 5
    assert result.kernel_size == (9, 9)
    with pytest.raises(UserError, match="differs"):
        deblurred(y, kernel=KERNEL, kernel_size=5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"preset": "slow"}, "preset"),
        ({"colour": "cmyk"}, "colour"),
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 201}, "smaller than the kernel"),
        ({"device": "tpu9"}, "device"),
    ],
)
def test_mistakes_are_one_line(colour, options, reason):
    with pytest.raises(UserError, match=reason) as caught:
        deblurred(colour[0], **options)
    assert "\n" not in str(caught.value)


def test_a_tiny_picture_is_refused_in_one_line():
    with pytest.raises(UserError, match="too small"):
        deblurred(np.random.default_rng(0).random((12, 15)), preset="quick")
