"""The kernel search: from a coarse to the full scale, without the sharp image and without a generator.

`coarse_to_fine_kernels` alternates at each scale between a sharp image of few
gradients (`few_gradients`) and the kernel that best explains the blurry
gradients given the sharp ones (`fit_kernel`). It does so with several variants
from many starts, of which ever fewer go on to the next scale: those of least
`free_energy`. A large kernel it searches so more than once, from different
scales on, and joins the searches near the end. `estimate_kernel` refines the
best kernel.

Everything is greyscale; every kernel is meant in the correlation sense of
`selfdeblur.forward`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from selfdeblur.classical.clipped import away_from_lights, of_gradients, shrunk
from selfdeblur.classical.deconvolution import fit_kernel, refine_kernel
from selfdeblur.classical.few_gradients import FewGradients, background_level, quantile
from selfdeblur.classical.judge import badness, energies_in_turn, judged_window, noise_level, two_opinions
from selfdeblur.classical.kernels import camera_shake_kernel, centred, odd, similarity
from selfdeblur.classical.linear import Correlation, gradient_pairs, gradients, shrink
from selfdeblur.classical.recorded import Recorded
from selfdeblur.classical.simple import simple_kernel
from selfdeblur.classical.trails import kernel_of_trails

# Factor between neighbouring scales. The coarsest has an image or a kernel of about so many pixels a side.
PYRAMID_RATIO = 2**0.5
COARSEST_IMAGE, COARSEST_KERNEL = 30, 5

# Powers that the best kernel is raised to, one of which is taken: the fits make the faint parts of a trail too faint, a
# power below 1 lifts them.
POWERS = (1.0, 0.9, 0.75, 0.6)

# Entries below these shares of the largest one are left out where the energy does not rise by more than NO_DIFFERENCE.
# Beside two points or a line they are mistakes, and make ghosts; of a camera shake or a disk they are a part.
FAINT, NO_DIFFERENCE = (0.02, 0.04, 0.08), 0.009

# Weights of the search where a variant has no others.
GRADIENT_WEIGHT, KERNEL_WEIGHT = 4e-3, 0.15

# What the search weighs and how heavily, see `coarse_to_fine_kernels`. No single variant suits all images: a heavier
# weight finds what another misses; the last two find the kernels of text.
VARIANTS = (
    {},
    {"kernel_weight": 0.45},
    {"gradient_weight": 1e-2},
    {"gradient_weight": 1e-2, "near_background": True},
    {"gradient_weight": 2e-2, "near_background": True},
)

# Kernels that a variant starts from: STARTS, and twice as many at each scale coarser than number LARGE_KERNEL_SCALE
# (the finest is 0), up to four times, but not more than have START_PIXELS in their images. What becomes of a large
# kernel, and only these reach such scales, depends on where it starts.
STARTS, LARGE_KERNEL_SCALE, START_PIXELS = 12, 4, 200_000

# Searches: the size of kernel from which each starts, and the seed of its starts. Five pixels are too few to tell some
# kernels apart, and what is lost at a scale does not come back. Whether a search finds a large kernel, one that begins
# beyond LARGE_KERNEL_SCALE, is a matter of luck, so there are several for these.
SEARCHES = ((COARSEST_KERNEL, 0), (9, 1), (13, 2))

# Number of the finest scales at which all searches are one; a search costs little before these.
JOINED_SCALES = 3

# The searches, with other starts, by which a doubtful estimate is looked for once more.
SEARCHES_AGAIN = ((9, 3),)

# Kernels that go on to full scale, and how many times more do so at each coarser scale; beyond LARGE_KERNEL_SCALE the
# square of that: with fewer, large kernels, which are found from many scales on, were lost on the way.
KERNELS_AT_FULL_SCALE, KERNELS_GROWTH = 4, 2**0.5

# Kernels of one variant are the same if their normalised correlation is above this.
SAME_KERNEL = 0.98


class Effort(NamedTuple):
    """Steps of `fit_kernel`; rounds and steps of `free_energy`."""

    kernel_steps: int
    rounds: int
    steps: int


# Effort at the two finest scales, and at the others, where an error is mended later.
FINE_EFFORT = Effort(kernel_steps=20, rounds=14, steps=7)
COARSE_EFFORT = Effort(kernel_steps=12, rounds=10, steps=6)

# Gradient that one in a hundred exceeds in a photograph, even in one blurred by 75 pixels. Where it is smaller, the
# weight of gradients falls with its square.
USUAL_GRADIENT = 0.016

# Pixels, of all images together, that are worked on at a time, so that memory suffices: on a CPU those of one variant.
# A GPU is the faster the more it has to do at a time, so there the kernels of all variants are worked on together.
PIXELS_AT_A_TIME, PIXELS_ON_A_GPU = 1 << 21, 1 << 22

# Most noise (standard deviation) with which a kernel is refined. With more a refinement fits the kernel to the noise,
# which it finds in y and in the sharp image.
MOST_NOISE_REFINED = 4e-3


def estimate_kernel(
    y: torch.Tensor | np.ndarray,
    kernel_size: tuple[int, int],
    *,
    variants: Sequence[Mapping[str, Any]] = VARIANTS,
    searches: Sequence[tuple[int, int]] | None = None,
    starts: int = STARTS,
    powers: Sequence[float] = POWERS,
    progress: Callable[[int, int, torch.Tensor], object] | None = None,
) -> torch.Tensor:
    """Estimate the kernel that blurred an image: a search that needs no truth, and a refinement.

    Where trails of lights show the kernel, see `kernel_of_trails`, it is taken from them. Where a disk, a Gaussian,
    a line or two points explain the image as well as what the search found, see `simple_kernel`, that is taken.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1. Of a large one, the search sees the part that `judged_window` takes.
    kernel_size : (int, int)
        Size (h, w) of the kernel, odd.
    variants : sequence of dict
        Settings of the search, tried one after the other, see `coarse_to_fine_kernels`.
    searches : sequence of (int, int), optional
        Scales and seeds, see there; by default one search, and three for a large kernel.
    starts : int
        Kernels that each setting starts from.
    powers : sequence of float
        The best kernel, after `refine_kernel` on all of y unless that has much noise, is raised to these powers, one
        after the other while its `free_energy` falls. Entries that are too faint to matter are left out, the rest is
        refined once more, and so are they again.
    progress : callable, optional
        As in `coarse_to_fine_kernels`. Where it ends the search, the best kernel so far is returned as it is.

    Returns
    -------
    tensor of float32, (h, w)
        Kernel, non-negative, sum 1, correlation sense, its bounding box centred.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    if (seen := kernel_of_trails(y, kernel_size)) is not None:
        return seen
    part = y[judged_window(y, kernel_size)]
    searches = searches or _searches_for(part.shape, kernel_size)
    ended = False

    def told(*news):
        nonlocal ended
        ended = bool(progress and progress(*news))
        return ended

    found = coarse_to_fine_kernels(part, kernel_size, variants, searches=searches, starts=starts, progress=told)
    kernel = found[0][1]
    if ended:
        return kernel
    quiet = noise_level(y) <= MOST_NOISE_REFINED
    if quiet:
        kernel = refine_kernel(y, kernel)
    kernel = _cleared(part, _lifted(part, kernel, powers))
    if quiet:
        kernel = _cleared(part, refine_kernel(y, kernel, within=_grown(kernel > 0)))
    simple = simple_kernel(y, kernel)
    return kernel if simple is None else simple


