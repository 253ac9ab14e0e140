"""Search, judge and deconvolution as a GPU does them: all kernels of a scale together, and recorded as CUDA graphs.

Without a GPU what would be recorded is called again, on buffers that stay where they are, and may not wait. With one:
python -m pytest -k cuda tests/method/test_recorded.py
"""

import warnings

import numpy as np
import pytest
import torch
from common import blurred
from waiting import NothingWaits

from selfdeblur.classical import deconvolve, estimate_kernel, judge, recorded, search
from selfdeblur.classical.few_gradients import FewGradients, _extend_periodically
from selfdeblur.classical.kernels import camera_shake_kernel, centred
from selfdeblur.classical.recorded import Recorded

CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT TESTED: the search on a GPU, because there is no GPU here"
)


@pytest.fixture
def problem(picture):
    _, kernel, y = blurred(picture, 72, 9, 3)
    return torch.from_numpy(np.asarray(y)).float(), torch.from_numpy(np.asarray(kernel)).float()


@pytest.fixture
def plays(monkeypatch):
    """Recording without a GPU; how often what was recorded was played."""
    played = []

    def capture(self, function, device):
        with NothingWaits():
            outputs = function()

        def play():
            played.append(self)
            for output, new in zip(outputs, function(), strict=True):
                output.copy_(new)

        return play, outputs

    monkeypatch.setattr(Recorded, "_capture", capture)
    monkeypatch.setattr(Recorded, "on", staticmethod(lambda device: True))
    return played


