"""The step on fixed buffers, as it runs on a GPU, against the one in the solver.

Without a GPU the recorded step is called instead of played again; the rest is the same. Tests that need one:
python -m pytest -k cuda tests/method/test_graphs.py
"""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from waiting import NothingWaits

from networks import SkipGenerator, fused, whole
from selfdeblur import UserError, graphs
from selfdeblur.graphs import CHECK_EVERY, FixedRun, FixedStep
from selfdeblur.precision import GRADIENT_SIZE, arithmetic, generator_type, gradient_scale, scaled_gradient, unscale
from selfdeblur.settings import make_settings
from selfdeblur.stages import Run

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: CUDA graphs, because there is no GPU here")
# Half of the method's channels, still as many as have the form for CPUs of `networks.fused`.
CHANNELS = (64,) * 5
SHORT = {"num_iter": 7, "mse_steps": 3, "milestones": (2, 5), "channels": CHANNELS}
SHORT_SETTINGS = {
    "release": make_settings(**SHORT),
    "paper": make_settings("paper", num_iter=5, tv_weight=1e-2, channels=CHANNELS),
    "nonblind": make_settings("nonblind", num_iter=5, milestones=(3,), channels=CHANNELS),
    "without noise": make_settings(**SHORT, input_noise=0.0),
}


def image(height=36, width=40, seed=0):
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


def make_run(settings, y=None, size=(5, 5), device="cpu"):
    y = (image() if y is None else y).to(device)
    kernel = torch.full((1, 1, *size), 1 / (size[0] * size[1]), device=device)
    return Run(y, size, settings, kernel=kernel if settings.preset == "nonblind" else None)


def finish(step, run):
    while run.steps_done < run.settings.num_iter:
        step()


def assert_same_step(run, other, step, tolerance):
    """From the same parameters two runs came to the same loss and gradient."""
    assert run.losses[step].item() == pytest.approx(other.losses[step].item(), rel=tolerance)
    assert gradient_of(run.fit.G_x).numel()
    for a, b in zip((run.fit.G_x, run.fit.G_k), (other.fit.G_x, other.fit.G_k), strict=True):
        one, two = gradient_of(a), gradient_of(b)
        assert (one - two).norm() <= 10 * tolerance * one.norm()


def gradient_of(net):
    """All of a network's gradient; empty for G_k where the kernel is given."""
    return torch.cat([torch.empty(0)] + [p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None])


@torch.no_grad()
def take_over(run, other):
    """Put the parameters and Adam's moments of a run in the places of another's.

    Sums on a GPU are not taken in the same order twice, and Adam's first steps have the size of the learning rate
    whatever the size of the gradient: without this, two runs part within three steps.
    """
    for a, b in zip(run.fit.optimiser.param_groups, other.fit.optimiser.param_groups, strict=True):
        for p, q in zip(a["params"], b["params"], strict=True):
            q.copy_(p)
            for name, value in run.fit.optimiser.state[p].items():
                other.fit.optimiser.state[q][name].copy_(value)


