"""Sharp image for a known kernel, and kernel for a known sharp image.

`deconvolve` has the sparse gradient prior of Levin, Fergus, Durand and Freeman,
"Image and depth from a conventional camera with a coded aperture", SIGGRAPH
2007. Everything is greyscale; every kernel is meant in the correlation sense of
`selfdeblur.forward`.
"""

import numpy as np
import torch
import torch.nn.functional as F

from selfdeblur.classical.clipped import away_from_lights, lights, of_gradients
from selfdeblur.classical.judge import noise_level
from selfdeblur.classical.kernels import centred
from selfdeblur.classical.linear import (
    Correlation,
    conjugate_gradients,
    differences,
    differences_transposed,
    gradient_pairs,
    to_simplex,
)
from selfdeblur.classical.recorded import Recorded

# Weight of the sparse prior in a deconvolution with a noise of LITTLE_NOISE. It goes with a power of the noise, but not
# below a share: there it is the errors of the kernel that call for it.
PRIOR_WEIGHT, LITTLE_NOISE, NOISE_POWER, LEAST_SHARE = 1e-4, 4e-3, 1.5, 0.7

# Weight of each of the five `differences` in the prior: second ones count a quarter.
DIFFERENCE_WEIGHTS = (1.0, 1.0, 0.25, 0.25, 0.25)


