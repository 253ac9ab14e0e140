"""How far a result may be trusted, judged without the sharp image."""

import torch

from selfdeblur.classical.deconvolution import deconvolve
from selfdeblur.classical.judge import POINT_EXTENT, extent, judged_window, noise_level
from selfdeblur.classical.kernels import share_on_rim
from selfdeblur.classical.linear import smooth
from selfdeblur.classical.search import refitted
from selfdeblur.classical.simple import is_simple
from selfdeblur.classical.spectrum import Spectrum
from selfdeblur.forward import blur, centre
from selfdeblur.settings import DOUBT

# `ringing` from which on a kernel is doubted. Images deconvolved with their true kernels leave the range by 0 to 0.035
# of the contrast, with the kernel turned by 90 or 180 degrees or a third too wide by more than 0.05 where there is
# black or white to leave.
MOST_RINGING = 0.05

# Deviation of the Gaussian under which two images are compared: a share of the kernel's size, and not below so many
# pixels. What a kernel does wrong at large, ghosts and halos, is left after it; the width of a small kernel is
# uncertain by a pixel or so.
COMPARED_SIGMA_SHARE, LEAST_COMPARED_SIGMA = 1 / 9, 3.0

# ``kernel_spread`` from which on a kernel is doubted, if it has more entries than a small one: a camera shake is a thin
# trail in its square, while fits that found nothing stay near the flat kernel, which has 1. Below 5 x 5 a true kernel
# may fill its square.
MOST_SPREAD, SMALL_KERNEL = 0.5, 25

# ``kernel_rim`` from which on the kernel may be cut off: a size that is large enough leaves the rim nearly empty.
MOST_ON_RIM = 0.1

# ``contrast`` below which the image is flat: taking away blur adds contrast, so less than half of y's is a failure.
LEAST_CONTRAST = 0.5

# ``misfit`` from which on image and kernel do not explain y: so much, for what a fit leaves without any noise, and
# twice the deviation of the noise of y.
MOST_MISFIT, MISFIT_OF_NOISE = 0.02, 2

# ``shortfall`` from which on a kernel does not explain the power spectrum of y, in nats for each frequency: so much and
# the second over the root of the number of frequencies, of which few say less. Of the development half of the zoo 10
# kernels of 24 that give 2.5 dB less than the true one have more, and 2 of 36 others, both of pictures with clipped
# lights. A true kernel has -0.02 to 0.03, more where edges are parallel, as in pages.
MOST_SHORTFALL, OF_FEW_FREQUENCIES = 0.03, 0.75

# `astray` from which on the search is not believed, and the scales that it passes in a trial. Of 50 kernels of the
# development half of the zoo and of Levin that a search found and no simple form explains, four are above it: three of
# the seven that give 3 dB less than the true one, and the worst of Levin. The largest of the others is 0.081.
MOST_ASTRAY, SCALES_OF_TRIAL = 0.085, 5

# A pixel of y is not explained by a light that has less than this share in it.
LITTLE_OF_A_LIGHT = 1e-3


def assess(y, x, kernel, disagreed=None, *, lights=False, searched=False, image=None):
    """Look for the ways in which blind deconvolution is known to fail.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    x : tensor (H + h - 1, W + w - 1)
        Sharp image on the padded grid, 0..1.
    kernel : tensor (h, w)
        Kernel, sum 1, correlation sense.
    disagreed : float, optional
        `disagreement` of two estimates of the kernel, if there were two.
    lights : bool
        Whether there are lights in x, which are brighter than white: they ring with any kernel, and where they are
        blurred to y need not be explained.
    searched : bool
        Whether the kernel comes from a search, which is to stand a trial then, see `astray`. That of a kernel of a
        simple form, or of trails of lights, says nothing.
    image : tensor (H + h - 1, W + w - 1), optional
        What `selfdeblur.classical.deconvolve` makes of y with the kernel, if that is there.

    Returns
    -------
    dict
        ``doubtful`` (bool), ``reasons`` (list of str) and the measures behind
        them: ``kernel_extent``, see `selfdeblur.classical.judge.extent`;
        ``kernel_spread``, the exponential of the entropy over the number of
        entries, 1 for a flat kernel; ``kernel_rim``, the share of the sum in
        the outermost row and column at each side; ``contrast``, standard
        deviation of the image over that of y; ``ringing``, see `ringing`; ``misfit``, root mean square of
        y - k ⊗ x; ``shortfall``, see `spectrum.Spectrum.shortfall`; ``astray``, see there; ``disagreement``.
    """
    size = kernel.shape
    error = blur(x[None, None], kernel[None, None])[0, 0] - y
    if lights:
        bright = (x >= 1).to(x)
        error = error[blur(bright[None, None], kernel[None, None])[0, 0] < LITTLE_OF_A_LIGHT]
    shortfall, falls_short = shortfall_of(y, kernel)
    image = deconvolve(y, kernel) if image is None else image
    measures = {
        "kernel_extent": extent(kernel),
        "kernel_spread": torch.special.entr(kernel).sum().exp() / kernel.numel(),
        "kernel_rim": share_on_rim(kernel),
        "contrast": centre(x, size).std() / y.std().clamp(min=1e-6),
        "ringing": ringing(y, image, size),
        "misfit": error.square().mean().sqrt(),
        "shortfall": shortfall,
    }
    if searched and kernel.numel() > 1 and not lights and not is_simple(kernel):
        measures["astray"] = astray(y, image, kernel)
    measures = {name: round(float(value), 5) for name, value in measures.items()}
    reasons = []
    if kernel.numel() > 1 and measures["kernel_extent"] < POINT_EXTENT:
        reasons.append("the kernel is next to a single point: nothing was deblurred")
    if kernel.numel() > SMALL_KERNEL and measures["kernel_spread"] > MOST_SPREAD:
        reasons.append("the kernel is spread over all of its size")
    if measures["kernel_rim"] > MOST_ON_RIM:
        reasons.append("the kernel touches its border: try a larger kernel size")
    if measures["contrast"] < LEAST_CONTRAST:
        reasons.append("the image is flat")
    if measures["ringing"] > MOST_RINGING and not lights:
        reasons.append("the kernel makes an image that rings")
    if measures["misfit"] > MOST_MISFIT + MISFIT_OF_NOISE * noise_level(y):
        reasons.append("image and kernel do not explain the blurry image")
    if falls_short and not lights:
        reasons.append("the kernel does not explain the spectrum of the blurry image")
    if measures.get("astray", 0) > MOST_ASTRAY:
        reasons.append("the search loses a kernel that is known in a picture like this one")
    if disagreed is not None:
        measures["disagreement"] = round(disagreed, 5)
        if disagreed > DOUBT:
            reasons.append("two estimates of the kernel disagree")
    return {"doubtful": bool(reasons), "reasons": reasons, **measures}