def _searches_for(size, kernel_size):
    """The SEARCHES that pay for an image (H, W) and a kernel (h, w): of a small kernel three find no more than one."""
    return SEARCHES if len(_sizes(size, kernel_size)) - 1 > LARGE_KERNEL_SCALE else SEARCHES[:1]


def _grown(inside):
    """A mask (h, w) with the neighbours of what is in it."""
    return F.max_pool2d(inside.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0


def _lifted(y, kernel, powers):
    """A kernel (h, w) raised to the first of these powers after which its energy in y (H, W) does not fall further."""
    lifted = torch.stack([kernel**power for power in powers])
    lifted /= lifted.sum((1, 2), keepdim=True)
    least = math.inf
    for number, energy in enumerate(energies_in_turn([(y, away_from_lights(y))], lifted)):
        if energy >= least:
            break
        least, kernel = energy, lifted[number]
    return kernel


def _cleared(y, kernel):
    """A kernel (h, w) without its faint entries, as many as it takes to make a difference to its energy in y (H, W)."""
    cleared = torch.stack([kernel.where(kernel >= share * kernel.max(), 0) for share in (0, *FAINT)])
    cleared /= cleared.sum((1, 2), keepdim=True)
    most = math.inf
    for number, energy in enumerate(energies_in_turn(two_opinions(y, away_from_lights(y)), cleared)):
        if energy > most:
            break
        most = most if number else (1 + NO_DIFFERENCE) * energy
        kernel = cleared[number]
    return kernel


def coarse_to_fine_kernels(
    y,
    kernel_size,
    variants=VARIANTS,
    *,
    searches=SEARCHES,
    starts=STARTS,
    kept=KERNELS_AT_FULL_SCALE,
    steps=5,
    progress=None,
):
    """Search for the kernel from a coarse to the full scale with the L0 gradient prior.

    Parameters
    ----------
    y : tensor or ndarray, (H, W)
        Blurry image, 0..1.
    kernel_size : (int, int)
        Size (h, w) of the kernel, odd.
    variants : sequence of dict
        ``gradient_weight``, by default 4e-3: cost of one pixel with a gradient,
        in squared grey levels of the 0..1 range. It falls by a tenth at every
        step, not below 1e-4, so the first images keep only the strongest edges.
        In an image of little contrast, as of a slide, it is less, see USUAL_GRADIENT.
        ``kernel_weight``, by default 0.15: cost of the kernel's sum of squares,
        against the squared error of the gradients summed over the image, as a
        share of the sum of squared gradients of y at full scale. So contrast
        and size of the image do not matter, and coarse scales, which have fewer
        pixels, smooth more. ``near_background``, by default False: whether a
        pixel that differs from the background costs as much as one with a
        gradient.
    searches : sequence of (int, int)
        Searches, each for itself down to the scale where they are joined, see JOINED_SCALES. The first number says
        where a search starts: at the coarsest scale with a kernel of at least so many pixels, or at the one where they
        are joined. The second is the seed of its starts. Of several that would start at the same scale only the first
        is made.
    starts : int
        Kernels that each variant has there, more for large kernels, fewer for large images, see STARTS. Of up to five
        pixels the first two are pairs of pixels, horizontal and vertical; the others are drawn as camera shakes.
    kept : int
        Kernels that go on to full scale; at each coarser scale KERNELS_GROWTH times as many or more, of each search
        before they are joined, of all from then on. Those of one variant differ.
    steps : int
        Steps (one image, one kernel) at each scale.
    progress : callable, optional
        Called after each scale with how many are done, how many there are, and the best kernel so far, in full size.
        Where it returns True, the search ends there.

    Returns
    -------
    list of ((bool, float), tensor of float32 (h, w))
        Some kernels as `estimate_kernel` returns them. Before each, whether it is next to a point, and its
        `free_energy` in y and in y smoothed, see `judge.two_opinions`; least first, so those that are next to a point
        are last.

    Notes
    -----
    Neighbouring scales differ by a factor of sqrt(2); the coarsest has a
    kernel of about 5 pixels, or an image of about 30. The kernel is fitted in
    the valid region only, so it does not see the image's border. Nothing is cut
    off below a threshold: thin, faint parts of a trail carry much of the blur,
    and the projection on the simplex removes weak noise by itself.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    level_of_background, away = background_level(y), away_from_lights(y)
    energy, contrast = _energy_and_contrast(y, away)
    sizes = _sizes(y.shape, kernel_size)
    gradient_weights = [contrast * variant.get("gradient_weight", GRADIENT_WEIGHT) for variant in variants]
    joined = min(JOINED_SCALES, len(sizes)) - 1
    seeds = {_first_level(sizes, coarsest, joined): seed for coarsest, seed in reversed(searches)}
    pools = []  # of each search: the kernels (n, h, w) of each variant by its number
    levels = max(seeds) + 1
    for level in reversed(range(levels)):
        size, k_size = sizes[level]
        beyond = max(level - LARGE_KERNEL_SCALE, 0)
        if level in seeds:
            count = max(min(starts * 2 ** min(beyond, 2), START_PIXELS // math.prod(size)), 1)
            rng = np.random.Generator(np.random.PCG64(seeds[level]))
            pools.append({number: _starts(k_size, count, rng).to(y.device) for number in range(len(variants))})
        scale = _SearchScale.at(level, sizes, y, level_of_background, away)
        found, tasks = [[] for _ in pools], []
        for entries, pool in zip(found, pools, strict=True):
            for number, kernels in pool.items():
                variant = variants[number]
                weight = variant.get("kernel_weight", KERNEL_WEIGHT) * energy
                falling = _falling(gradient_weights[number], steps, len(sizes) - 1 - level)
                tasks.append(_Task(entries, number, kernels, falling, weight, variant.get("near_background", False)))
        for task, scores, kernels in scale.fit(tasks):
            task.entries.extend((score, task.variant, kernel) for score, kernel in zip(scores, kernels, strict=True))
        if level == joined:
            found = [[entry for entries in found for entry in entries]]
        count = round(kept * KERNELS_GROWTH ** (level - 1 + beyond))
        bests = [_distinct(sorted(entries, key=_first), count) for entries in found]
        pools = [{n: torch.stack([kernel for _, m, kernel in best if m == n]) for _, n, _ in best} for best in bests]
        if progress and progress(levels - level, levels, _enlarged(bests, sizes[0][1])[0][1]):
            return _enlarged(bests, sizes[0][1])
    return [(score, centred(kernel)) for score, _, kernel in bests[0]]


def refitted(y, kernel, *, steps=5, scales=1):
    """The kernel that the finest scales of a search come to from a kernel (h, w), for a blurry image y (H, W)."""
    away, level_of_background = away_from_lights(y), background_level(y)
    energy, contrast = _energy_and_contrast(y, away)
    sizes = _sizes(y.shape, kernel.shape)
    kernels = kernel[None]
    for level in reversed(range(min(scales, len(sizes)))):
        k_size = sizes[level][1]
        if kernels.shape[1:] != k_size:
            kernels = F.interpolate(kernels[None], size=k_size, mode="bilinear", antialias=True, align_corners=False)[0]
            kernels = kernels / kernels.sum()
        weights = _falling(contrast * GRADIENT_WEIGHT, steps, len(sizes) - 1 - level)
        scale = _SearchScale.at(level, sizes, y, level_of_background, away)
        kernels = scale.fitted(_Task([], 0, kernels, weights, KERNEL_WEIGHT * energy, False))
    return centred(kernels[0])


def _energy_and_contrast(y, away):
    """What the weights of kernels and of gradients are shares of: the gradients' sum of squares, and the contrast."""
    y_gradients = gradients(y)
    energy = (y_gradients if away is None else y_gradients * of_gradients(away)).square().sum()
    return energy, min(float(quantile(y_gradients.abs(), 0.99)) / USUAL_GRADIENT, 1) ** 2


class _SearchScale:
    """The image at one scale of the search, for kernels of one size."""

    def __init__(self, y, kernel_size, level_of_background, level, away):
        self.y, self.kernel_size = y, kernel_size
        self.effort = FINE_EFFORT if level < 2 else COARSE_EFFORT
        self.judged = [(y, away)] if level else two_opinions(y, away)
        self.gradients = gradient_pairs(y)
        self.model = Correlation(self.gradients.shape, kernel_size, of_gradients(away), pairs=True)
        self.sharp = FewGradients(y, kernel_size, level_of_background)
        self.together = worked_on_together(y.device)
        self.at_a_time = max((PIXELS_ON_A_GPU if self.together else PIXELS_AT_A_TIME) // y.numel(), 1)

    @classmethod
    def at(cls, level, sizes, y, level_of_background, away):
        """The scale of a number, 0 the finest, of those that `_sizes` gives for y (H, W)."""
        size, kernel_size = sizes[level]
        shrunken = shrink(y, size) if level else y
        return cls(shrunken, kernel_size, level_of_background, level, shrunk(away, size))

    def fit(self, tasks):
        """What becomes of the kernels of each `_Task`: the task, their badness, and the kernels (n, h, w)."""
        if not self.together:
            for task in tasks:
                kernels = self.fitted(task)
                yield task, self._scores(kernels), kernels
            return
        tasks = sorted(tasks, key=lambda task: task.near_background)
        kernels = self._fitted_together(tasks)
        scores, begin = self._scores(kernels), 0
        for task in tasks:
            part = slice(begin, begin + len(task.kernels))
            yield task, scores[part], kernels[part]
            begin = part.stop

    def _scores(self, kernels):
        effort = {"rounds": self.effort.rounds, "steps": self.effort.steps}
        return [score for some in kernels.split(self.at_a_time) for score in badness(self.judged, some, **effort)]

    def fitted(self, task):
        """The kernels of a task after one step for each gradient weight."""
        fitted = []
        for some in _enlarge(task.kernels, self.kernel_size).split(self.at_a_time):
            for weight in task.gradient_weights:
                some = self._refitted(some, self.sharp(some, weight, task.near_background), task.weight)
            fitted.append(some)
        return torch.cat(fitted)

    def _fitted_together(self, tasks):
        """The same for the kernels of all tasks, those with ``near_background`` last."""
        kernels = torch.cat([_enlarge(task.kernels, self.kernel_size) for task in tasks])
        weights = torch.cat([task.weight.expand(len(task.kernels)) for task in tasks])[:, None, None]
        falling = [task.gradient_weights for task in tasks for _ in task.kernels]
        near = sum(len(task.kernels) for task in tasks if task.near_background)
        costs = [
            {n for task in tasks if task.near_background == flag for n in task.gradient_weights} for flag in (0, 1)
        ]
        spans = tuple(FewGradients.spans(every, near_background) for near_background, every in enumerate(costs))
        falling = torch.tensor(falling).to(weights).T[..., None, None]
        fitted = []
        with Recorded(self._step) as step:
            for begin in range(0, len(kernels), self.at_a_time):
                part = slice(begin, begin + self.at_a_time)
                some = kernels[part]
                apart = min(max(len(kernels) - near - begin, 0), len(some))
                for gradient_weights in falling:
                    (some,) = step(some, gradient_weights[part], weights[part], apart=apart, spans=spans)
                fitted.append(some)
        return torch.cat(fitted)

    def _step(self, kernels, gradient_weights, weights, *, apart, spans):
        """One step of kernels of which those from number ``apart`` on are with ``near_background``."""
        x = [
            self.sharp(kernels[part], gradient_weights[part], near_background, spans[near_background])
            for near_background, part in enumerate((slice(apart), slice(apart, None)))
            if len(kernels[part])
        ]
        return (self._refitted(kernels, torch.cat(x), weights),)

    def _refitted(self, kernels, x, weight):
        """The kernels that explain y best with sharp images x (n, H + h - 1, W + w - 1)."""
        steps = self.effort.kernel_steps
        return fit_kernel(self.model, self.gradients, gradient_pairs(x), kernels, weight=weight, steps=steps)


class _Task(NamedTuple):
    """What is to become of the kernels (n, h, w) of one variant in one search, at one scale."""

    entries: list
    variant: int
    kernels: torch.Tensor
    gradient_weights: Sequence[float]
    weight: torch.Tensor
    near_background: bool


def worked_on_together(device):
    """Whether kernels of all variants are worked on together on a device."""
    return device.type == "cuda"


def _first_level(sizes, coarsest, joined):
    """The coarsest of the scales with a kernel of at least ``coarsest`` pixels, not finer than the level ``joined``."""
    return max(sum(max(k_size) >= coarsest for _, k_size in sizes) - 1, joined)


def _first(entry):
    return entry[0]


def _falling(weight, steps, scales):
    """The weights of gradients at each step of a scale, after so many coarser scales of as many steps."""
    return [max(weight / 1.1**step, 1e-4) for step in range(steps * scales, steps * (scales + 1))]


def _distinct(found, count):
    """The first ``count`` of (badness, variant, kernel), less what equals an earlier one of its variant."""
    best, left = [], list(found)
    while left and len(best) < count:
        best.append(left.pop(0))
        _, number, kernel = best[-1]
        rivals = [entry for entry in left if entry[1] == number]
        if not rivals or len(best) == count:
            continue
        alike = (similarity(kernel, torch.stack([other for _, _, other in rivals])) > SAME_KERNEL).tolist()
        gone = {id(entry) for entry, same in zip(rivals, alike, strict=True) if same}
        left = [entry for entry in left if id(entry) not in gone]
    return best


def _sizes(size, kernel_size):
    """Sizes of image and kernel, finest first, down to a kernel of about 5 pixels or an image of about 30."""
    sizes, scale = [(tuple(size), tuple(kernel_size))], 1.0
    while max(sizes[-1][1]) > COARSEST_KERNEL:
        scale /= PYRAMID_RATIO
        if min(size) * scale <= COARSEST_IMAGE:
            break
        sizes.append((tuple(round(n * scale) for n in size), tuple(odd(n * scale) for n in kernel_size)))
    return sizes


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


def _enlarged(bests, size):
    """The kernels of all searches at one scale, best first, in full size, as `coarse_to_fine_kernels` returns them."""
    ordered = sorted((entry for best in bests for entry in best), key=_first)
    kernels = _enlarge(torch.stack([kernel for _, _, kernel in ordered]), size)
    return [(score, kernel / kernel.sum()) for (score, _, _), kernel in zip(ordered, kernels, strict=True)]


def _enlarge(kernels, size):
    """Kernels (n, h, w) at another size."""
    if kernels.shape[1:] == size:
        return kernels
    kernels = F.interpolate(kernels[None], size=size, mode="bilinear", align_corners=False)[0]
    return centred(kernels)