def deconvolve(
    y: torch.Tensor | np.ndarray,
    kernel: torch.Tensor | np.ndarray,
    *,
    weight: float | None = None,
    exponent: float = 0.8,
    rounds: int = 7,
    steps: int = 20,
) -> torch.Tensor:
    """Find the sharp image for a known kernel.

    Minimises ``|y - k ⊗ x|^2 + weight * sum |D x|^exponent`` by iteratively
    reweighted least squares, D being the first and, at a quarter of the
    weight, the second differences of x. The error is summed over the blurry
    image's pixels only: nothing is assumed about what lies outside. A pixel
    that is nearly white and would be brighter still is left out, where such
    pixels are few, as lights are.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    kernel : tensor or ndarray, (h, w)
        Kernel, correlation sense.
    weight : float, optional
        Strength of the sparse gradient prior; by default that of `prior_weight` for the noise of y.
    exponent : float
        Shape of the prior.
    rounds, steps : int
        Times the weights are renewed; conjugate gradient steps for each.

    Returns
    -------
    tensor of float32, (H + h - 1, W + w - 1)
        Sharp image on the padded grid of the forward model; the blurry image's
        own region is its middle.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    kernel = torch.as_tensor(kernel, dtype=torch.float32, device=y.device)
    weight = prior_weight(noise_level(y)) if weight is None else weight
    blur = Correlation(y.shape, kernel.shape)
    k_spectrum = blur.spectrum(kernel)
    k_conjugate = k_spectrum.conj_physical()
    (top, left) = (n // 2 for n in kernel.shape)
    x = F.pad(y[None, None], (left, kernel.shape[1] - 1 - left, top, kernel.shape[0] - 1 - top), mode="replicate")[0, 0]
    white = lights(y)
    weights = [torch.full_like(d, s) for d, s in zip(differences(x), DIFFERENCE_WEIGHTS, strict=True)]

    def once_more(x, *weights, first):
        if white is not None:
            blur.mask = None
            brighter = white if first else blur.forward(blur.spectrum(x), k_conjugate) > 1
            blur.mask = (~(white & brighter)).to(y)
        right_side = blur.transpose_in_x(blur.masked(y), k_spectrum)

        def matrix(v):
            data = blur.transpose_in_x(blur.forward(blur.spectrum(v), k_conjugate), k_spectrum)
            weighted = [a * d for a, d in zip(weights, differences(v), strict=True)]
            return data + weight * differences_transposed(weighted)

        x, _ = conjugate_gradients(matrix, right_side, x, steps)
        weights = [
            s * d.abs().clamp(min=0.01) ** (exponent - 2)
            for d, s in zip(differences(x), DIFFERENCE_WEIGHTS, strict=True)
        ]
        return x, *weights

    with Recorded(once_more) as renew:
        for number in range(rounds + 1):
            x, *weights = renew(x, *weights, first=number == 0)
    return x


def prior_weight(noise):
    """Weight of the sparse prior for an image with noise of a standard deviation."""
    return PRIOR_WEIGHT * max((noise / LITTLE_NOISE) ** NOISE_POWER, LEAST_SHARE)


def fit_kernel(model, y, x, kernel, *, weight, steps):
    """Fit the kernel to given blurry and sharp images: least squares on the simplex.

    Minimises ``|y - k ⊗ x|^2 + weight * |k|^2`` over non-negative kernels of
    sum 1 by accelerated projected gradients, with a restart whenever a step
    turns against the last one.

    Parameters
    ----------
    model : Correlation
        Sizes of the forward model, of pairs of images, and what of y is left out.
    y : complex tensor (H, W)
        Two blurry images (here: the gradients) that share the kernel.
    x : complex tensor (..., H + h - 1, W + w - 1)
        Their sharp images.
    kernel : tensor (..., h, w)
        Where to start.
    weight : float or tensor that goes with (..., h, w)
    steps : int

    Returns
    -------
    tensor (..., h, w)
    """
    x_spectrum = model.spectrum(x)
    x_conjugate = x_spectrum.conj_physical()

    def matrix(k):
        k_conjugate = model.spectrum(k).conj_physical()
        return model.transpose_in_k(model.forward(x_spectrum, k_conjugate), x_conjugate) + weight * k

    def norm(k):
        return k.square().sum((-2, -1), keepdim=True).sqrt()

    right_side = model.transpose_in_k(model.masked(y), x_conjugate)
    direction = kernel / norm(kernel)
    for _ in range(8):
        product = matrix(direction)
        largest = norm(product).clamp(min=1e-12)
        direction = product / largest
    largest = 1.05 * largest
    ahead, t = kernel, torch.ones_like(largest)
    for _ in range(steps):
        new = to_simplex(ahead - (matrix(ahead) - right_side) / largest)
        turned = ((ahead - new) * (new - kernel)).sum((-2, -1), keepdim=True) > 0
        t = t.masked_fill(turned, 1)
        t_new = (1 + (1 + 4 * t * t).sqrt()) / 2
        ahead = new + (t - 1) / t_new * (new - kernel)
        kernel, t = new, t_new
    return kernel


def refine_kernel(y, kernel, *, rounds=1, kernel_weight=0.7, kernel_steps=20, within=None):
    """Sharpen a good kernel: alternate `deconvolve` and the least squares kernel at full scale.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    kernel : tensor or ndarray, (h, w)
        Kernel to start from.
    rounds : int
        More than a few drift: with a low weight the kernel turns ever
        narrower, with a high one ever wider.
    kernel_weight : float
        As in `coarse_to_fine_kernels`.
    kernel_steps : int
        Steps of `fit_kernel`.
    within : tensor of bool (h, w), optional
        Where the kernel may have entries; what a round finds elsewhere is left out.

    Returns
    -------
    tensor of float32, (h, w)
        Kernel as `estimate_kernel` returns it.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    kernel = torch.as_tensor(kernel, dtype=torch.float32, device=y.device)
    for _ in range(rounds):
        kernel = kernel_between(y, deconvolve(y, kernel), kernel, kernel_weight=kernel_weight, steps=kernel_steps)
        if within is not None:
            kernel = kernel * within
            kernel = kernel / kernel.sum()
    return centred(kernel)


def kernel_between(y, x, kernel, *, kernel_weight=0.2, steps=20):
    """The least squares kernel from a sharp image x (H + h - 1, W + w - 1) to the blurry image y (H, W), of gradients.

    ``kernel`` (h, w) is where to start; ``kernel_weight`` is as in `coarse_to_fine_kernels`. Where x is what a network
    made, its errors are of no one kernel's making, and less weight will do than in `refine_kernel`.
    """
    mask = of_gradients(away_from_lights(y))
    y = gradient_pairs(y)
    model = Correlation(y.shape, kernel.shape, mask, pairs=True)
    weight = kernel_weight * model.masked(y).abs().square().sum()
    return fit_kernel(model, y, gradient_pairs(x), kernel, weight=weight, steps=steps)
