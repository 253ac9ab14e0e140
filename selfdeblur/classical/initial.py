"""A first guess of kernel and sharp image by classical means: no training, no generator.

`coarse_to_fine_kernels` alternates, from a coarse to the full scale, between a
sharp image whose gradients are few (the L0 prior of Xu, Zheng and Jia,
"Unnatural L0 sparse representation for natural image deblurring", CVPR 2013)
and the kernel that best explains the blurry gradients given the sharp ones. Where most
of the image may be background, as a page or the night sky is, the sharp image
may be asked to differ from it at few pixels, too (Pan, Hu, Su and Yang,
"Deblurring text images via L0-regularized intensity and gradient prior", CVPR
2014).
It does so with several settings from many starts, of which
ever fewer go on to the next scale: those of least `free_energy`. It searches so
more than once, from different scales on, and joins the searches near the end.
`estimate_kernel` refines the best kernel. `deconvolve` finds the sharp image
for a given kernel, with the sparse gradient prior of Levin, Fergus, Durand and
Freeman, "Image and depth from a conventional camera with a coded aperture",
SIGGRAPH 2007.

Everything here is greyscale, and every kernel is meant in the correlation
sense of `selfdeblur.forward`.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len

from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.losses import gaussian

PYRAMID_RATIO = 2**0.5
COARSEST_IMAGE, COARSEST_KERNEL = 30, 5

# The fits below make the faint parts of a trail too faint; a power below 1 lifts them.
POWERS = (1.0, 0.9, 0.75, 0.6)

# No single setting suits all images: a heavier weight finds what another misses; the last two find the kernels of text.
SETTINGS = (
    {"kernel_weight": 0.15},
    {"kernel_weight": 0.45},
    {"gradient_weight": 1e-2},
    {"gradient_weight": 1e-2, "background": True},
    {"gradient_weight": 2e-2, "background": True},
)

# What becomes of a large kernel depends on where it starts. A setting has STARTS; beyond level EARLY, which only large
# kernels reach, twice as many at each coarser scale, up to four times; fewer if they have more than START_PIXELS.
STARTS, EARLY, START_PIXELS = 12, 4, 200_000

# Searches: the size of kernel from which each starts, and the seed of its starts. Five pixels are too few to tell some
# kernels apart, and what is lost at a scale does not come back. Whether a search finds a large kernel is a matter of
# luck, so there are several; one costs little before the JOINED-th finest scale, from where on all are one.
SEARCHES = ((COARSEST_KERNEL, 0), (9, 1), (13, 2))
JOINED = 3

# Where the result is doubtful, once more, with other starts.
AGAIN = ((9, 3),)

# Kernels that go on to full scale. At each coarser scale there are GROWTH times as many, and beyond level EARLY the
# square of that: with fewer, large kernels, which are found from many scales on, were lost on the way.
KEPT, GROWTH = 4, 2**0.5

# Kernels are fitted and judged in so many steps at the two finest scales, and in so many at the others, where an error
# is mended later.
FINE = {"kernel_steps": 20, "rounds": 14, "steps": 7}
COARSE = {"kernel_steps": 12, "rounds": 10, "steps": 6}

# In a photograph, even blurred by 75 pixels, one gradient in a hundred is larger than this. Where it is smaller, the
# weight of gradients falls with its square.
USUAL_GRADIENT = 0.016

# Kernels of a setting are the same if their normalised correlation is above this.
SAME = 0.98

# Images of so many pixels in all are worked on at a time.
AT_A_TIME = 1 << 21

# The weight of the sparse prior in a deconvolution; where y has more noise than LITTLE_NOISE, it grows in proportion.
# With less noise it is the errors of the kernel that call for it.
PRIOR, LITTLE_NOISE = 1e-4, 3e-3

# With more noise than this a refinement fits the kernel to the noise, which it finds in y and in the sharp image.
REFINED_NOISE = 4e-3

# A kernel of less `extent` is next to a point. Camera shakes have 0.13 to 0.35; twice too large a size halves it.
POINT = 0.045

# At full scale kernels are judged by the sum of the free energies of y and of y smoothed so much, in pixels: the one
# takes noise that a kernel was fitted to for detail, the other likes a kernel that is too wide.
SMOOTHING = 1.5

# Of two good kernels, both fitted by networks, the coarser may have 5 % less of that sum, and 12 % where there is much
# noise; one that is right where the other is wrong has 20 % less, or the two cannot be told apart.
CLEARLY = 0.85

# Kernels are judged on the part of a large image with the most structure, of this many pixels a side or of this many
# times the kernel's size.
JUDGED, JUDGED_KERNELS = 640, 6


class _Blur:
    """Valid correlation y = k ⊗ x of images (..., h, w) to (..., H, W), and its transposes, by FFT."""

    def __init__(self, blurry_size, kernel_size):
        self.blurry_size, self.kernel_size = tuple(blurry_size), tuple(kernel_size)
        self.sharp_size = tuple(n + k - 1 for n, k in zip(self.blurry_size, self.kernel_size, strict=True))
        self.fft_size = tuple(next_fast_len(n, real=True) for n in self.sharp_size)

    def spectrum(self, a):
        return torch.fft.rfft2(a, s=self.fft_size)

    def _crop(self, spectrum, size):
        return torch.fft.irfft2(spectrum, s=self.fft_size)[..., : size[0], : size[1]]

    def forward(self, x_spectrum, k_spectrum):
        """y = k ⊗ x."""
        return self._crop(x_spectrum * k_spectrum.conj(), self.blurry_size)

    def transpose_in_x(self, y, k_spectrum):
        """What `forward` with a fixed kernel becomes when it is transposed: (H, W) to (h, w)."""
        return self._crop(self.spectrum(y) * k_spectrum, self.sharp_size)

    def transpose_in_k(self, y, x_spectrum):
        """What `forward` of C images by one kernel becomes when it is transposed: (..., C, H, W) to (..., h, w)."""
        return self._crop((x_spectrum * self.spectrum(y).conj()).sum(-3), self.kernel_size)


def estimate_kernel(y, kernel_size, *, settings=SETTINGS, searches=SEARCHES, starts=STARTS, powers=POWERS):
    """Estimate the kernel that blurred an image: a search that needs no truth, and a refinement.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1. Of a large one, the search sees the part that `judged_window` takes.
    kernel_size : (int, int)
        Size (h, w) of the kernel, odd.
    settings, searches, starts
        As in `coarse_to_fine_kernels`.
    powers : sequence of float
        Of the best kernel, after `refine_kernel` on all of y unless that has much noise, raised to each of these
        powers, that of least `free_energy` is returned.

    Returns
    -------
    tensor of float32, (h, w)
        Kernel, non-negative, sum 1, correlation sense, its bounding box centred.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    part = y[judged_window(y, kernel_size)]
    found = coarse_to_fine_kernels(part, kernel_size, settings, searches=searches, starts=starts)
    kernel = found[0][1]
    if noise_level(y) <= REFINED_NOISE:
        kernel = refine_kernel(y, kernel)
    lifted = torch.stack([kernel**power for power in powers])
    lifted /= lifted.sum((1, 2), keepdim=True)
    return lifted[free_energy(part, lifted).argmin()]