def test_what_is_recorded_is_played_with_other_numbers(plays, monkeypatch):
    double = Recorded(lambda a, b, *, by=1.0: (a * by + b, a - b))
    results = []
    for number in range(4):
        a, b = torch.full((3,), float(number)), torch.ones(3)
        plus, minus = double(a, b)
        assert torch.equal(plus, a + b)
        assert torch.equal(minus, a - b)
        results.append(plus)
    assert [plus[0].item() for plus in results] == [1, 2, 3, 4]  # none is overwritten by the next one
    assert len(plays) == 3
    # Another size, or another number by name, is of another kind.
    assert double(torch.ones(2), torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert double(torch.ones(3), torch.ones(3), by=2.0)[0].tolist() == [3.0] * 3
    assert len(plays) == 3
    with double:
        assert double.recordings
    assert not double.recordings
    monkeypatch.setattr(recorded, "LARGEST", 5)
    assert double(torch.ones(3), torch.ones(3))[0].tolist() == [2.0] * 3
    assert len(plays) == 3


def test_what_cannot_be_recorded_is_called(monkeypatch):
    monkeypatch.setattr(Recorded, "on", staticmethod(lambda device: Recorded.recordable))
    monkeypatch.setattr(Recorded, "recordable", True)
    errors = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("operation not permitted")]

    def fail(*_):
        raise errors.pop(0)

    monkeypatch.setattr(Recorded, "_capture", fail)
    one, other = (Recorded(lambda a: (a + 1,)) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [one(torch.ones(1))[0].item() for _ in range(3)] == [2.0] * 3
        assert Recorded.recordable
        assert other(torch.ones(1))[0].item() == 2
    with pytest.warns(UserWarning, match="not permitted"):
        assert other(torch.ones(1))[0].item() == 2
    assert not Recorded.recordable
    assert other(torch.ones(1))[0].item() == 2


def test_on_a_cpu_nothing_is_recorded():
    assert not Recorded.on(torch.device("cpu"))
    assert Recorded.on(torch.device("cuda"))
    assert not search.worked_on_together(torch.device("cpu"))
    assert search.worked_on_together(torch.device("cuda"))


@pytest.mark.search
def test_all_kernels_together_recorded_give_the_kernel_of_each_alone(problem, monkeypatch, plays):
    y, _ = problem
    with monkeypatch.context() as patch:
        patch.setattr(Recorded, "on", staticmethod(lambda device: False))
        alone = estimate_kernel(y, (9, 9), starts=3)
        assert not plays
    monkeypatch.setattr(search, "worked_on_together", lambda device: True)
    # Several chunks at the finest scale, one of which has kernels of both kinds.
    monkeypatch.setattr(search, "PIXELS_ON_A_GPU", 7 * y.numel())
    together = estimate_kernel(y, (9, 9), starts=3)
    # Sums of another order round otherwise, and how much becomes of it differs from CPU to CPU.
    assert (together - alone).abs().max() < 1e-4 * alone.max()
    assert len(plays) > 50


@pytest.mark.parametrize("near_background", [False, True])
def test_sharp_images_of_costs_that_differ_are_those_of_each_cost(problem, near_background):
    y, kernel = problem
    sharp = FewGradients(y, (9, 9), 0.2)
    # The first ends in the midst of the others' rounds.
    costs = [2e-2, 4e-3, 1e-4]
    kernels = torch.stack([kernel, kernel.T, kernel.flip(0)])
    spans = FewGradients.spans(costs, near_background)
    assert all(fewest < most for fewest, most in spans)
    found = sharp(kernels, torch.tensor(costs)[:, None, None], near_background, spans)
    for image, one, cost in zip(found, kernels, costs, strict=True):
        difference = (image - sharp(one, cost, near_background)).abs()
        # Where a gradient is next to its threshold, rounding decides, and pixels near it may be off by 0.01.
        assert difference.median() < 1e-4
        assert difference.mean() < 2e-4


def test_deconvolution_and_judge_recorded_are_the_same(problem, plays, monkeypatch):
    y, kernel = problem
    y[20:22, 30:33] = 1  # lights, which a deconvolution finds anew at each round
    kernels = torch.stack([kernel, kernel.T])
    recorded_ones = deconvolve(y, kernel), judge.free_energy(y, kernels), _extend_periodically(y, (9, 9))
    assert len({id(played) for played in plays}) == 3
    monkeypatch.setattr(Recorded, "on", staticmethod(lambda device: False))
    plain = deconvolve(y, kernel), judge.free_energy(y, kernels), _extend_periodically(y, (9, 9))
    for one, other in zip(recorded_ones, plain, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_kernels_are_centred_and_measured_together_as_each_alone():
    rng = np.random.default_rng(0)
    kernels = torch.stack([torch.from_numpy(camera_shake_kernel((9, 13), rng=rng)) for _ in range(5)])
    kernels = torch.stack([kernel.roll((i - 2, 2 * i - 3), (0, 1)) for i, kernel in enumerate(kernels)])
    kernels[4] = 0
    kernels[4, 0, 12] = 0.97
    kernels[4, 8, 12] = 0.03  # below 5 %, and out of the picture when the other is in the middle
    together = centred(kernels)
    for one, kernel in zip(together, kernels, strict=True):
        large = (kernel > 0.05 * kernel.max()).nonzero()
        shift = [(n - 1 - int(large[:, i].min()) - int(large[:, i].max())) // 2 for i, n in enumerate(kernel.shape)]
        expected = torch.zeros_like(kernel)
        for row, column in kernel.nonzero().tolist():
            if 0 <= row + shift[0] < 9 and 0 <= column + shift[1] < 13:
                expected[row + shift[0], column + shift[1]] = kernel[row, column]
        assert torch.allclose(one, expected / expected.sum(), atol=1e-15)
        assert torch.equal(one, centred(kernel))
    assert together[4, 4, 6] == 1
    assert judge.extents(kernels).tolist() == pytest.approx([judge.extent(kernel) for kernel in kernels])


@CUDA
@pytest.mark.search
def test_cuda_finds_the_kernel_that_the_cpu_finds(problem):
    y, kernel = problem
    found = estimate_kernel(y.cuda(), (9, 9)).cpu()
    assert Recorded.recordable
    on_cpu = estimate_kernel(y, (9, 9))
    scores = [torch.nn.functional.cosine_similarity(k.flatten(), kernel.flatten(), 0) for k in (found, on_cpu)]
    assert scores[0] > scores[1] - 0.02
    images = deconvolve(y.cuda(), kernel.cuda()).cpu(), deconvolve(y, kernel)
    assert (images[0] - images[1]).abs().max() < 1e-2
