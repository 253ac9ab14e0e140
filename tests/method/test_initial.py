"""The classical first guess: on images blurred with known kernels it finds the kernel, and the image for a kernel."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import blurred, similarity
from scipy.signal import correlate
from skimage import data

from selfdeblur.classical import deconvolution, deconvolve, estimate_kernel, judge, linear, search
from selfdeblur.classical.clipped import away_from_lights, lights
from selfdeblur.classical.deconvolution import refine_kernel
from selfdeblur.classical.few_gradients import FewGradients, background_level
from selfdeblur.classical.judge import free_energy, noise_level
from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.classical.size import estimate_kernel_of_any_size, estimate_size
from selfdeblur.forward import blur


def least_bad(y, kernels):
    """Index of the kernel (n, h, w) that explains y (H, W) best."""
    scores = judge.badness(judge.two_opinions(y), kernels)
    return scores.index(min(scores))


@pytest.mark.parametrize(
    ("picture", "size", "kernel_size", "seed", "noise", "bound"),
    [
        ("camera", 128, 11, 5, 0.0, 0.85),
        ("astronaut", 150, 15, 2, 1e-3, 0.85),
        ("camera", 200, 15, 2, 1e-3, 0.85),
    ],
)
@pytest.mark.search
def test_kernel_is_found(picture, size, kernel_size, seed, noise, bound):
    _, kernel, y = blurred(picture, size, kernel_size, seed, noise)
    found = estimate_kernel(y, (kernel_size, kernel_size))
    assert found.shape == kernel.shape
    assert found.min() >= 0
    assert abs(float(found.sum()) - 1) < 1e-5
    flat = np.ones_like(kernel)
    score = similarity(found.numpy(), kernel)
    assert score > bound
    assert score > similarity(flat, kernel) + 0.1
    assert score > similarity(found.numpy()[::-1, ::-1], kernel) + 0.05  # that of the forward model


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.search
def test_kernel_of_a_page_of_text(inverted):
    rng, kernel = np.random.default_rng(6), camera_shake_kernel(25, rng=6)
    page = np.full((324, 324), 240, np.uint8)
    for row in range(24, 344, 28):
        line = "".join(rng.choice(list("abcdefghiklmnoprstuvw    "), 60))
        cv2.putText(page, line, (6, row), cv2.FONT_HERSHEY_DUPLEX, 0.7, 20, 1, cv2.LINE_AA)
    page = (255 - page if inverted else page) / 255
    y = torch.from_numpy(correlate(page, kernel, mode="valid", method="fft")).float()

    def score(near_background):
        variants = [{"gradient_weight": 1e-2, "near_background": near_background}]
        found = search.coarse_to_fine_kernels(y, (25, 25), variants, starts=1, kept=1)
        return similarity(found[0][1].numpy(), kernel)

    reached = score(near_background=True)
    assert reached > 0.85
    if not inverted:
        assert reached > score(near_background=False) + 0.1


@pytest.mark.search
def test_many_starts_and_a_finer_scale_find_a_large_kernel():
    _, kernel, y = blurred("camera", 255, 31, 17, 1e-3)
    found = [
        search.coarse_to_fine_kernels(
            y, (31, 31), [{"gradient_weight": 1e-2}], searches=[(coarsest, 0)], starts=starts, kept=1
        )[0][1]
        for coarsest, starts in ((9, 8), (9, 1), (5, 8))
    ]
    scores = [similarity(other.numpy(), kernel) for other in found]
    assert scores[0] > max(0.85, max(scores[1:]) + 0.1)
    assert least_bad(torch.from_numpy(y).float(), torch.stack(found)) == 0


@pytest.mark.search
def test_weak_contrast_does_not_hide_the_kernel():
    _, kernel, y = blurred("astronaut", 160, 15, 2)
    scores = []
    for contrast in (1, 0.1):
        faint = torch.from_numpy(0.4 + contrast * (y - 0.4)).float()
        found = search.coarse_to_fine_kernels(faint, (15, 15), [{}], starts=4, kept=1)
        scores.append(similarity(found[0][1].numpy(), kernel))
    assert min(scores) > 0.8


def test_the_background_is_the_level_that_most_pixels_are_near():
    y = torch.full((20, 20), 0.9)
    y[:5] = 0.2
    assert background_level(y) == pytest.approx(0.9)
    assert background_level(1 - y) == pytest.approx(0.1)


def test_the_extent_of_a_kernel():
    kernel = torch.zeros(11, 21)
    kernel[3, 5] = kernel[3, 15] = 0.5
    assert judge.extent(kernel) == pytest.approx(5 / 21)
    assert judge.extent(kernel.T) == pytest.approx(5 / 21)
    kernel[3, 15], kernel[3, 5] = 1, 0
    assert judge.extent(kernel) == 0


def test_a_kernel_that_does_nothing_comes_last(monkeypatch):
    _, kernel, y = blurred("camera", 100, 11, 5)
    point = torch.zeros(11, 11)
    point[5, 5] = 1
    kernels = torch.stack([torch.from_numpy(kernel).float(), point])
    monkeypatch.setattr(search, "_sizes", lambda size, kernel_size: [(size, kernel_size)])
    monkeypatch.setattr(search, "_starts", lambda *args: kernels)
    monkeypatch.setattr(judge, "free_energy", lambda y, kernel, **effort: -kernel.amax((-2, -1)))
    found = search.coarse_to_fine_kernels(y, (11, 11), [{}], kept=3, steps=0)
    assert [judge.extent(k) < judge.POINT_EXTENT for _, k in found] == [False, True]
    assert least_bad(torch.from_numpy(y).float(), kernels) == 0


def test_kernels_of_a_setting_that_are_equal_but_for_a_shift_count_once():
    one, other = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0))
    one = torch.nn.functional.pad(one, (1, 1, 1, 1))
    other = torch.nn.functional.pad(other, (1, 1, 1, 1))
    found = [(0, 0, one), (1, 0, one.roll((1, -1), (0, 1))), (2, 1, one), (3, 0, other), (4, 1, other)]
    assert [number for _, number, _ in search._distinct(found, 3)] == [0, 1, 0]


def test_several_kernels_at_once_are_as_each_alone():
    _, kernel, y = blurred("camera", 60, 7, 5)
    y, kernels = torch.from_numpy(y), torch.stack([torch.from_numpy(kernel), torch.full((7, 7), 1 / 49).double()])
    sharp, y_gradients = FewGradients(y, (7, 7), 0.2), linear.gradient_pairs(y)
    model = linear.Correlation(y_gradients.shape, (7, 7), pairs=True)

    def fit(kernels, near_background):
        x = linear.gradient_pairs(sharp(kernels, 4e-3, near_background))
        return deconvolution.fit_kernel(model, y_gradients, x, kernels, weight=1.0, steps=20)

    for near_background in (False, True):
        alone = torch.stack([fit(kernel, near_background) for kernel in kernels])
        assert torch.allclose(fit(kernels, near_background), alone, atol=1e-10)
    energies = [float(free_energy(y, kernel)) for kernel in kernels]
    assert free_energy(y, kernels).tolist() == pytest.approx(energies, rel=1e-4)


def plain_free_energy(y, kernel, away, rounds, steps):
    """The bound that `free_energy` gives, by direct correlation in float64, one kernel at a time."""
    of_y = judge.noise_of_detail(y) ** 2
    noise = max(1e-5 + 2 * of_y, 4 * of_y)
    y, kernel = linear.gradients(y.double())[:, None], kernel.double()[None, None]
    counts = (away[:-1, :-1] & away[:-1, 1:] & away[1:, :-1]).double()

    def blurred_by(kernel, x):
        return counts * F.conv2d(x, kernel)

    def transposed(kernel, y):
        return F.conv_transpose2d(counts * y, kernel)

    precision = transposed(kernel**2, torch.ones_like(y)).clamp(min=1e-8) / noise
    (top, left), right_side = (n // 2 for n in kernel.shape[2:]), transposed(kernel, y) / noise
    x = torch.zeros_like(right_side)
    x[..., top : top + y.shape[2], left : left + y.shape[3]] = counts * y
    variance = (counts * y).square().mean().expand_as(x)
    for number in range(rounds):
        spread = 1 / (precision + 1 / variance)

        def matrix(v, variance=variance):
            return transposed(kernel, blurred_by(kernel, v)) / noise + v / variance

        residual = right_side - matrix(x)
        direction = scaled = spread * residual
        for _ in range(steps):
            product = matrix(direction)
            power = (residual * scaled).sum()
            length = power / (direction * product).sum()
            x, residual = x + length * direction, residual - length * product
            scaled = spread * residual
            direction = scaled + (residual * scaled).sum() / power * direction
        renewed = x**2 + spread
        variance = variance * (renewed / variance) ** 1.8 if number < rounds - 2 else renewed
    error = (counts * y - blurred_by(kernel, x)).square().sum() / noise
    return float(error + (x**2 / variance + (variance / spread).log()).sum())


@pytest.mark.parametrize("left_out", [False, True])
def test_the_free_energy_is_that_of_the_plain_form(left_out):
    _, kernel, y = blurred("camera", 60, 7, 5)
    y, kernels = torch.from_numpy(y).float(), torch.stack([torch.from_numpy(kernel), torch.full((7, 7), 1 / 49)])
    away = torch.ones(60, 60, dtype=torch.bool)
    away[20:25, 30:36] = not left_out
    found = free_energy(y, kernels, away=away if left_out else None)
    plain = [plain_free_energy(y, kernel, away, 14, 7) for kernel in kernels]
    assert found.tolist() == pytest.approx(plain, rel=1e-4)


def test_a_kernel_is_lifted_while_its_energy_falls(monkeypatch):
    kernel = torch.tensor([[0.1, 0.2, 0.7]])
    asked = []

    def energies(images, kernels):
        for energy in (3.0, 2.0, 2.5, 1.0):
            asked.append(energy)
            yield energy

    monkeypatch.setattr(search, "energies_in_turn", energies)
    lifted = search._lifted(torch.rand(8, 8), kernel, (1.0, 0.9, 0.8, 0.7))
    assert torch.equal(lifted, kernel**0.9 / (kernel**0.9).sum())
    assert asked == [3.0, 2.0, 2.5]


@pytest.mark.parametrize("size", [(5, 5), (3, 5), (1, 5), (1, 1), (9, 7)])
def test_starts(size):
    kernels = search._starts(size, 6, np.random.default_rng(0))
    assert kernels.shape == (6 if min(size) > 1 else 2, *size)
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(len(kernels)))
    assert torch.equal(kernels[:1], search._starts(size, 1, np.random.default_rng(0)))
    pair = kernels[0].max() == 0.5 or (min(size) == 1 and kernels[0].max() == 1)
    assert pair == (max(size) <= search.COARSEST_KERNEL)


@pytest.mark.parametrize(
    ("side", "coarser", "count"),
    [(60, 0, 12), (60, 4, 12), (60, 5, 24), (60, 6, 48), (60, 8, 48), (100, 6, 20), (200, 0, 5), (600, 0, 1)],
)
def test_more_starts_for_large_kernels_and_fewer_on_large_images(side, coarser, count, monkeypatch):
    counts = []

    def stop(size, count, rng):
        counts.append(count)
        raise StopIteration

    monkeypatch.setattr(search, "_starts", stop)
    monkeypatch.setattr(search, "_sizes", lambda size, kernel_size: [(size, kernel_size)] * (coarser + 1))
    with pytest.raises(StopIteration):
        search.coarse_to_fine_kernels(torch.rand(side, side), (5, 5))
    assert counts == [count]


@pytest.mark.parametrize(
    ("kernel_size", "starts", "kept"),
    [
        (5, [5], [(1, 3)]),
        (11, [5], [(1, 6), (1, 4), (1, 3)]),
        (13, [5, 7], [(1, 8), (2, 6), (1, 4), (1, 3)]),
        (31, [5, 11, 15], [(1, 23), (1, 11), (1, 8), (1, 8), (3, 6), (1, 4), (1, 3)]),
    ],
)
def test_searches_are_made_once_from_a_scale_and_joined_at_the_third_finest(kernel_size, starts, kept, monkeypatch):
    begun, judged = [], []

    def start(size, count, rng):
        begun.append(size[0])
        return torch.full((1, *size), 1 / size[0] / size[1])

    def keep_one(found, count):
        judged.append((len(found), count))
        return found[:1]

    monkeypatch.setattr(search, "_starts", start)
    monkeypatch.setattr(search, "_distinct", keep_one)
    search.coarse_to_fine_kernels(torch.rand(200, 200), (kernel_size, kernel_size), [{}], steps=0)
    assert begun == starts
    assert judged == kept


def test_oblong_images_and_kernels():
    _, _, y = blurred("camera", 128, 13, 4)
    found = estimate_kernel(y[:100], (13, 9), starts=2)
    assert found.shape == (13, 9)
    assert deconvolve(y[:100], found).shape == (112, 136)


def test_deconvolution_with_the_true_kernel():
    image, kernel, y = blurred("camera", 160, 11, 1, 1e-3)
    x = deconvolve(y, kernel).numpy()
    assert x.shape == image.shape
    inside = (slice(10, -10),) * 2
    error = np.mean((x - image)[inside] ** 2)
    assert error < 0.1 * np.mean((y[5:-5, 5:-5] - image[inside]) ** 2)


def test_deconvolution_by_a_single_pixel_gives_the_image_back():
    y = torch.rand(20, 24, generator=torch.Generator().manual_seed(0))
    kernel = torch.zeros(5, 5)
    kernel[2, 2] = 1
    assert torch.allclose(deconvolve(y, kernel, weight=1e-6)[2:-2, 2:-2], y, atol=1e-3)


def test_free_energy_prefers_the_true_kernel():
    _, kernel, y = blurred("camera", 160, 11, 5, 1e-3)
    nothing, flat = np.zeros((11, 11)), np.full((11, 11), 1 / 121)
    nothing[5, 5] = 1
    true = free_energy(y, kernel)
    for wrong in (nothing, flat, kernel[::-1].copy()):
        assert true < free_energy(y, wrong)


@pytest.fixture
def little_smoothing(monkeypatch):
    """Deconvolutions that leave more noise in, so that kernels are fitted to it."""
    weight = deconvolution.PRIOR_WEIGHT / deconvolution.LITTLE_NOISE
    monkeypatch.setattr(deconvolution, "prior_weight", lambda noise: weight * noise)


def test_free_energy_does_not_prefer_kernels_fitted_to_noise(little_smoothing):
    _, kernel, y = blurred("camera", 160, 11, 5, 1e-2)
    nearer_to_a_point = 0.7 * kernel
    nearer_to_a_point[5, 5] += 0.3
    true = free_energy(y, kernel)
    for wrong in (nearer_to_a_point, refine_kernel(y, kernel, rounds=4)):
        assert true < free_energy(y, wrong)


def test_kernels_fitted_to_much_noise_are_told_by_the_smoothed_image(little_smoothing):
    _, kernel, y = blurred("chelsea", 128, 13, 1, 2e-2)
    y, kernel = torch.from_numpy(y).float(), torch.from_numpy(kernel).float()
    kernels = torch.stack([refine_kernel(y, kernel, rounds=2), kernel])
    assert similarity(*kernels.numpy()) < 0.85
    assert free_energy(y, kernels).argmin() == 0
    assert least_bad(y, kernels) == 1


def test_more_noise_means_a_smoother_deconvolution_and_no_refinement(monkeypatch):
    refined = []
    monkeypatch.setattr(search, "refine_kernel", lambda y, kernel, **_: refined.append(kernel) or kernel)
    for noise, few in ((1e-3, True), (1e-2, False)):
        image, kernel, y = blurred("camera", 160, 11, 5, noise)
        plain, adapted = (deconvolve(y, kernel, weight=weight).numpy() for weight in (deconvolution.PRIOR_WEIGHT, None))
        error, adapted_error = (np.mean((x - image)[10:-10, 10:-10] ** 2) for x in (plain, adapted))
        assert (adapted_error < 1.1 * error) if few else (adapted_error < 0.7 * error)
        estimate_kernel(y, (11, 11), starts=1)
        assert len(refined) == (2 if few else 0)
        refined.clear()


def test_smoothing_is_that_of_opencv_inside_the_border():
    y = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    smooth = torch.from_numpy(cv2.GaussianBlur(y.numpy(), (9, 9), 1.5)[4:-4, 4:-4])
    assert torch.allclose(linear.smooth(y, 1.5), smooth, atol=1e-5)


def test_faint_entries_that_make_no_difference_are_left_out():
    """Two points: what is faint beside them goes, and the points stay."""
    true = np.zeros((11, 11))
    true[2, 3], true[8, 7] = 0.6, 0.4
    x = data.camera()[100:270, 180:350] / 255
    y = blur(*(torch.from_numpy(a)[None, None] for a in (x, true)))[0, 0].float()
    found = true.copy()
    found[[0, 1, 4, 5, 9, 10], [7, 0, 9, 2, 3, 8]] = 0.04
    found = torch.from_numpy(found / found.sum()).float()
    cleared = search._cleared(y, found)
    assert float(cleared.sum()) == pytest.approx(1, abs=1e-6)
    assert int((cleared > 0).sum()) == 2
    assert kernel_error(cleared, true) < 1e-3 < 0.2 < kernel_error(found, true)


def kernel_error(kernel, true):
    return float(np.abs(kernel.numpy() - true).sum())


def test_a_camera_shake_keeps_its_faint_parts():
    _, kernel, y = blurred("camera", 160, 11, 5)
    y, kernel = (torch.as_tensor(a, dtype=torch.float32) for a in (y, kernel))
    cleared = search._cleared(y, kernel)
    assert kernel_error(cleared, kernel.numpy()) < 0.1


def test_a_refined_kernel_stays_within_a_mask():
    _, kernel, y = blurred("camera", 120, 11, 5)
    y, kernel = (torch.as_tensor(a, dtype=torch.float32) for a in (y, kernel))
    kernel[0, 0] = 0.1
    within = search._grown(kernel > 0.01)
    within[:2, :2] = False
    refined = refine_kernel(y, kernel / kernel.sum(), within=within)
    assert float(refined.sum()) == pytest.approx(1, abs=1e-6)
    assert int((refined > 0).sum()) <= int(within.sum())


def test_a_fitted_kernel_that_is_clearly_better():
    _, kernel, y = blurred("camera", 100, 9, 3)
    y, kernel = (torch.as_tensor(a, dtype=torch.float32) for a in (y, kernel))
    wide, point = torch.full_like(kernel, 1 / kernel.numel()), torch.zeros_like(kernel)
    point[4, 4] = 1
    assert judge.clearly_better(y, kernel, wide)
    assert not judge.clearly_better(y, wide, kernel)
    assert not judge.clearly_better(y, kernel, kernel)
    assert not judge.clearly_better(y, point, wide)


def test_noise_level():
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    assert noise_level(0.5 + 0.01 * noise) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("noise", "left"), [(0.0, 0.005), (0.01, 0.006), (0.03, 0.03)])
def test_noise_that_jpeg_took_the_finest_part_of(noise, left):
    _, _, y = blurred("camera", 200, 11, 5, noise)
    y = torch.from_numpy(y).float()
    assert not judge.has_blocks(y)
    _, coded = cv2.imencode(".jpg", np.rint(y.numpy() * 255), [cv2.IMWRITE_JPEG_QUALITY, 75])
    coded = torch.from_numpy(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE) / np.float32(255))
    for blocks in (coded, coded[3:, 5:]):
        assert judge.has_blocks(blocks)
        assert noise_level(blocks) == pytest.approx(left, rel=0.25)
        assert judge._finest_noise(blocks) < 0.4 * left


def test_weight_of_the_prior_follows_the_noise():
    weights = [deconvolution.prior_weight(noise) for noise in (0, 1e-3, 4e-3, 1e-2, 3e-2)]
    assert weights == sorted(weights)
    assert weights[2] == deconvolution.PRIOR_WEIGHT
    assert weights[0] == weights[1] == deconvolution.LEAST_SHARE * deconvolution.PRIOR_WEIGHT


def test_an_image_without_gradients_gives_a_kernel():
    kernel = estimate_kernel(torch.full((64, 64), 0.5), (7, 7))
    assert kernel.isfinite().all()
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)


def test_a_light_brighter_than_white_is_left_out(picture, monkeypatch):
    x, kernel, _ = blurred(picture, 96, 9, 2)
    x, kernel = torch.as_tensor(x).float() * 0.7, torch.as_tensor(kernel).float()
    x[40:44, 60:64] = 6.0
    y = blur(x[None, None], kernel[None, None])[0, 0].clamp(0, 1)
    assert lights(y) is not None

    def error():
        return float((deconvolve(y, kernel).clamp(0, 1) - x.clamp(0, 1))[8:-8, 8:-8].square().mean())

    with_rule = error()
    monkeypatch.setattr("selfdeblur.classical.deconvolution.lights", lambda y: None)
    assert with_rule < 0.3 * error()


def test_paper_is_no_light():
    y = torch.full((20, 20), 0.95)
    y[5:10] = 0.2
    assert lights(y) is None
    assert lights(torch.full((20, 20), 0.5)) is None
    y = torch.full((20, 20), 0.5)
    y[7, 8] = 1.0
    away = away_from_lights(y)
    assert int((~away).sum()) == 9
    assert not away[6:9, 7:10].any()


def test_the_size_of_a_kernel_from_the_picture(picture):
    _, _, y = blurred(picture, 184, 15, 3)
    height, width = estimate_size(y)
    assert height == width
    assert height % 2 == 1
    assert 13 <= height <= 31  # the kernel has 15 pixels
    assert estimate_size(y[:20, :30]) == (5, 5)
    found = estimate_kernel_of_any_size(y[:64, :64]).kernel
    assert found.shape[0] == found.shape[1] <= 27
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