def same(a, b):
    assert torch.equal(a.losses, b.losses)
    assert torch.equal(a.fit.rng.get_state(), b.fit.rng.get_state())
    for net in ("G_x", "G_k"):
        for p, q in zip(getattr(a.fit, net).parameters(), getattr(b.fit, net).parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("name", SHORT_SETTINGS)
def test_fixed_steps_equal_those_of_the_solver(name):
    run, other = (make_run(SHORT_SETTINGS[name]) for _ in range(2))
    finish(run.step, run)
    fixed = FixedStep(other.fit)
    finish(fixed.step, other)
    fixed.close()
    same(run, other)
    # And what a checkpoint holds is what the solver would have written.
    groups = [r.fit.state_dict()["optimiser"]["param_groups"] for r in (run, other)]
    if name == "release":
        # The rate of the last step, which fixed steps hold in a tensor of their own.
        for group, rate in zip(groups[1], run.fit.current_rates(), strict=True):
            group["lr"] = rate
    assert [g["capturable"] for g in groups[1]] == [False] * len(groups[1])
    assert all(isinstance(g["lr"], float) for g in groups[1])


def test_runs_of_different_sizes_side_by_side_equal_single_ones():
    cases = [(image(36, 40), (5, 5)), (image(36, 40, seed=1), (5, 5)), (image(33, 47), (3, 7)), (image(40, 36), (5, 5))]
    settings = SHORT_SETTINGS["release"]
    runs = [make_run(settings, *case) for case in cases]
    steps = [FixedStep(run.fit) for run in runs]
    for number in range(settings.num_iter):
        for step in steps[: 2 if number > 3 else 4]:  # two leave early
            step.step()
    for step in steps:
        step.close()
    for case, run in zip(cases, runs, strict=True):
        single = make_run(settings, *case)
        while single.steps_done < run.steps_done:
            single.step()
        same(single, run)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_checkpoint_between_fixed_steps_is_that_of_the_solver(stop):
    settings = SHORT_SETTINGS["release"]
    one = make_run(settings)
    finish(one.step, one)
    part = make_run(settings)
    fixed = FixedStep(part.fit)
    for _ in range(stop):
        fixed.step()
    fixed.settle()
    state = copy.deepcopy(part.state_dict())  # as a file would hold it
    for resume in (lambda run: run.step, lambda run: FixedStep(run.fit).step):
        again = make_run(settings)
        again.load_state_dict(copy.deepcopy(state))
        finish(resume(again), again)
        same(one, again)
    # The run itself, let go of, goes on by either means as well.
    fixed.close()
    finish(part.step, part)
    same(one, part)


def on_gpu(state):
    """The state of a run as a GPU would give it where the noise is drawn there: seed and position, 16 bytes."""
    state = copy.deepcopy(state)
    state["fit"]["rng"] = torch.zeros(16, dtype=torch.uint8)
    return state


def test_a_run_from_a_gpu_goes_on_on_the_cpu():
    settings = make_settings(**SHORT, noise_from="cuda")
    run = make_run(settings)
    assert run.fit.rng.device.type == "cpu"  # there is nothing else here
    for _ in range(4):
        run.step()
    state = on_gpu(run.state_dict())
    ends = []
    for seed in (0, 0, 1):
        again = make_run(make_settings(**SHORT, noise_from="cuda", seed=seed))
        again.load_state_dict(copy.deepcopy(state))
        assert again.steps_done == 4
        assert torch.equal(again.losses[:4], run.losses[:4])
        finish(again.step, again)
        assert torch.isfinite(again.losses).all()
        ends.append(again)
    same(ends[0], ends[1])
    # What it draws is of its seed, and nothing that it drew before.
    finish(run.step, run)
    for other in (run, ends[2]):
        assert not torch.equal(ends[0].losses[5:], other.losses[5:])


def test_the_noise_is_part_of_the_state():
    # A state of the same kind of generator is taken as it is.
    run, again = (make_run(SHORT_SETTINGS["release"]) for _ in range(2))
    for _ in range(3):
        run.step()
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    assert torch.equal(again.fit.draw_noise(run.fit.z_x), run.fit.draw_noise(run.fit.z_x))


def test_the_first_loss_that_is_no_number_is_found():
    run = make_run(make_settings(num_iter=6))
    fixed = FixedRun(run)
    for _ in range(5):
        fixed.step()
    assert fixed.first_not_finite(0) is None
    run.losses[2:4] = float("nan")
    assert fixed.first_not_finite(0) == 2
    assert fixed.first_not_finite(3) == 3
    assert fixed.first_not_finite(4) is None
    fixed.close()


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_run_with_a_search_on_fixed_buffers_equals_that_of_the_solver(preset, short_search, monkeypatch):
    settings = make_settings(preset, num_iter=8)
    one, run, part, again = (make_run(settings) for _ in range(4))
    finish(one.step, one)
    monkeypatch.setattr(graphs, "on_fixed_buffers", lambda run: True)
    fits = []
    monkeypatch.setattr(graphs, "FixedStep", lambda fit: fits.append(fit) or FixedStep(fit))
    with graphs.stepping(run) as (step, settle):
        finish(step, run)
        settle()
    assert len(fits) == 1
    same(one, run)
    for name, kernel in one.kernels.items():
        assert torch.equal(kernel, run.kernels[name])
    assert torch.equal(one.output().x, run.output().x)
    # Two checkpoints in the midst of the fit.
    fixed = FixedRun(part)
    for _ in range(3):
        fixed.step()
    for _ in range(2):
        fixed.settle()
        again.load_state_dict(copy.deepcopy(part.state_dict()))
        finish(FixedRun(again).step, again)
        same(one, again)
        fixed.step()
    fixed.close()


def test_a_search_that_is_given_up_leaves_the_run_as_it_was(short_search, monkeypatch):
    settings = make_settings("fast", num_iter=7)
    one, run = make_run(settings), make_run(settings)
    finish(one.step, one)
    fixed = FixedRun(run)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_search", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fixed.step()
    assert run.fit is None
    finish(fixed.step, run)
    fixed.close()
    same(one, run)


def test_a_step_given_up_leaves_the_run_as_it_was():
    settings = SHORT_SETTINGS["release"]
    one, run = make_run(settings), make_run(settings)
    finish(one.step, one)
    fixed = FixedStep(run.fit)
    fixed.step()
    blur, run.fit.blur = run.fit.blur, lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        fixed.step()
    run.fit.blur = blur
    fixed.close()
    finish(FixedStep(run.fit).step, run)
    same(one, run)


@pytest.mark.parametrize("name", SHORT_SETTINGS)
@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])
def test_nothing_in_a_step_waits(name, precision, monkeypatch):
    monkeypatch.setattr(fused, "generate", lambda net, z, **_: whole.generate(net, z))
    settings = SHORT_SETTINGS[name].as_dict() | {"precision": precision}
    run = make_run(make_settings(**settings))
    fixed = FixedStep(run.fit)
    fixed.step()
    with NothingWaits():
        fixed._compute()
        fixed.data_term = "1-ssim"
        fixed._compute()
    fixed.close()


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_nothing_in_a_step_of_a_check_waits(preset, precision, short_search, monkeypatch):
    monkeypatch.setattr(fused, "generate", lambda net, z, **_: whole.generate(net, z))
    fixed = FixedRun(make_run(make_settings(preset, num_iter=4, precision=precision)))
    fixed.step()
    fixed.fixed.index -= 1  # the same step again
    with NothingWaits():
        fixed.fixed._compute()
    fixed.close()


