"""The method: two untrained generators fitted jointly to one blurry image.

Read `Run.gradient` next to section 3 of Ren et al., "Neural Blind Deconvolution
Using Deep Priors" (CVPR 2020). Everything here is a tensor; files, colours and
benchmarks are dealt with elsewhere.
"""

from functools import partial

import torch

from networks import KernelGenerator, SkipGenerator
from selfdeblur.forward import blur, blur_plain
from selfdeblur.losses import DSSIM, dssim_plain, mse, total_variation

Z_CHANNELS, Z_FEATURES, Z_SCALE = 8, 200, 0.1


class Run:
    """The fit of one image: the networks, the optimiser and all that a step needs.

    All random numbers are drawn on the CPU, so a seed means the same start on
    every device.

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
    """

    def __init__(self, y, kernel_size, settings, *, kernel=None, plain=False):
        self.y, self.settings, self.kernel = y, settings, kernel
        self.rng = torch.Generator()
        self.z_x = draw_z_x(y.shape[-2:], kernel_size, seed=settings.seed, rng=self.rng).to(y)
        self.z_k = draw_z_k(seed=settings.seed).to(y)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.G_x = SkipGenerator(Z_CHANNELS, plain=plain, low_memory=settings.low_memory).to(y)
            self.G_k = KernelGenerator(kernel_size).to(y)
        groups = [{"params": self.G_x.parameters(), "lr": settings.lr_image}]
        if kernel is None:
            groups.append({"params": self.G_k.parameters(), "lr": settings.lr_kernel})
        self.optimiser = torch.optim.Adam(groups, fused=not plain)
        self.rates = [group["lr"] for group in groups]
        self.blur = blur_plain if plain else blur
        self.dssim = partial(dssim_plain, y=y) if plain else DSSIM(y)
        self.steps_done = 0
        self.losses = torch.zeros(settings.num_iter, dtype=y.dtype, device=y.device)

    def step(self):
        """One step of Adam on the objective; the loss goes to ``losses``."""
        self.gradient()
        self.update()

    def gradient(self):
        """The objective and its gradient, by all that a step does but the update.

        Where it is given up by an exception, the run is as it was before.
        """
        settings, step = self.settings, self.steps_done
        before = self.rng.get_state()
        try:
            z_x = self.z_x
            if settings.input_noise:
                z_x = z_x + settings.input_noise * torch.randn(z_x.shape, generator=self.rng).to(z_x)
            x = self.G_x(z_x)
            k = self.kernel if self.kernel is not None else self.G_k(self.z_k)
            y_hat = self.blur(x, k)

            loss = mse(y_hat, self.y) if self.data_term(step) == "mse" else self.dssim(y_hat)
            if settings.tv_weight:
                loss = loss + settings.tv_weight * total_variation(x)

            self.optimiser.zero_grad()
            loss.backward()
        except BaseException:
            self.rng.set_state(before)
            raise
        self.losses[step] = loss.detach()

    def update(self):
        """Move the parameters by the gradient."""
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            halvings = sum(self.steps_done >= milestone for milestone in self.settings.milestones)
            group["lr"] = rate * 0.5**halvings
        self.optimiser.step()
        self.steps_done += 1

    def is_finite(self):
        """Whether the last loss and all parameters are numbers."""
        last = self.losses[max(self.steps_done - 1, 0)]
        parts = [last, *self.G_x.parameters(), *self.G_k.parameters()]
        return all(bool(torch.isfinite(part).all()) for part in parts)

    def data_term(self, step):
        """Name of the data term at a step (counted from 0): "mse" or "1-ssim"."""
        switch = self.settings.mse_steps
        return "mse" if switch is None or step < switch else "1-ssim"

    @torch.no_grad()
    def result(self):
        """The image (H, W), the centre of G_x(z_x), and the kernel (h, w), G_k(z_k), both on the CPU.

        z_x is taken as it is, without the noise of the steps, so the networks
        alone give the result again.
        """
        k = self.kernel if self.kernel is not None else self.G_k(self.z_k)
        return centre(self.G_x(self.z_x), k.shape[-2:])[0, 0].cpu(), k[0, 0].cpu()

    def state_dict(self):
        """All that `load_state_dict` needs to go on as if there had been no interruption."""
        return {
            "steps_done": self.steps_done,
            "losses": self.losses[: self.steps_done].cpu(),
            "rates": list(self.rates),
            "rng": self.rng.get_state(),
            "G_x": self.G_x.state_dict(),
            "G_k": self.G_k.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state):
        """Go on from a state that `state_dict` gave, of a run with the same image and settings."""
        self.steps_done = state["steps_done"]
        self.losses[: self.steps_done] = state["losses"]
        self.rates = list(state["rates"])
        self.rng.set_state(state["rng"])
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


def centre(x, kernel_size):
    """The part of G_x's output (..., H + h - 1, W + w - 1) that lies over the blurry image: (..., H, W)."""
    h, w = kernel_size
    return x[..., h // 2 : x.shape[-2] - h // 2, w // 2 : x.shape[-1] - w // 2]