def coarse_to_fine_kernels(y, kernel_size, settings=SETTINGS, *, searches=SEARCHES, starts=STARTS, kept=KEPT, steps=5):
    """Search for the kernel from a coarse to the full scale with the L0 gradient prior.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    kernel_size : (int, int)
        Size (h, w) of the kernel, odd.
    settings : sequence of dict
        ``gradient_weight``, by default 4e-3: cost of one pixel with a gradient,
        in squared grey levels of the 0..1 range. It falls by a tenth at every
        step, not below 1e-4, so the first images keep only the strongest edges.
        In an image of little contrast, as of a slide, it is less, see USUAL_GRADIENT.
        ``kernel_weight``, by default 0.15: cost of the kernel's sum of squares,
        against the squared error of the gradients summed over the image, as a
        share of the sum of squared gradients of y at full scale. So contrast
        and size of the image do not matter, and coarse scales, which have fewer
        pixels, smooth more. ``background``, by default False: whether a pixel
        that differs from the background costs as much as one with a gradient.
    searches : sequence of (int, int)
        Searches, each for itself down to the scale where they are joined, see JOINED. The first number says where a
        search starts: at the coarsest scale with a kernel of at least so many pixels, or at the one where they are
        joined. The second is the seed of its starts. Of several that would start at the same scale only the first is
        made.
    starts : int
        Kernels that each setting has there, more for large kernels, fewer for large images, see STARTS. Of up to five
        pixels the first two are pairs of pixels, horizontal and vertical; the others are drawn as camera shakes.
    kept : int
        Kernels that go on to full scale; at each coarser scale GROWTH times as many or more, see EARLY, of each search
        before they are joined, of all from then on. Those of one setting differ.
    steps : int
        Steps (one image, one kernel) at each scale.

    Returns
    -------
    list of ((bool, float), tensor of float32 (h, w))
        Some kernels as `estimate_kernel` returns them. Before each, whether it is next to a point, and its
        `free_energy` in y and in y smoothed, see SMOOTHING; least first, so those that are next to a point are last.

    Notes
    -----
    Neighbouring scales differ by a factor of sqrt(2); the coarsest has a
    kernel of about 5 pixels, or an image of about 30. The kernel is fitted in
    the valid region only, so it does not see the image's border. Nothing is cut
    off below a threshold: thin, faint parts of a trail carry much of the blur,
    and the projection on the simplex removes weak noise by itself.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    differences, level_of_background = gradients(y), background(y)
    energy = differences.square().sum()
    sizes = _sizes(y.shape, kernel_size)
    contrast = min(float(_quantile(differences.abs(), 0.99)) / USUAL_GRADIENT, 1) ** 2
    weights = [contrast * options.get("gradient_weight", 4e-3) for options in settings]
    joined = min(JOINED, len(sizes)) - 1
    begins = {_first_level(sizes, coarsest, joined): seed for coarsest, seed in reversed(searches)}
    pools = []
    for level in reversed(range(max(begins) + 1)):
        size, k_size = sizes[level]
        if level in begins:
            count = max(min(starts * 2 ** min(max(level - EARLY, 0), 2), START_PIXELS // math.prod(size)), 1)
            rng = np.random.Generator(np.random.PCG64(begins[level]))
            pools.append({number: _starts(k_size, count, rng).to(y.device) for number in range(len(settings))})
        scale = _Scale(_shrink(y, size) if level else y, k_size, level_of_background, level)
        done = steps * (len(sizes) - 1 - level)
        found = []
        for pool in pools:
            found.append([])
            for number, kernels in pool.items():
                options = settings[number]
                weight = options.get("kernel_weight", 0.15) * energy
                gradient_weights = [_weight_after(weights[number], step) for step in range(done, done + steps)]
                entries = scale.fit(kernels, gradient_weights, weight, options.get("background", False))
                found[-1] += [(badness, number, kernel) for badness, kernel in entries]
        if level == joined:
            found = [[entry for entries in found for entry in entries]]
        count = round(kept * GROWTH ** (level - 1 + max(level - EARLY, 0)))
        bests = [_distinct(sorted(entries, key=_first), count) for entries in found]
        pools = [{n: torch.stack([kernel for _, m, kernel in best if m == n]) for _, n, _ in best} for best in bests]
    return [(badness, _centre(kernel)) for badness, _, kernel in bests[0]]


class _Scale:
    """The image at one scale of the search, for kernels of one size."""

    def __init__(self, y, kernel_size, background, level):
        self.y, self.kernel_size, self.effort = y, kernel_size, FINE if level < 2 else COARSE
        self.judged = [y] if level else _with_smoothed(y)
        self.gradients = gradients(y)
        self.blur = _Blur(self.gradients.shape[-2:], kernel_size)
        self.latent = _FewGradients(y, kernel_size, background)

    def fit(self, kernels, gradient_weights, weight, background):
        """Kernels (n, h, w) of the scale before after one step for each gradient weight, as pairs (badness, kernel)."""
        for some in _enlarge(kernels, self.kernel_size).split(max(AT_A_TIME // self.y.numel(), 1)):
            for gradient_weight in gradient_weights:
                x = gradients(self.latent(some, gradient_weight, background))
                some = fit_kernel(self.blur, self.gradients, x, some, weight=weight, steps=self.effort["kernel_steps"])
            yield from zip(_badness(self.judged, some, self.effort), some, strict=True)


def _first_level(sizes, coarsest, joined):
    """The coarsest of the scales with a kernel of at least ``coarsest`` pixels, not finer than the level ``joined``."""
    return max(sum(max(k_size) >= coarsest for _, k_size in sizes) - 1, joined)


def _first(entry):
    return entry[0]


def _weight_after(weight, steps):
    return max(weight / 1.1**steps, 1e-4)


def least_bad(y, kernels):
    """Index of the kernel (n, h, w) that explains y (H, W) best, by `_badness` on what `judged_window` takes."""
    badness = _badness(_with_smoothed(y[judged_window(y, kernels.shape[1:])]), kernels, FINE)
    return badness.index(min(badness))


def clearly_better(y, kernel, other):
    """Whether a fitted kernel (h, w) explains y (H, W) clearly better than another one, see CLEARLY."""
    if extent(kernel) < POINT:
        return False
    images = _with_smoothed(y[judged_window(y, kernel.shape)])
    (_, energy), (_, others_energy) = _badness(images, torch.stack([kernel, other]), FINE)
    return energy < CLEARLY * others_energy


def _with_smoothed(y):
    """The images that kernels are judged on at full scale, see SMOOTHING."""
    return [y, smooth(y, SMOOTHING)]


def _badness(images, kernels, effort):
    """What kernels (n, h, w) are ordered by: the sum of their `free_energy` in forms of one image.

    One next to a point, which explains any image, comes after all others.
    """
    energies = sum(free_energy(y, kernels, rounds=effort["rounds"], steps=effort["steps"]) for y in images)
    return [(extent(kernel) < POINT, energy) for kernel, energy in zip(kernels, energies.tolist(), strict=True)]


def _distinct(found, count):
    """The first ``count`` of (badness, setting, kernel), less what equals an earlier one of its setting."""
    best = []
    for badness, number, kernel in found:
        if all(number != other or _similarity(kernel, earlier) <= SAME for _, other, earlier in best):
            best.append((badness, number, kernel))
        if len(best) == count:
            break
    return best


def _similarity(a, b):
    """`kernel_similarity` of the scores by FFT: the sums that those are made of take a second at 75 x 75."""
    size = [2 * n - 1 for n in a.shape]
    products = torch.fft.irfft2(torch.fft.rfft2(a, s=size) * torch.fft.rfft2(b, s=size).conj(), s=size)
    return float(products.max() / (a.norm() * b.norm()))


def refine_kernel(y, kernel, *, rounds=1, kernel_weight=0.7, kernel_steps=20):
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

    Returns
    -------
    tensor of float32, (h, w)
        Kernel as `estimate_kernel` returns it.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    kernel = torch.as_tensor(kernel, dtype=torch.float32, device=y.device)
    for _ in range(rounds):
        kernel = kernel_between(y, deconvolve(y, kernel), kernel, kernel_weight=kernel_weight, steps=kernel_steps)
    return _centre(kernel)


def kernel_between(y, x, kernel, *, kernel_weight=0.2, steps=20):
    """The least squares kernel from a sharp image x (H + h - 1, W + w - 1) to the blurry image y (H, W), of gradients.

    ``kernel`` (h, w) is where to start; ``kernel_weight`` is as in `coarse_to_fine_kernels`. Where x is what a network
    made, its errors are of no one kernel's making, and less weight will do than in `refine_kernel`.
    """
    y = gradients(y)
    weight = kernel_weight * y.square().sum()
    return fit_kernel(_Blur(y.shape[-2:], kernel.shape), y, gradients(x), kernel, weight=weight, steps=steps)


def free_energy(y, kernel, *, rounds=14, steps=7):
    """How badly a kernel explains the blurry image when all sharp images are weighed, not only the best one.

    The variational bound of sparse Bayesian deconvolution, see Wipf and Zhang,
    "Revisiting Bayesian blind deconvolution", JMLR 2014: each gradient of x is
    normal with a variance of its own, its posterior has an independent spread
    at each pixel. Unlike the energy of a single best image it does not by
    itself favour the kernel that does nothing.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    kernel : tensor or ndarray, (..., h, w)
        Kernels to judge.
    rounds, steps : int
        Times the variances are renewed; conjugate gradient steps for each. Too few rounds favour
        kernels that are too wide.

    Returns
    -------
    tensor (...)
        Lower is better; comparable among kernels of one size for one image.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    kernel = torch.as_tensor(kernel, dtype=torch.float32, device=y.device)[..., None, :, :]
    # White noise of y has twice its variance in the gradients, four times at their finest detail. Were not even that
    # allowed for, a kernel near to a point, which leaves such detail in the image, would explain y best.
    of_y = noise_level(y) ** 2
    noise = max(1e-5 + 2 * of_y, 4 * of_y)
    y = gradients(y)
    blur = _Blur(y.shape[-2:], kernel.shape[-2:])
    k_spectrum = blur.spectrum(kernel)
    precision = blur.transpose_in_x(torch.ones_like(y[:1]), blur.spectrum(kernel**2)).clamp(min=1e-8) / noise
    right_side = blur.transpose_in_x(y, k_spectrum) / noise
    x = torch.zeros_like(right_side)
    (top, left) = (n // 2 for n in kernel.shape[-2:])
    x[..., top : top + y.shape[1], left : left + y.shape[2]] = y
    variance = torch.full_like(x, float(y.square().mean())).clamp(min=1e-10)
    for number in range(rounds):
        spread = 1 / (precision + 1 / variance)

        def matrix(v, variance=variance):
            return blur.transpose_in_x(blur.forward(blur.spectrum(v), k_spectrum), k_spectrum) / noise + v / variance

        x = _conjugate_gradients(matrix, right_side, x, steps, scaling=spread, dims=3)
        renewed = (x**2 + spread).clamp(min=1e-10)
        # To go beyond what the rule gives brings 14 rounds as far as 40; the last two, by the rule, give a bound.
        variance = renewed if number >= rounds - 2 else (variance * (renewed / variance) ** 1.8).clamp(min=1e-10)
    error = (y - blur.forward(blur.spectrum(x), k_spectrum)).square().sum((-3, -2, -1)) / noise
    return error + (x**2 / variance + (variance / spread).log()).sum((-3, -2, -1))


def smooth(x, sigma):
    """The valid part of an image (H, W) under a Gaussian of a standard deviation in pixels."""
    taps = gaussian(sigma, min(max(round(3 * sigma), 1), min(x.shape) // 4), x)
    return F.conv2d(F.conv2d(x[None, None], taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[0, 0]


def judged_window(y, kernel_size):
    """The part of y (H, W) that kernels of a size (h, w) are judged on, as two slices."""
    return busiest_window(y, max(JUDGED, JUDGED_KERNELS * max(kernel_size)))


def busiest_window(y, side):
    """The square of at most ``side`` pixels a side with the most structure, as two slices.

    Structure is the mean of the square of the gradient, each pixel's limited to
    ten times the mean so that single edges do not decide; next to a value of 0
    or 1, where the image may be clipped and the model does not hold, it is 0.

    Parameters
    ----------
    y : tensor (H, W)
        Image, 0..1.
    side : int

    Returns
    -------
    (slice, slice)
    """
    height, width = (min(side, n) for n in y.shape)
    energy = gradients(y).square().sum(0)
    clipped = (y <= 0) | (y >= 1)
    energy[clipped[:-1, :-1] | clipped[:-1, 1:] | clipped[1:, :-1]] = 0
    energy = energy.clamp(max=10 * float(energy.mean()))
    sums = F.pad(energy.double().cumsum(0).cumsum(1), (1, 1, 1, 1))
    sums[-1], sums[:, -1] = sums[-2], sums[:, -2]
    totals = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = divmod(int(totals.argmax()), totals.shape[1])
    return slice(top, top + height), slice(left, left + width)


def extent(kernel):
    """Radius around its centroid that holds half of a kernel (h, w) of sum 1, over the larger of its sides."""
    places = [torch.arange(n, dtype=torch.float64, device=kernel.device) for n in kernel.shape]
    kernel = kernel.double()
    row, column = (kernel.sum(1) * places[0]).sum(), (kernel.sum(0) * places[1]).sum()
    distances, order = torch.hypot(*torch.meshgrid(places[0] - row, places[1] - column, indexing="ij")).flatten().sort()
    half = (kernel.flatten()[order].cumsum(0) < kernel.sum() / 2).sum()
    return float(distances[half]) / max(kernel.shape)


def noise_level(y):
    """Standard deviation of white noise in an image (H, W), from the median of its finest mixed differences."""
    rows = y[2:] - 2 * y[1:-1] + y[:-2]
    mixed = rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]
    return float(mixed.abs().median()) / 0.6745 / 6


def deconvolve(y, kernel, *, weight=None, exponent=0.8, rounds=4, steps=20):
    """Find the sharp image for a known kernel.

    Minimises ``|y - k ⊗ x|^2 + weight * sum |D x|^exponent`` by iteratively
    reweighted least squares, D being the first and, at a quarter of the
    weight, the second differences of x. The error is summed over the blurry
    image's pixels only: nothing is assumed about what lies outside.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    kernel : tensor or ndarray, (h, w)
        Kernel, correlation sense.
    weight : float, optional
        Strength of the sparse gradient prior; by default it follows the noise, see PRIOR.
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
    weight = PRIOR * max(noise_level(y) / LITTLE_NOISE, 1) if weight is None else weight
    blur = _Blur(y.shape, kernel.shape)
    k_spectrum = blur.spectrum(kernel)
    (top, left) = (n // 2 for n in kernel.shape)
    x = F.pad(y[None, None], (left, kernel.shape[1] - 1 - left, top, kernel.shape[0] - 1 - top), mode="replicate")[0, 0]
    right_side = blur.transpose_in_x(y, k_spectrum)
    strengths = (1.0, 1.0, 0.25, 0.25, 0.25)
    weights = [torch.full_like(d, s) for d, s in zip(_differences(x), strengths, strict=True)]
    for _ in range(rounds + 1):

        def matrix(v, weights=weights):
            data = blur.transpose_in_x(blur.forward(blur.spectrum(v), k_spectrum), k_spectrum)
            weighted = [a * d for a, d in zip(weights, _differences(v), strict=True)]
            return data + weight * _differences_transposed(weighted)

        x = _conjugate_gradients(matrix, right_side, x, steps)
        weights = [
            s * d.abs().clamp(min=0.01) ** (exponent - 2) for d, s in zip(_differences(x), strengths, strict=True)
        ]
    return x


def fit_kernel(blur, y, x, kernel, *, weight, steps):
    """Fit the kernel to given blurry and sharp images: least squares on the simplex.

    Minimises ``|y - k ⊗ x|^2 + weight * |k|^2`` over non-negative kernels of
    sum 1 by accelerated projected gradients, with a restart whenever a step
    turns against the last one.

    Parameters
    ----------
    blur : _Blur
        Sizes of the forward model.
    y : tensor (C, H, W)
        Blurry images (here: gradients) that share the kernel.
    x : tensor (..., C, H + h - 1, W + w - 1)
        Their sharp images.
    kernel : tensor (..., h, w)
        Where to start.
    weight : float or tensor that goes with (..., h, w)
    steps : int

    Returns
    -------
    tensor (..., h, w)
    """
    x_spectrum = blur.spectrum(x)

    def matrix(k):
        k_spectrum = blur.spectrum(k)[..., None, :, :]
        return blur.transpose_in_k(blur.forward(x_spectrum, k_spectrum), x_spectrum) + weight * k

    def norm(k):
        return k.square().sum((-2, -1), keepdim=True).sqrt()

    right_side = blur.transpose_in_k(y, x_spectrum)
    direction = kernel / norm(kernel)
    for _ in range(8):
        product = matrix(direction)
        largest = norm(product).clamp(min=1e-12)
        direction = product / largest
    largest = 1.05 * largest
    ahead, t = kernel, torch.ones_like(largest)
    for _ in range(steps):
        new = _to_simplex(ahead - (matrix(ahead) - right_side) / largest)
        turned = ((ahead - new) * (new - kernel)).sum((-2, -1), keepdim=True) > 0
        t = t.masked_fill(turned, 1)
        t_new = (1 + (1 + 4 * t * t).sqrt()) / 2
        ahead = new + (t - 1) / t_new * (new - kernel)
        kernel, t = new, t_new
    return kernel


def _sizes(size, kernel_size):
    """Sizes of image and kernel, finest first, down to a kernel of about 5 pixels or an image of about 30."""
    sizes, scale = [(tuple(size), tuple(kernel_size))], 1.0
    while max(sizes[-1][1]) > COARSEST_KERNEL:
        scale /= PYRAMID_RATIO
        if min(size) * scale <= COARSEST_IMAGE:
            break
        sizes.append((tuple(round(n * scale) for n in size), tuple(_odd(n * scale) for n in kernel_size)))
    return sizes


class _FewGradients:
    """The sharp image with an L0 prior on its gradients, by half-quadratic splitting in the Fourier domain."""

    def __init__(self, y, kernel_size, background):
        self.blurry_size, self.kernel_size, self.background = y.shape, kernel_size, background
        self.y = _extend_periodically(y, kernel_size)
        self.y_spectrum = torch.fft.rfft2(self.y)
        rows = torch.fft.fftfreq(self.y.shape[0], dtype=y.dtype, device=y.device)[:, None]
        columns = torch.fft.rfftfreq(self.y.shape[1], dtype=y.dtype, device=y.device)[None]
        # Spectrum of the operator that sends an image to minus its Laplacian of forward differences.
        self.laplacian = 4 * (torch.sin(math.pi * rows) ** 2 + torch.sin(math.pi * columns) ** 2)

    def __call__(self, kernel, weight, background):
        """Sharp images on the padded grid for blurs (..., h, w); ``weight`` is the cost of a pixel with a gradient."""
        (h, w), (top, left) = self.kernel_size, (n // 2 for n in self.kernel_size)
        padded = F.pad(kernel, (0, self.y.shape[1] - w, 0, self.y.shape[0] - h))
        k_spectrum = torch.fft.rfft2(padded.roll((-top, -left), (-2, -1)))
        data, power = k_spectrum * self.y_spectrum, k_spectrum.abs() ** 2
        x = self.y
        if background:
            for alpha in _geometric(2 * weight, 8, 8):
                flat = x.masked_fill((x - self.background) ** 2 < weight / alpha, self.background)
                x = self._few_gradients(x, data + alpha * torch.fft.rfft2(flat), power + alpha, weight, 8)
        else:
            x = self._few_gradients(x, data, power, weight, 2)
        x = x.roll((top, left), (-2, -1))
        return x[..., : self.blurry_size[0] + h - 1, : self.blurry_size[1] + w - 1]

    def _few_gradients(self, x, data, power, weight, growth):
        for beta in _geometric(2 * weight, growth, 1e5):
            right, down = x.roll(-1, -1).sub_(x), x.roll(-1, -2).sub_(x)
            strong = (right.square() + down.square() >= weight / beta).to(x.dtype)
            right, down = right.mul_(strong), down.mul_(strong)
            sparse = (right.roll(1, -1) - right).add_(down.roll(1, -2)).sub_(down)
            spectrum = torch.add(data, torch.fft.rfft2(sparse), alpha=beta)
            x = torch.fft.irfft2(spectrum.mul_((power + beta * self.laplacian).reciprocal_()), s=self.y.shape)
        return x


def _geometric(first, ratio, end):
    while first < end:
        yield first
        first *= ratio


def background(y):
    """Grey level that the background of y (H, W) would have: its 5 % or 95 % quantile, that nearer to the median."""
    dark, middle, bright = _quantile(y, (0.05, 0.5, 0.95)).tolist()
    return dark if middle - dark < bright - middle else bright


def _quantile(values, shares):
    ordered = values.flatten().sort().values
    return ordered[(torch.tensor(shares, dtype=torch.float64) * (len(ordered) - 1)).round().long().to(values.device)]


def _extend_periodically(y, kernel_size):
    """Put y in the corner of a larger image that is smooth across its borders when repeated (least gradient energy)."""
    size = [next_fast_len(n + 2 * k, real=True) for n, k in zip(y.shape, kernel_size, strict=True)]
    free = torch.ones(size, dtype=y.dtype, device=y.device)
    free[: y.shape[0], : y.shape[1]] = 0
    known = torch.full_like(free, float(y.mean()))
    known[: y.shape[0], : y.shape[1]] = y

    def laplacian(v):
        return 4 * v - v.roll(1, 0) - v.roll(-1, 0) - v.roll(1, 1) - v.roll(-1, 1)

    fixed = known * (1 - free)
    filling = _conjugate_gradients(
        lambda v: free * laplacian(free * v), -free * laplacian(fixed), known * free, 4 * max(kernel_size)
    )
    return fixed + filling * free


def _conjugate_gradients(matrix, right_side, x, steps, scaling=1.0, dims=2):
    """Solve matrix(x) = right_side from x on; ``scaling`` is the inverse of the matrix's diagonal, if known.

    Each problem is one tensor of the last ``dims`` dimensions, on its own.
    """
    axes = tuple(range(-dims, 0))

    def inner(a, b):
        return (a * b).sum(axes, keepdim=True)

    residual = right_side - matrix(x)
    scaled = scaling * residual
    direction, power = scaled, inner(residual, scaled)
    enough = 1e-10 * inner(right_side, scaling * right_side)
    for _ in range(steps):
        going = power > enough
        if not going.any():
            break
        product = matrix(direction)
        length = torch.where(going, power / inner(direction, product), 0)
        x, residual = x + length * direction, residual - length * product
        scaled = scaling * residual
        new_power = inner(residual, scaled)
        direction, power = scaled + torch.where(going, new_power / power, 0) * direction, new_power
    return x


def _to_simplex(v):
    """Nearest point with non-negative entries that sum to 1, of each (h, w)."""
    ordered = v.flatten(-2).sort(descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, ordered.shape[-1] + 1, device=v.device)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (v - excess.gather(-1, last)[..., None]).clamp(min=0)


def _differences(x):
    return (
        x[:, 1:] - x[:, :-1],
        x[1:] - x[:-1],
        x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2],
        x[2:] - 2 * x[1:-1] + x[:-2],
        x[1:, 1:] - x[1:, :-1] - x[:-1, 1:] + x[:-1, :-1],
    )


def _differences_transposed(d):
    right, down, right_twice, down_twice, both = d
    result = F.pad(right, (1, 0)) - F.pad(right, (0, 1)) + F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1))
    result += F.pad(right_twice, (2, 0)) - 2 * F.pad(right_twice, (1, 1)) + F.pad(right_twice, (0, 2))
    result += F.pad(down_twice, (0, 0, 2, 0)) - 2 * F.pad(down_twice, (0, 0, 1, 1)) + F.pad(down_twice, (0, 0, 0, 2))
    result += (
        F.pad(both, (1, 0, 1, 0)) - F.pad(both, (0, 1, 1, 0)) - F.pad(both, (1, 0, 0, 1)) + F.pad(both, (0, 1, 0, 1))
    )
    return result


def gradients(x):
    """Forward differences to the right and down, (..., H, W) to (..., 2, H - 1, W - 1)."""
    return torch.stack([x[..., :-1, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, :-1]], -3)


def _odd(n):
    return max(2 * round((n - 1) / 2) + 1, 3)


def _starts(size, count, rng):
    """Kernels (n, h, w) to start a search from, see `coarse_to_fine_kernels`; pairs of pixels alone if a side is 1."""
    row, column = (n // 2 for n in size)
    pairs = torch.zeros(2, *size)
    pairs[:, row, column] = pairs[0, row, column - 1] = pairs[1, row - 1, column] = 0.5
    flat = min(size) == 1
    kernels = list(pairs) if flat or max(size) <= COARSEST_KERNEL else []
    if not flat:
        kernels += [torch.from_numpy(camera_shake_kernel(size, rng=rng)).float() for _ in range(count)]
    kernels = torch.stack(kernels[:count])
    return kernels / kernels.sum((1, 2), keepdim=True)


def _shrink(image, size):
    return F.interpolate(image[None, None], size=size, mode="bicubic", antialias=True, align_corners=False)[0, 0]


def _enlarge(kernels, size):
    """Kernels (n, h, w) at another size."""
    if kernels.shape[1:] == size:
        return kernels
    kernels = F.interpolate(kernels[None], size=size, mode="bilinear", align_corners=False)[0]
    return torch.stack([_centre(kernel) for kernel in kernels])


def _centre(kernel):
    """Move the kernel by whole pixels so that the box of its entries above 5 % of the largest is in the middle."""
    large = kernel > 0.05 * kernel.max()
    moved = kernel
    for axis in (0, 1):
        inside = large.any(1 - axis).nonzero()
        shift = (kernel.shape[axis] - 1 - int(inside[0]) - int(inside[-1])) // 2
        moved = moved.roll(shift, axis)
        cut = moved.narrow(axis, *((0, shift) if shift >= 0 else (kernel.shape[axis] + shift, -shift)))
        cut.zero_()
    return moved / moved.sum()