def test_what_waits_is_noticed():
    for wrong in (lambda x: x.sum().item(), lambda x: x.new_tensor([1.0, 2.0]), lambda x: torch.rand(3) * x.sum()):
        with pytest.raises(AssertionError), NothingWaits():
            wrong(torch.ones(2))


def test_a_step_that_cannot_be_recorded_is_done_as_it_stands(monkeypatch):
    run = make_run(SHORT_SETTINGS["release"])
    fixed = FixedStep(run.fit)
    fixed.step()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(register_generator_state=lambda rng: None))
    monkeypatch.setattr(FixedStep, "recordable", True)
    stream, fixed.stream = fixed.stream, object()

    def fail(error):
        def graph(*_, **__):
            raise error

        monkeypatch.setattr(torch.cuda, "graph", graph)

    fail(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        fixed._record()
    assert FixedStep.recordable
    fail(RuntimeError("operation not permitted when stream is capturing"))
    with pytest.warns(UserWarning, match="not permitted"):
        assert fixed._record() == fixed._compute
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fixed._record() == fixed._compute
    fixed.stream = stream
    fixed.close()


def test_memory_that_is_too_small_is_known_by_its_errors():
    def masked():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise RuntimeError("capture was invalidated")  # noqa: B904

    with pytest.raises(RuntimeError) as error:
        masked()
    assert graphs.out_of_memory(error.value)
    assert graphs.out_of_memory(MemoryError())
    assert graphs.out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not graphs.out_of_memory(RuntimeError("an illegal memory access was encountered"))


def test_the_solver_s_step_is_taken_on_the_cpu():
    run = make_run(SHORT_SETTINGS["release"])
    with graphs.stepping(run) as (step, settle):
        assert step == run.step
        settle()


def generated(size, dtype, form, *, autocast=False):
    """Output of a form of the generator with fixed random parameters, and the gradient of an error by parameter."""
    torch.manual_seed(0)
    net = SkipGenerator(plain=True)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    z, target = torch.rand(1, 8, *size).to(dtype), torch.rand(1, 1, *size).to(dtype)
    net = net.to(dtype)
    with generator_type("bf16" if autocast else "float32", z.device):
        x = net(z) if form == "plain" else whole.generate(net, z)
    assert x.dtype == dtype
    (x - target).square().mean().backward()
    # A bias in front of a normalisation has gradient 0, which the form for GPUs leaves out.
    return x.detach(), torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in net.parameters()]
    )


@pytest.mark.parametrize("size", [(61, 75), (64, 48), (97, 100)])
def test_the_form_for_gpus_equals_the_plain_one(size):
    x, gradient = generated(size, torch.float64, "plain")
    y, other = generated(size, torch.float64, "whole")
    assert (x - y).abs().max() < 1e-11
    assert (gradient - other).abs().max() < 1e-9


