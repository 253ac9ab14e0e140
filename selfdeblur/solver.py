"""The method: two untrained generators fitted jointly to one blurry image.

Read `Run.gradient` next to section 3 of Ren et al., "Neural Blind Deconvolution
Using Deep Priors" (CVPR 2020). Everything here is a tensor; files, colours and
benchmarks are dealt with elsewhere.
"""

from functools import partial

import torch

from networks import KernelGenerator, SkipGenerator
from selfdeblur.classical import quality
from selfdeblur.classical.initial import (
    AGAIN,
    busiest_window,
    clearly_better,
    deconvolve,
    estimate_kernel,
    kernel_between,
    least_bad,
)
from selfdeblur.forward import blur, blur_plain, centre
from selfdeblur.losses import DSSIM, dssim_plain, mse, total_variation
from selfdeblur.precision import arithmetic, generator_type, gradient_scale, scaled_gradient, unscale

# Where `Settings.mean_with` names this instead of a stage, the mean is with an image that is deconvolved at the end.
DECONVOLVED = "deconvolved"

Z_CHANNELS, Z_FEATURES, Z_SCALE = 8, 200, 0.1


class Run:
    """The fit of one image: the networks, the optimiser and all that a step needs.

    A run has one stage or several (see `Settings`). Each stage fits networks of
    its own by the same step; what a stage hands on is its kernel. All random
    numbers are drawn on the CPU, so a seed means the same start on every
    device.

    Parameters
    ----------
    y : tensor (1, 1, H, W)
        Blurry image, range 0 to 1; its device and type are those of the run.
    kernel_size : tuple of int
        (h, w), odd.
    settings : Settings
    kernel : tensor (1, 1, h, w), optional
        Known kernel in correlation sense; with it only G_x is fitted.
    plain : bool
        Take every piece in its plain form: slower, the same numbers to rounding.

    Attributes
    ----------
    steps_done : int
    losses : tensor (num_iter,)
        The objective at each step done so far.
    stage : str
        Name of the stage that the run is in, "" before the first one.
    kernels : dict of str to tensor (h, w)
        The kernels handed on so far, by the stage that found them.
    images : dict of str to tensor (h, w)
        The images of stages so far that a later one takes into its mean.
    disagreement : float or None
        `quality.disagreement` of the two kernels between which a stage chose.
    slowed : int
        How often the learning rates were halved besides the milestones.
    """

    def __init__(self, y, kernel_size, settings, *, kernel=None, plain=False):
        self.y, self.kernel_size, self.settings, self.kernel, self.plain = y, kernel_size, settings, kernel, plain
        self.blur = blur_plain if plain else blur
        self.losses = torch.zeros(settings.num_iter, dtype=y.dtype, device=y.device)
        self.stages = settings.each_stage()
        self.kernels, self.images, self.disagreement, self.steps_done, self.slowed = {}, {}, None, 0, 0
        self.stage, self.stage_end, self.deconvolved_at = "", 0, None
        first = next(iter(self.stages))
        if not self.stages[first].kernel_from:  # else it takes seconds and is left for the first step
            self._enter(first, None)

    def _next_stage(self):
        """Go from the end of a stage, or from before the first one, to the next."""
        names = list(self.stages)
        name = names[names.index(self.stage) + 1] if self.stage else names[0]
        kernels, images = dict(self.kernels), dict(self.images)
        if self.stage:
            x, k = (output[0, 0] for output in self._outputs())
            kernels[self.stage] = k
            if any(settings.mean_with == self.stage for settings in self.stages.values()):
                images[self.stage] = x
        settings = self.stages[name]
        if "estimate" in settings.kernel_from and "estimate" not in kernels:
            kernels["estimate"] = estimate_kernel(self.y[0, 0], self.kernel_size).to(self.y)
        wanted, guides, disagreement = self._agreed(kernels, settings)
        self._enter(name, torch.stack(wanted) if wanted else None, guides)
        self.kernels, self.images, self.disagreement = kernels, images, disagreement

    def _agreed(self, kernels, settings):
        """Those of the kernels of ``settings.kernel_from`` to go on with, the images deconvolved with them where these
        were needed, and by how much two of the kernels disagree.

        The estimate may be wrong, and the stage that started at it with it. So another search follows where these two
        differ, but for when ``settings.rival``, a stage that did not start there, agrees with the stage's kernel, which
        then goes on alone; and it follows where the rival is far from that kernel. If the search agrees with a rival
        that is far, these two go on, and if not, such a rival alone if it explains y clearly better. Else three near
        each other stand against the rival; else what the search found takes the estimate's place, if it explains y
        better or agrees with the stage's kernel; else that goes on as it was, without the estimate where they differ.
        """
        wanted = [kernels[source] for source in settings.kernel_from]
        if len(wanted) < 2:
            return wanted, None, self.disagreement
        y = self.y[0, 0]

        def differ(*images):
            return quality.disagreement(y, *images, self.kernel_size)

        old, checked = images = [deconvolve(y, kernel) for kernel in wanted]
        disagreement, far = differ(old, checked), False
        agreed = disagreement <= settings.doubt
        estimate, check = wanted
        if settings.rival:
            rival = kernels[settings.rival]
            rival_image = deconvolve(y, rival)
            apart = differ(checked, rival_image)
            far = apart > quality.WRONG
            if apart <= settings.doubt and not agreed:
                return [check], [checked], apart
        if agreed and not far:
            return wanted, images, disagreement
        again = estimate_kernel(y, self.kernel_size, searches=AGAIN).to(self.y)
        new = deconvolve(y, again)
        left = differ(new, checked)
        if far:
            if differ(new, rival_image) <= min(quality.WRONG, left):
                kernels["estimate"] = again
                return [again, rival], [new, rival_image], apart
            if clearly_better(y, rival, check):
                return [rival], [rival_image], apart
            if agreed and left <= quality.WRONG:
                return wanted, images, disagreement
        better = least_bad(y, torch.stack([estimate, again])) == 1
        agrees = left <= settings.doubt
        if differ(old, new) <= settings.doubt or not (better or agrees):
            return (wanted, images, left) if agreed else ([check], [checked], disagreement)
        kernels["estimate"] = again
        if not agrees:
            return [again], [new], left
        return [again, check], [new, checked], left if better else disagreement

    def _enter(self, name, starts, guides=None):
        """Draw inputs and networks for a stage; G_k starts at the mean of ``starts`` (n, h, w) if there are any.

        ``guides``, if they are there already, are y deconvolved with each of them.
        """
        settings, like = self.stages[name], self.y
        if settings.window:
            rows, columns = busiest_window(like[0, 0], settings.window)
            like = like[..., rows, columns].contiguous()
            guides = None
        rng = torch.Generator()
        z_x = draw_z_x(like.shape[-2:], self.kernel_size, seed=settings.seed, rng=rng).to(like)
        if settings.noise_from == like.device.type == "cuda":
            rng = torch.Generator(like.device).manual_seed(settings.seed)
        if settings.guided:
            guides = guides or [deconvolve(like[0, 0], kernel) for kernel in starts]
            z_x = torch.stack(guides).clamp(0, 1).to(like)[None]
        z_k = draw_z_k(seed=settings.seed).to(like)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            non_local_from = 2 if settings.non_local else len(settings.channels)
            G_x = SkipGenerator(
                z_x.shape[1],
                channels=settings.channels,
                non_local_from=non_local_from,
                plain=self.plain,
                low_memory=settings.low_memory,
            ).to(like)
            G_k = KernelGenerator(self.kernel_size).to(like)
        if starts is not None:
            G_k.start_at(z_k, starts.mean(0))
        groups = [{"params": G_x.parameters(), "lr": settings.lr_image}]
        if self.kernel is None:
            groups.append({"params": G_k.parameters(), "lr": settings.lr_kernel})
        self.optimiser = torch.optim.Adam(groups, fused=not self.plain or settings.precision == "fp16")
        self.target, self.dssim = like, partial(dssim_plain, y=like) if self.plain else DSSIM(like)
        self.rng, self.z_x, self.z_k, self.G_x, self.G_k = rng, z_x, z_k, G_x, G_k
        self.scale = gradient_scale(settings.precision, like)
        self.rates = [group["lr"] for group in groups]
        self.stage, self.kernel_starts = name, starts
        self.stage_begin = self.stage_end
        self.stage_end = self.stage_begin + settings.num_iter

    def step(self):
        """One step of Adam on the objective; the loss goes to ``losses``."""
        self.gradient()
        self.update()

    def gradient(self):
        """The objective and its gradient, by all that a step does but the update.

        Where it is given up by an exception, the run is as it was before.
        """
        if self.steps_done == self.stage_end:
            self._next_stage()
        settings, step = self.stages[self.stage], self.steps_done
        before = self.rng.get_state()
        try:
            z_x = self.z_x
            if settings.input_noise:
                z_x = z_x + settings.input_noise * self.draw_noise(z_x)
            with self.arithmetic():
                loss = self.objective(z_x, self.data_term(step))
                self.optimiser.zero_grad()
                self.backward(loss)
        except BaseException:
            self.rng.set_state(before)
            raise
        self.losses[step] = loss.detach()

    def objective(self, z_x, data_term):
        """The objective for an input of G_x, with the data term "mse" or "1-ssim"."""
        settings = self.stages[self.stage]
        with generator_type(settings.precision, z_x.device):
            x = self.G_x(z_x)
        if self.scale is not None:
            x = scaled_gradient(x, self.scale)
        k = self.kernel if self.kernel is not None else self.G_k(self.z_k)
        y_hat = self.blur(x, k)

        loss = mse(y_hat, self.target) if data_term == "mse" else self.dssim(y_hat)
        if settings.tv_weight:
            loss = loss + settings.tv_weight * total_variation(x)
        return loss

    def backward(self, loss):
        """The backward pass of an objective."""
        loss.backward()
        if self.scale is not None:
            unscale(self.G_x.parameters(), self.scale, self.optimiser)

    @property
    def noise_on_device(self):
        """Whether the noise of the steps is drawn where the run is, and not on the CPU."""
        return self.rng.device.type == self.y.device.type

    def draw_noise(self, like):
        """The noise of a step, standard normal, of the shape, type and device of ``like``."""
        return torch.randn(like.shape, generator=self.rng, device=self.rng.device).to(like)

    def update(self):
        """Move the parameters by the gradient."""
        for group, rate in zip(self.optimiser.param_groups, self.current_rates(), strict=True):
            group["lr"] = rate
        self.optimiser.step()
        self.steps_done += 1

    def current_rates(self):
        """Learning rates of the step to come."""
        step = self.steps_done - self.stage_begin
        halvings = self.slowed + sum(step >= milestone for milestone in self.stages[self.stage].milestones)
        return [rate * 0.5**halvings for rate in self.rates]

    def arithmetic(self):
        """Context of all forward and backward passes of this run."""
        return arithmetic(self.settings.precision, self.y.device)

    def is_finite(self):
        """Whether the last loss and all parameters are numbers."""
        last = self.losses[max(self.steps_done - 1, 0)]
        parts = [last, *self.G_x.parameters(), *self.G_k.parameters()]
        return all(bool(torch.isfinite(part).all()) for part in parts)

    def data_term(self, step):
        """Name of the data term at a step of the run (counted from 0): "mse" or "1-ssim"."""
        for settings in self.stages.values():
            if step < settings.num_iter:
                break
            step -= settings.num_iter
        return "mse" if settings.mse_steps is None or step < settings.mse_steps else "1-ssim"

    @torch.no_grad()
    def _outputs(self):
        """The image and G_k(z_k), without the noise of the steps, so the networks alone give the result again."""
        with self.arithmetic(), generator_type(self.settings.precision, self.y.device):
            x = self.G_x(self.z_x)
        k = self.kernel if self.kernel is not None else self.G_k(self.z_k)
        if (other := self.stages[self.stage].mean_with) == DECONVOLVED:
            self._deconvolve_again(x[0, 0], k[0, 0])
        return x if other is None else (x + self.images[other]) / 2, k

    def _deconvolve_again(self, x, k):
        """Keep as the image DECONVOLVED that of y for the least squares kernel from G_x's image x.

        A fit of both at once leaves the kernel behind: on most images this one is better.
        """
        if self.deconvolved_at != self.steps_done:
            y = self.y[0, 0]
            self.images[DECONVOLVED] = deconvolve(y, kernel_between(y, x, k)).clamp(0, 1).to(y)
            self.deconvolved_at = self.steps_done

    def result(self):
        """The image (H, W), the centre of G_x(z_x) or of a mean, and the kernel (h, w), G_k(z_k), both on the CPU."""
        x, k = self._outputs()
        return centre(x, k.shape[-2:])[0, 0].cpu(), k[0, 0].cpu()

    @property
    def whole(self):
        """Whether the stage fits all of y, not only a window."""
        return self.target.shape == self.y.shape

    def quality(self):
        """What `selfdeblur.classical.quality.assess` says of the result so far."""
        x, k = self._outputs()
        return quality.assess(self.y[0, 0], x[0, 0], k[0, 0], self.disagreement)

    def image_state(self):
        """What `models` needs: the state of G_x, what it sees in a guided stage as ``guide``, and, where the image is a
        mean, the other part of it as ``other``."""
        self._outputs()
        state, settings = self.G_x.state_dict(), self.stages[self.stage]
        if settings.guided:
            state["guide"] = self.z_x
        if settings.mean_with is not None:
            state["other"] = self.images[settings.mean_with]
        return state

    def state_dict(self):
        """All that `load_state_dict` needs to go on as if there had been no interruption."""
        return {
            "stage": self.stage,
            "stage_begin": self.stage_begin,
            "kernels": {name: kernel.cpu() for name, kernel in self.kernels.items()},
            "images": {name: image.cpu() for name, image in self.images.items() if name != DECONVOLVED},
            "disagreement": self.disagreement,
            "kernel_starts": None if self.kernel_starts is None else self.kernel_starts.cpu(),
            "steps_done": self.steps_done,
            "losses": self.losses[: self.steps_done].cpu(),
            "slowed": self.slowed,
            "rng": self.rng.get_state(),
            "G_x": self.G_x.state_dict(),
            "G_k": self.G_k.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state):
        """Go on from a state that `state_dict` gave, of a run with the same image and settings."""
        starts = state["kernel_starts"]
        self.stage_end = state["stage_begin"]
        self._enter(state["stage"], None if starts is None else starts.to(self.y))
        self.kernels = {name: kernel.to(self.y) for name, kernel in state["kernels"].items()}
        self.images = {name: image.to(self.y) for name, image in state["images"].items()}
        self.disagreement, self.steps_done, self.deconvolved_at = state["disagreement"], state["steps_done"], None
        self.losses[: self.steps_done] = state["losses"]
        self.slowed = state["slowed"]
        if len(state["rng"]) == len(self.rng.get_state()):
            self.rng.set_state(state["rng"])
        else:  # of a generator of another device, as where a GPU hands a run over to the CPU
            self.rng.manual_seed(self.settings.seed + self.steps_done)
        self.G_x.load_state_dict(state["G_x"])
        self.G_k.load_state_dict(state["G_k"])
        self.optimiser.load_state_dict(state["optimiser"])


def draw_z_x(size, kernel_size, *, seed, rng=None):
    """Input of G_x for a blurry image of ``size`` (H, W): (1, 8, H + h - 1, W + w - 1), uniform within 0 to 0.1.

    ``rng``, a `torch.Generator`, is seeded and left where the noise of the steps goes on.
    """
    rng = rng or torch.Generator()
    rng.manual_seed(seed)
    shape = (1, Z_CHANNELS, size[0] + kernel_size[0] - 1, size[1] + kernel_size[1] - 1)
    return torch.rand(shape, generator=rng) * Z_SCALE


def draw_z_k(*, seed):
    """Input of G_k: 200 values, uniform within 0 to 0.1; the released program seeds anew before it draws them."""
    return torch.rand(Z_FEATURES, generator=torch.Generator().manual_seed(seed)) * Z_SCALE
