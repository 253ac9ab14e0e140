"""The method: two untrained generators fitted jointly to one blurry image.

Read `Fit.objective` next to section 3 of Ren et al., "Neural Blind Deconvolution
Using Deep Priors" (CVPR 2020). Everything here is a tensor, and the fit is all
there is; what may come before and after it is in `selfdeblur.stages`.
"""

from functools import partial

import torch

from networks import KernelGenerator, SkipGenerator
from selfdeblur.forward import blur, blur_plain
from selfdeblur.losses import DSSIM, dssim_plain, mse, total_variation
from selfdeblur.precision import arithmetic, generator_type, gradient_scale, scaled_gradient, unscale

# Size and range of the inputs: channels of z_x, values of z_k, both uniform within 0 to Z_SCALE.
Z_CHANNELS, Z_FEATURES, Z_SCALE = 8, 200, 0.1


class Fit:
    """The joint fit of G_x and G_k to one blurry image y.

    Inputs and networks are drawn on the CPU, so a seed means the same start on
    every device.

    Parameters
    ----------
    y : tensor (1, 1, H, W)
        Blurry image, range 0 to 1; its device and type are those of the fit.
    kernel_size : tuple of int
        (h, w), odd.
    settings : Settings
    kernel : tensor (1, 1, h, w), optional
        Known kernel in correlation sense; with it only G_x is fitted.
    start : tensor (h, w), optional
        Kernel that G_k starts at; without one it starts as it is drawn.
    losses : tensor (num_iter,), optional
        Where the objective at each step is written to.
    plain : bool
        Take every piece in its plain form: slower, the same numbers to rounding.

    Attributes
    ----------
    steps_done : int
    slowed : int
        How often the learning rates were halved besides the milestones.
    """

    def objective(self, z_x, data_term):
        """What is minimised, for an input z_x of G_x: a data term, "mse" or "1-ssim", and lambda TV(x).

        The paper has "mse" and lambda = 1e-6 at every step (equation 6). The
        released program has lambda = 0 and "mse" first, "1-ssim" after it.
        """
        with generator_type(self.settings.precision, z_x.device):
            x = self.G_x(z_x)  # section 3.1: within 0 to 1 by a sigmoid
        x = scaled_gradient(x, self.scale)  # with float16, else x as it is
        k = self.kernel if self.kernel is not None else self.G_k(self.z_k)  # section 3.2: >= 0, sum 1 by a softmax
        y_hat = self.blur(x, k)  # equation 1: y = k ⊗ x + n

        loss = mse(y_hat, self.y) if data_term == "mse" else self.dssim(y_hat)
        if self.settings.tv_weight:
            loss = loss + self.settings.tv_weight * total_variation(x)
        return loss

    def step(self):
        """One step of Adam on the objective; the loss goes to ``losses``."""
        self.gradient()
        self.update()

    def gradient(self):
        """The objective and its gradient, by all that a step does but the update.

        Where it is given up by an exception, the fit is as it was before.
        """
        before = self.rng.get_state()
        try:
            z_x = self.z_x
            if self.settings.input_noise:
                z_x = z_x + self.settings.input_noise * self.draw_noise(z_x)
            with self.arithmetic():
                loss = self.objective(z_x, self.settings.data_term(self.steps_done))
                self.optimiser.zero_grad()
                self.backward(loss)
        except BaseException:
            self.rng.set_state(before)
            raise
        self.losses[self.steps_done] = loss.detach()

    def backward(self, loss):
        """The backward pass of an objective."""
        loss.backward()
        unscale(self.G_x.parameters(), self.scale, self.optimiser)

    def update(self):
        """Move the parameters by the gradient."""
        for group, rate in zip(self.optimiser.param_groups, self.current_rates(), strict=True):
            group["lr"] = rate
        self.optimiser.step()
        self.steps_done += 1

    def current_rates(self):
        """Learning rates of the step to come, of G_x and, unless the kernel is known, of G_k."""
        halvings = self.slowed + sum(self.steps_done >= milestone for milestone in self.settings.milestones)
        return [rate * 0.5**halvings for rate in self.rates]

    def __init__(self, y, kernel_size, settings, *, kernel=None, start=None, losses=None, plain=False):
        self.y, self.kernel = y, kernel
        self.kernel_size, self.settings = kernel_size, settings
        self.losses = y.new_zeros(settings.num_iter) if losses is None else losses
        self.steps_done = self.slowed = 0
        self.scale = gradient_scale(settings.precision, y)
        self._draw(plain)
        if start is not None:
            self.G_k.start_at(self.z_k, start)
        self.blur = blur_plain if plain else blur
        self.dssim = partial(dssim_plain, y=y) if plain else DSSIM(y)
        fitted = [(self.G_x, settings.lr_image)]
        if kernel is None:
            fitted.append((self.G_k, settings.lr_kernel))
        self.rates = [rate for _, rate in fitted]
        groups = [{"params": net.parameters(), "lr": rate} for net, rate in fitted]
        self.optimiser = torch.optim.Adam(groups, fused=not plain or self.scale is not None)

    def _draw(self, plain):
        """Draw inputs and networks, and set up the generator of the noise of the steps."""
        y, settings = self.y, self.settings
        self.rng = torch.Generator()
        self.z_x = draw_z_x(y.shape[-2:], self.kernel_size, seed=settings.seed, rng=self.rng).to(y)
        if settings.noise_from == y.device.type == "cuda":
            self.rng = torch.Generator(y.device).manual_seed(settings.seed)
        self.z_k = draw_z_k(seed=settings.seed).to(y)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.G_x = SkipGenerator(
                Z_CHANNELS,
                channels=settings.channels,
                non_local_from=2 if settings.non_local else len(settings.channels),
                plain=plain,
                low_memory=settings.low_memory,
            ).to(y)
            self.G_k = KernelGenerator(self.kernel_size).to(y)

    @property
    def noise_on_device(self):
        """Whether the noise of the steps is drawn where the fit is, and not on the CPU."""
        return self.rng.device.type == self.y.device.type

    def draw_noise(self, like):
        """The noise of a step, standard normal, of the shape, type and device of ``like``."""
        return torch.randn(like.shape, generator=self.rng, device=self.rng.device).to(like)

    def arithmetic(self):
        """Context of all forward and backward passes of this fit."""
        return arithmetic(self.settings.precision, self.y.device)

    @torch.no_grad()
    def outputs(self):
        """G_x(z_x) (1, 1, H + h - 1, W + w - 1) and k (1, 1, h, w), without the noise of the steps."""
        with self.arithmetic(), generator_type(self.settings.precision, self.y.device):
            x = self.G_x(self.z_x)
        return x, self.kernel if self.kernel is not None else self.G_k(self.z_k)

    @torch.no_grad()
    def residual(self):
        """Root mean square of y - k ⊗ x, without the noise of the steps."""
        with self.arithmetic():
            return float(mse(self.blur(*self.outputs()), self.y).sqrt())

    def is_finite(self):
        """Whether the losses so far and all parameters are numbers."""
        parts = [self.losses[: self.steps_done], *self.G_x.parameters(), *self.G_k.parameters()]
        return all(bool(torch.isfinite(part).all()) for part in parts)

    def state_dict(self):
        """All that `load_state_dict` needs to go on as if there had been no interruption."""
        return {
            "steps_done": self.steps_done,
            "slowed": self.slowed,
            "losses": self.losses[: self.steps_done].cpu(),
            "rng": self.rng.get_state(),
            "scale": self.scale,
            "G_x": self.G_x.state_dict(),
            "G_k": self.G_k.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state):
        """Go on from a state that `state_dict` gave, of a fit that was made with the same arguments."""
        self.steps_done = state["steps_done"]
        self.slowed = state["slowed"]
        self.losses[: self.steps_done] = state["losses"]
        if len(state["rng"]) == len(self.rng.get_state()):
            self.rng.set_state(state["rng"])
        else:  # of a generator of another device, as where a GPU hands a run over to the CPU
            self.rng.manual_seed(self.settings.seed + self.steps_done)
        if self.scale is not None:
            self.scale.copy_(state["scale"])
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