def test_in_bfloat16_it_rounds_like_the_plain_one():
    exact, exact_gradient = generated((100, 90), torch.float64, "plain")
    errors, gradient_errors = [], []
    for form in ("plain", "whole"):
        x, gradient = generated((100, 90), torch.float32, form, autocast=True)
        errors.append((x - exact).square().mean().sqrt().item())
        gradient_errors.append((gradient - exact_gradient).norm().item())
    assert errors[1] < 2 * errors[0] < 0.1
    assert gradient_errors[1] < 2 * gradient_errors[0] < exact_gradient.norm()


def test_precision_is_set_on_a_gpu_and_set_back():
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for precision, allowed in (("float32", False), ("tf32", True), ("bf16", False)):
        with arithmetic(precision, torch.device("cuda")):
            assert [switch.allow_tf32 for switch in switches] == [allowed, False]
        assert [switch.allow_tf32 for switch in switches] == before
    with arithmetic("tf32", torch.device("cpu")):
        assert [switch.allow_tf32 for switch in switches] == before


def test_the_gradient_of_the_image_is_scaled_on_its_way():
    for size in (1e-9, 1.0, 1e6):
        x, weight = torch.ones(20, 30, requires_grad=True), torch.ones(3, requires_grad=True)
        scale = gradient_scale("fp16", x)
        g = size * torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
        (scaled_gradient(weight.sum() / 3 * x, scale) * g).sum().backward()
        assert GRADIENT_SIZE / 1.5 < x.grad.square().mean().sqrt() < GRADIENT_SIZE * 1.5
        assert torch.log2(scale[0]) == torch.log2(scale[0]).round()
        optimiser = torch.optim.Adam([weight], fused=True)
        unscale([weight], scale, optimiser)
        assert torch.allclose(weight.grad, (g.double().sum() / 3).float().expand(3), rtol=1e-3)
        assert optimiser.found_inf == 0
    assert gradient_scale("bf16", x) is None
    assert scaled_gradient(x, None) is x


@pytest.mark.parametrize("fixed", [False, True])
def test_a_step_with_an_infinite_gradient_changes_nothing(fixed):
    run = make_run(make_settings(num_iter=8, mse_steps=1, precision="fp16"))
    step = FixedStep(run.fit).step if fixed else run.step
    while not run.steps_done or run.fit.optimiser.found_inf:  # an image as small as this one needs less at first
        step()
    parameters = [*run.fit.G_x.parameters(), *run.fit.G_k.parameters()]

    def all_of_it():
        states = [value for p in parameters for value in run.fit.optimiser.state[p].values()]
        return [value.detach().clone() for value in (*parameters, *states)]

    weight, before, aim = run.fit.G_x.out.weight, all_of_it(), run.fit.scale[1].item()
    hook = weight.register_hook(lambda g: torch.full_like(g, float("inf")))
    step()
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, all_of_it(), strict=True))
    assert run.fit.scale[1] == aim / 4
    saved = weight.detach().clone()
    step()
    assert not torch.equal(weight, saved)
    assert aim / 4 < run.fit.scale[1] < aim / 3
    assert torch.isfinite(run.losses).all()


def test_the_scale_of_gradients_is_part_of_the_state():
    settings = make_settings(num_iter=8, mse_steps=1, precision="fp16")
    one, part, again = (make_run(settings) for _ in range(3))
    finish(one.step, one)
    for _ in range(5):
        part.step()
    assert part.fit.scale[1] < GRADIENT_SIZE
    again.load_state_dict(copy.deepcopy(part.state_dict()))
    finish(again.step, again)
    same(one, again)
    assert torch.equal(one.fit.scale, again.fit.scale)


def test_float16_rounds_and_little_more():
    runs = [make_run(make_settings(num_iter=3, mse_steps=1, precision=precision)) for precision in ("float32", "fp16")]
    for run in runs:
        finish(run.step, run)
    assert runs[1].fit.G_x.out.weight.dtype == torch.float32
    assert not torch.equal(runs[0].losses, runs[1].losses)
    apart = (runs[0].losses - runs[1].losses).abs() / runs[0].losses
    assert apart[0] < 1e-3  # from the same parameters
    assert apart.max() < 0.1


def test_precision_is_part_of_the_settings():
    # Results from before there was a choice stay valid.
    assert "precision" not in make_settings().as_dict()
    assert make_settings(precision="bf16").as_dict()["precision"] == "bf16"
    # Likewise what draws the noise: a result that does not say so has it from the CPU.
    assert "noise_from" not in make_settings().as_dict()
    assert make_settings(noise_from="cuda").as_dict()["noise_from"] == "cuda"
    with pytest.raises(UserError, match="noise_from"):
        make_settings(noise_from="gpu")
    with pytest.raises(UserError, match="precision"):
        make_settings(precision="float8")


