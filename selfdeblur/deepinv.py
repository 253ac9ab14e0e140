"""SelfDeblur as a reconstructor of deepinv, https://deepinv.org, for comparisons with the methods there.

deepinv is an extra: ``pip install "selfdeblur[deepinv]"``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdeblur.api import start, take_steps
from selfdeblur.checks import check_image, check_kernel_size
from selfdeblur.classical import deconvolve
from selfdeblur.classical.size import estimate_size
from selfdeblur.colour import chroma, from_luminance_and_chroma, luminance
from selfdeblur.errors import MissingExtraError, UserError
from selfdeblur.forward import centre
from selfdeblur.restore import CHROMA_EFFORT
from selfdeblur.settings import check_known_kernel, make_settings

try:
    from deepinv.models import Reconstructor
    from deepinv.physics import Blur, BlurFFT, Physics
except ImportError as error:
    raise MissingExtraError(f'selfdeblur.deepinv needs deepinv: pip install "selfdeblur[deepinv]" ({error})') from error
except RuntimeError as error:  # of torchvision, where it was made for another PyTorch
    found = str(error).strip().split("\n")[0]
    line = f"selfdeblur.deepinv: PyTorch and torchvision are no pair: install both anew ({found})"
    raise MissingExtraError(line) from error

# Noise takes a measurement beyond 0 to 1. One that goes further is of another range.
BEYOND = 0.5


class SelfDeblur(Reconstructor):
    """Blind deblurring by SelfDeblur (Ren et al., CVPR 2020) as a `deepinv.models.Reconstructor`.

    Nothing is trained: `forward` fits networks to each image by itself, which takes a minute or more an image on a
    CPU. The filter of the physics is not looked at, but for its size.

    Parameters
    ----------
    preset : {"fast", "best", "release", "paper"}
        See `selfdeblur.PRESETS`.
    kernel_size : int or (int, int), optional
        Size (h, w) of the kernel in pixels, odd. By default that of the filter of the physics, or, where the physics
        has none, estimated from y (the largest of a batch).
    num_iter : int, optional
        Steps; by default those of the preset.
    seed : int
        Of the networks and of their inputs, the same for each image, so that a result does not depend on the rest of
        the batch.
    **changes
        Further fields of `selfdeblur.Settings`.

    Attributes
    ----------
    kernel_ : tensor (B, 1, h, w)
        After `forward`: the kernel of each image, non-negative, sum 1, for a convolution, as the ``filter`` of
        `deepinv.physics.Blur` is. `selfdeblur.deblur` gives it turned by 180 degrees, for a correlation.
    quality_ : list of dict
        After `forward`: what speaks for or against the result of each image, with ``doubtful`` and ``reasons``.

    Raises
    ------
    MissingExtraError
        At the import of this module, where deepinv is missing or cannot be loaded.
    UserError
        If preset, size or a setting is not usable.

    Examples
    --------
    >>> import torch
    >>> from deepinv.physics import Blur
    >>> from selfdeblur.deepinv import SelfDeblur
    >>> physics = Blur(torch.ones(1, 1, 1, 5) / 5, padding="valid")
    >>> y = physics(torch.rand(1, 1, 48, 52, generator=torch.Generator().manual_seed(0)))
    >>> model = SelfDeblur("release", num_iter=2)
    >>> x = model(y, physics)
    >>> y.shape, x.shape, model.kernel_.shape
    (torch.Size([1, 1, 48, 48]), torch.Size([1, 1, 48, 52]), torch.Size([1, 1, 1, 5]))
    >>> physics.update(filter=model.kernel_)
    >>> residual = physics.A(x) - y
    """

    kernel_: Tensor
    quality_: list[dict[str, Any]]

    def __init__(
        self,
        preset: str = "fast",
        kernel_size: int | Sequence[int] | None = None,
        *,
        num_iter: int | None = None,
        seed: int = 0,
        **changes: Any,
    ):
        super().__init__()
        check_known_kernel(preset, False)
        self.settings = make_settings(preset, num_iter=num_iter, seed=seed, **changes)
        self.kernel_size = None if kernel_size is None else check_kernel_size(kernel_size)

    def forward(self, y: Tensor, physics: Physics, **kwargs: Any) -> Tensor:
        """Deblur a batch of images, one after the other, on the device of y.

        Parameters
        ----------
        y : tensor (B, 1, H, W) or (B, 3, H, W)
            Blurry images, grey or red, green, blue, range 0 to 1; what noise has taken beyond is limited to it. The
            kernel of a colour image is that of its luminance.
        physics : `deepinv.physics.Blur` or `deepinv.physics.BlurFFT`
            Says by its padding which size x has, and by its filter, if it has one, which size the kernel has.
        **kwargs
            Not used.

        Returns
        -------
        tensor, of the type and device of y and with no gradient
            Sharp images x, range 0 to 1. For a physics with ``padding="valid"``, whose measurement is smaller than
            the image, (B, C, H + h - 1, W + w - 1), where h and w are the size of the kernel; of this, the outer
            pixels are known only as far as they reach into y. For every other padding, (B, C, H, W): the method
            assumes nothing of what lies beyond the border, so that the residual next to it means little.

        Raises
        ------
        UserError
            If y or the physics is of another kind, or a filter's size is even and no ``kernel_size`` was given.
        """
        if not isinstance(physics, Blur | BlurFFT):
            raise UserError(f"physics: {type(physics).__name__}: a deepinv.physics.Blur or BlurFFT is needed")
        images = [check_image(image) for image in _arrays(y)]
        size = self.kernel_size or _size_of_filter(physics) or _largest(estimate_size(luminance(i)) for i in images)
        # A fit needs gradients of its own, wherever it is called.
        with torch.inference_mode(False), torch.enable_grad():
            results = [self._solve(image, size, y.device) for image in images]
        x, kernels, qualities = zip(*results, strict=True)
        self.kernel_ = torch.stack(kernels)[:, None].flip(-2, -1).to(y)
        self.quality_ = list(qualities)
        x = torch.stack(x)
        return (x if getattr(physics, "padding", None) == "valid" else centre(x, size)).to(y)

    def _solve(self, image, size, device):
        """Sharp image (C, H + h - 1, W + w - 1), kernel (h, w) in correlation sense, and quality, of an image."""
        run = start(image, size, self.settings, device=device)
        take_steps(run)
        output = run.output()
        x, kernel = output.x.detach(), output.kernel.detach()
        if image.ndim == 2:
            return x[None], kernel, run.quality(output)
        sharp = [deconvolve(part, kernel, **CHROMA_EFFORT).cpu().numpy() for part in chroma(image)]
        x = from_luminance_and_chroma(x.cpu().numpy(), *sharp)
        return torch.from_numpy(x).to(device).movedim(-1, 0), kernel, run.quality(output)


def _arrays(y):
    """The images (H, W) or (H, W, 3) of a batch, limited to 0 to 1."""
    if not isinstance(y, Tensor) or y.dim() != 4 or y.shape[1] not in (1, 3) or not y.is_floating_point():
        found = f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"y: a tensor (B, 1, H, W) or (B, 3, H, W) of floats is needed, found {found}")
    if not y.numel():
        raise UserError(f"y: the batch is empty, {tuple(y.shape)}")
    if float(y.min()) < -BEYOND or float(y.max()) > 1 + BEYOND:
        raise UserError(f"y: the range is 0 to 1, found {float(y.min()):.3g} to {float(y.max()):.3g}")
    images = y.detach().clamp(0, 1).movedim(1, -1).float().cpu().numpy()
    return [np.ascontiguousarray(image[:, :, 0] if y.shape[1] == 1 else image) for image in images]


def _size_of_filter(physics):
    if physics.filter is None:
        return None
    h, w = physics.filter.shape[-2:]
    if h % 2 == 0 or w % 2 == 0:
        raise UserError(f"physics: its filter is {h} x {w}, and both sizes have to be odd; or give a kernel_size")
    return h, w


def _largest(sizes):
    return tuple(max(size) for size in zip(*sizes, strict=True))