def shortfall_of(y, kernel):
    """`spectrum.Spectrum.shortfall` of a kernel (h, w) in an image y (H, W), and whether it is too much; else 0."""
    y = y[judged_window(y, kernel.shape)]
    spectrum = Spectrum(y, noise_level(y))
    if kernel.numel() == 1 or not spectrum.enough:
        return 0.0, False
    shortfall = float(spectrum.shortfall(kernel))
    return shortfall, shortfall > MOST_SHORTFALL + OF_FEW_FREQUENCIES / len(spectrum.power) ** 0.5


def stands_alone(y, kernel):
    """Whether a kernel (h, w) of an image y (H, W) needs no networks: a simple form that explains the spectrum of y."""
    return is_simple(kernel) and not shortfall_of(y, kernel)[1]


def ringing(y, image, size):
    """How far the image deconvolved with a kernel overshoots black and white.

    An error of the kernel makes ripples along every strong edge; nothing keeps
    `selfdeblur.classical.deconvolve` within the range of an image. Where y is
    clipped it overshoots for any kernel, and is not to be trusted either.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    image : tensor (H + h - 1, W + w - 1)
        What `selfdeblur.classical.deconvolve` makes of y with the kernel.
    size : (int, int)
        Size (h, w) of the kernel.

    Returns
    -------
    float
        Root mean square of what lies below 0 or above 1, over the standard
        deviation of y.
    """
    x = centre(image[None, None], size)
    return float((x - x.clamp(0, 1)).square().mean().sqrt() / y.std().clamp(min=1e-3))


def astray(y, image, kernel):
    """How far a search is led astray in a picture like this one, from a kernel that is known.

    The image deconvolved with the kernel is blurred by the same kernel, turned left for right, with as much noise as y
    has. From there the finest scales of the search (`selfdeblur.classical.search.refitted`) are to stay where they
    are. In grass and tissue, and where hardly any edges are, they do not, as the sharp image of few gradients is
    wrong there; and where they do not, what they found in y is not to be trusted.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1; of a large one the part that `judged_window` takes.
    image : tensor (H + h - 1, W + w - 1)
        What `selfdeblur.classical.deconvolve` makes of y with the kernel.
    kernel : tensor (h, w)
        Kernel, sum 1, correlation sense.

    Returns
    -------
    float
        `disagreement` of the images that the known kernel and the one it has become make of the trial.
    """
    size = kernel.shape
    part = judged_window(y, size)
    y = y[part]
    sharp = image[tuple(slice(p.start, p.stop + n - 1) for p, n in zip(part, size, strict=True))]
    known = kernel.flip(1)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    trial = blur(sharp.clamp(0, 1)[None, None], known[None, None])[0, 0] + noise_level(y) * noise
    found = refitted(trial, known, scales=SCALES_OF_TRIAL)
    return disagreement(trial, deconvolve(trial, known), deconvolve(trial, found), size)


def disagreement(y, first, second, size):
    """How much two sharp images of one blurry image differ at large, in shares of the blurry image's contrast.

    The images are those that two kernels give. They are low-passed, because fine detail differs for small errors of
    a kernel already, while ghosts and halos show that one of them is wrong. A
    shift between the two, which means nothing, is taken out to first order.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    first, second : tensor (H + h - 1, W + w - 1)
        What `selfdeblur.classical.deconvolve` makes of y with either kernel.
    size : (int, int)
        Size (h, w) of the kernels.

    Returns
    -------
    float
        Root mean square of the difference, border aside, over the standard
        deviation of y.
    """
    sigma = max(max(size) * COMPARED_SIGMA_SHARE, LEAST_COMPARED_SIGMA)
    # Half a kernel at each side is left out, y does not determine it.
    one, two = (smooth(centre(x[None, None], size)[0, 0], sigma) for x in (first, second))
    mean = (one + two) / 2
    shifts = torch.stack([(mean[1:-1, 2:] - mean[1:-1, :-2]).flatten(), (mean[2:, 1:-1] - mean[:-2, 1:-1]).flatten()])
    difference = (one - two)[1:-1, 1:-1].flatten()
    products = shifts @ shifts.T + 1e-6 * torch.eye(2, dtype=y.dtype, device=y.device)
    difference = difference - torch.linalg.solve(products, shifts @ difference) @ shifts
    return float(difference.std() / y.std().clamp(min=1e-3))