def test_bfloat16_is_not_float32():
    runs = [make_run(make_settings(num_iter=2, precision=precision)) for precision in ("float32", "bf16")]
    for run in runs:
        finish(run.step, run)
    results = [run.result()[0] for run in runs]
    assert results[1].dtype == torch.float32
    assert runs[1].fit.G_x.out.weight.dtype == torch.float32
    assert not torch.equal(runs[0].losses, runs[1].losses)
    assert (runs[0].losses - runs[1].losses).abs().max() < 0.1 * runs[0].losses[0]


@CUDA
@pytest.mark.parametrize("noise_from", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["release", "nonblind"])
def test_cuda_graphs_equal_the_solver_s_steps(name, precision, noise_from):
    changes = {"precision": precision, "noise_from": noise_from, "channels": (128,) * 5}
    settings = make_settings(**SHORT_SETTINGS[name].as_dict() | changes)
    run, other = (make_run(settings, image(200, 220), (9, 9), "cuda") for _ in range(2))
    fixed = FixedStep(other.fit)
    tolerance = 1e-3 if precision == "float32" else 1e-2
    for step in range(settings.num_iter):
        run.step()
        fixed.step()
        fixed.settle()
        assert_same_step(run, other, step, tolerance)
        take_over(run, other)
    assert FixedStep.recordable
    if settings.num_iter > 2:
        assert fixed.play != fixed._compute
    fixed.close()


@CUDA
def test_cuda_runs_side_by_side_do_not_disturb_each_other():
    settings = make_settings(num_iter=2 * CHECK_EVERY, mse_steps=20, milestones=(30,))
    cases = [(image(100, 120), (9, 9)), (image(100, 120, seed=1), (9, 9)), (image(140, 90), (5, 7))]
    singles = []
    for case in cases:
        run = make_run(settings, *case, "cuda")
        with graphs.stepping(run) as (step, _):
            finish(step, run)
        singles.append(run)
    runs = [make_run(settings, *case, "cuda") for case in cases]
    steps = [FixedStep(run.fit) for run in runs]
    for _ in range(settings.num_iter):
        for step in steps:
            step.step()
    for run, step in zip(runs, steps, strict=True):
        step.close()
        assert torch.isfinite(run.losses).all()
    for run, single in zip(runs, singles, strict=True):
        assert torch.equal(run.fit.rng.get_state(), single.fit.rng.get_state())
        assert torch.allclose(run.losses[:3], single.losses[:3], rtol=0.02)
        assert run.losses[-10:].mean().item() == pytest.approx(single.losses[-10:].mean().item(), rel=0.3)


@CUDA
@pytest.mark.parametrize("preset", ["fast", "best"])
def test_cuda_checks_are_recorded_and_equal_the_solver_s(preset, short_search, monkeypatch):
    settings = make_settings(preset, num_iter=12, noise_from="cuda")
    run, other = (make_run(settings, image(96, 100), (7, 7), "cuda") for _ in range(2))
    fixed = FixedRun(other)
    fixed.prepare()  # what a search finds depends on the order of sums
    run.kernels = dict(other.kernels)
    run.begin()
    while run.steps_done < settings.num_iter:
        step = run.steps_done
        run.step()
        fixed.step()
        fixed.settle()
        assert_same_step(run, other, step, 1e-3)
        take_over(run, other)
        if other.fit.steps_done > 3:
            assert fixed.fixed.play is None or fixed.fixed.play != fixed.fixed._compute
    assert FixedStep.recordable
    fixed.close()


@CUDA
def test_cuda_noise_is_part_of_the_state():
    settings = make_settings(**SHORT, noise_from="cuda")
    run, again, on_cpu = (make_run(settings, device=device) for device in ("cuda", "cuda", "cpu"))
    for step in (FixedStep(run.fit), FixedStep(again.fit)):
        for _ in range(5):
            step.step()
        step.close()
    state = copy.deepcopy(run.state_dict())
    again.load_state_dict(state)
    noise = run.fit.draw_noise(run.fit.z_x)
    assert torch.equal(again.fit.draw_noise(run.fit.z_x), noise)
    # And the steps have used it up: without them it would be another.
    assert not torch.equal(make_run(settings, device="cuda").fit.draw_noise(run.fit.z_x), noise)
    on_cpu.load_state_dict(state)
    finish(on_cpu.step, on_cpu)
    assert torch.isfinite(on_cpu.losses).all()
