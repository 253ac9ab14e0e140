"""A kernel that can be seen: a small light before a dark ground is drawn out into a trail of the kernel's shape.

A trail, or a piece of one, is a template: where else in the picture it is found there are trails of other lights. The
mean of the picture around all these places is a whole trail, as what lies around each of them is another thing each
time. Of the kernels that several templates lead to, the one that explains the picture best is refined.
"""

from functools import lru_cache

import cv2
import numpy as np
import torch

from selfdeblur.classical.clipped import NEARLY_WHITE
from selfdeblur.classical.deconvolution import refine_kernel
from selfdeblur.classical.judge import judged_window, summed_energies
from selfdeblur.classical.kernels import PART_OF_KERNEL, centred, point_like, share_on_rim, similarity

# How much brighter than the ground around it a template is, at least; it is sought above each of these levels.
LEVELS = (0.08, 0.15, 0.25, 0.4)

# The deviation of the ground around a template, as a share of its height, up to which it stands alone; the height that
# it has at least; its shortest length, in pixels.
MOST_GROUND, LEAST_HEIGHT, SHORTEST = 0.1, 0.15, 5

# So many templates are tried, first those that stand alone most clearly, and no two nearer than a quarter of a kernel.
MOST_TEMPLATES, APART = 12, 4

# A template is found where the picture is like it from this normalised correlation on, in so many places at least and
# at most, and the mean of these places is the next template, so many times.
ALIKE, FEWEST, MOST, TIMES = 0.75, 3, 24, 4

# In FEWEST of these places the picture is clearly like it, and stands out: by so many times what nine of ten pixels
# differ from the ground at most. On the development half of the zoo lights have from 7 on, bricks and letters up to 4.
CLEARLY_ALIKE, STANDS_OUT = 0.9, 5.5

# Two kernels are the same from this similarity on.
SAME = 0.95

# Coins and windows are alike, too. But as kernels they explain the picture worse than a point does, by 1.3 to 4 times
# its energy; trails of lights of the development half of the zoo have 0.3 to 0.9, where much is clipped 1.2.
MOST_ENERGY = 1.25

# Of sizes whose kernels differ by less than this share of the energy the first, the smallest, is taken.
SAME_ENERGY = 0.05

# A share of the trail up to which it may be clipped at all places, if it is refined: what is hidden so comes out wrong,
# and a refinement makes it worse.
MOST_HIDDEN = 0.05

# Of so many kernels, best first, each is refined in ROUNDS rounds, and the best of these further, for as long as its
# energy falls by this share, in MOST_ROUNDS at most.
REFINED, ROUNDS, MOST_ROUNDS, FALLS = 3, 3, 18, 0.003


def kernel_of_trails(y, kernel_size):
    """The kernel that the trails of lights in a picture show, if there are such trails.

    Parameters
    ----------
    y : tensor (H, W)
        Blurry image, 0..1.
    kernel_size : (int, int)
        Size (h, w) of the kernel, odd.

    Returns
    -------
    tensor of float32 (h, w) or None
        Kernel, sum 1, correlation sense: a light of x draws the kernel turned by 180 degrees into y. None where no
        FEWEST trails are alike, or where what they show explains y worse than a point by more than MOST_ENERGY allows.
    """
    return best_kernel_of_trails(y, [kernel_size])


def best_kernel_of_trails(y, kernel_sizes, *, most_on_rim=1.0):
    """`kernel_of_trails` for that of some sizes that explains y (H, W) best; None if there is none.

    Sizes are in rising order, and the smallest of those that are as good is taken.

    Kernels of which a larger share than ``most_on_rim`` lies on the rim of their frame are pieces, and left out. What
    was found for an image is remembered for a while, as several parts of a run ask for it.
    """
    pixels = y.detach().to("cpu", torch.float32).contiguous().numpy()
    kernel = _best(pixels.tobytes(), pixels.shape, y.device, tuple(map(tuple, kernel_sizes)), most_on_rim)
    return None if kernel is None else kernel.to(y).clone()


@lru_cache(maxsize=2)
def _best(pixels, shape, device, sizes, most_on_rim):
    y = torch.frombuffer(bytearray(pixels), dtype=torch.float32).view(shape).to(device)
    seen = [found for size in sizes if (found := _seen(y, size, most_on_rim)) is not None]
    if not seen:
        return None
    least = min(energy for energy, _, _ in seen)
    _, kernels, hidden = next(found for found in seen if found[0] <= (1 + SAME_ENERGY) * least)
    return kernels[0] if hidden > MOST_HIDDEN else _refined(y[judged_window(y, kernels[0].shape)], kernels)


def _seen(y, size, most_on_rim):
    """Of the kernels that trails show the least energy over that of a point, all (n, h, w), and what is hidden of the
    best; None without any."""
    found, hidden = [], []
    for kernel, share in _shown(y.cpu().numpy(), size):
        if share_on_rim(kernel) > most_on_rim:
            continue
        if not found or float(similarity(kernel, torch.stack(found)).max()) < SAME:
            found.append(kernel)
            hidden.append(share)
    if not found:
        return None
    kernels = torch.stack(found).to(y)
    part = y[judged_window(y, size)]
    *energies, of_point = summed_energies(part, torch.cat([kernels, point_like(kernels[0])[None]]))
    better = [n for n, energy in enumerate(energies) if energy < MOST_ENERGY * of_point]
    better.sort(key=energies.__getitem__)
    return (energies[better[0]] / of_point, kernels[better], hidden[better[0]]) if better else None


def _shown(y, size):
    """The kernels (h, w) that the templates of an image (H, W) lead to, each with the share that is hidden."""
    side = min(2 * max(size) + 1, 99)
    above = y - cv2.medianBlur(np.rint(y.clip(0, 1) * 255).astype(np.uint8), side).astype(np.float32) / 255
    clipped, usual = y >= NEARLY_WHITE, np.quantile(np.abs(above), 0.9)
    taken = []
    for _, place, trail in sorted(_templates(above, clipped, size), key=lambda template: template[0]):
        if len(taken) == MOST_TEMPLATES or any(np.hypot(*(place - other)) <= max(size) / APART for other in taken):
            continue
        taken.append(place)
        for _ in range(TIMES):
            places = _places(above, trail)
            trail, hidden = _mean(above, clipped, [corner for corner, _, _ in places], trail)
            if trail is None:
                break
        else:
            clear = [alike >= CLEARLY_ALIKE and height >= STANDS_OUT * usual for _, alike, height in places]
            if sum(clear) >= FEWEST:
                yield centred(torch.from_numpy(trail).rot90(2, (0, 1)).contiguous()), hidden


def _templates(above, clipped, size):
    """Templates: how little each stands alone, its place (row, column), itself (h, w)."""
    h, w = size
    for level in LEVELS:
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((above > level).astype(np.uint8), connectivity=8)
        for number, (left, top, width, height, _) in enumerate(boxes[1:], 1):
            if not (max(height, width) >= SHORTEST and height <= h and width <= w):
                continue
            row, column = top + (height - 1) // 2 - h // 2, left + (width - 1) // 2 - w // 2
            if not (0 <= row <= above.shape[0] - h and 0 <= column <= above.shape[1] - w):
                continue
            window = slice(row, row + h), slice(column, column + w)
            part = above[window]
            base, spread = _ground(part)
            height = part.max() - base
            if height >= LEAST_HEIGHT and spread <= MOST_GROUND * height:
                itself = _grown(labels[window] == number)
                trail = ((part - base - 2 * spread).clip(0) * itself).astype(np.float32)
                yield spread / height + clipped[window].any(), np.array([row, column]), trail


def _ground(part):
    """The level and the deviation of what a window (h, w) has at its rim, whatever else crosses it."""
    rim = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
    base = np.median(rim)
    return base, 1.4826 * np.median(np.abs(rim - base))


def _places(above, trail):
    """Where a trail (h, w) is found in a picture without its ground, the most alike first.

    Each place is its corner (row, column), how much alike it is, and how far it stands out of the ground.
    """
    around = _grown(_part_of(trail)).astype(np.float32)
    alike = np.nan_to_num(cv2.matchTemplate(above, trail, cv2.TM_CCOEFF_NORMED, mask=around), posinf=0, neginf=0)
    places, apart = [], max(max(trail.shape) // APART, 2)
    while len(places) < MOST:
        row, column = np.unravel_index(alike.argmax(), alike.shape)
        if alike[row, column] < ALIKE:
            break
        height = above[row : row + trail.shape[0], column : column + trail.shape[1]].max()
        places.append(((row, column), alike[row, column], height))
        alike[max(row - apart, 0) : row + apart + 1, max(column - apart, 0) : column + apart + 1] = 0
    return places


def _mean(above, clipped, places, trail):
    """The trail (h, w) that is at several places, None where there are too few, and which share of it is hidden.

    The mean is a median at each pixel, weighed by the brightness of the lights: at one place or another each pixel is
    crossed by another trail. Clipped pixels do not count; where there are no others the trail is hidden, and taken for
    what the faintest light has there at least.
    """
    (h, w), itself = trail.shape, _part_of(trail)
    parts, weights = [], []
    for row, column in places:
        part, whole = (image[row : row + h, column : column + w] for image in (above, ~clipped))
        seen = itself & whole
        if seen.sum() < SHORTEST:
            continue
        t, v = trail[seen], part[seen]
        brightness = (t - t.mean()) @ (v - v.mean()) / max(np.square(t - t.mean()).sum(), 1e-9)
        brightness = max(brightness, 0.3 * v.sum() / t.sum(), 1e-6)
        parts.append(part / brightness)
        weights.append(brightness * whole)
    if len(parts) < FEWEST:
        return None, 0.0
    parts, weights = np.array(parts), np.array(weights)
    order = np.argsort(parts, 0)
    summed = np.take_along_axis(weights, order, 0).cumsum(0)
    middle = (summed < summed[-1] / 2).sum(0, keepdims=True)
    hidden = summed[-1] == 0
    mean = np.take_along_axis(parts, np.take_along_axis(order, middle, 0), 0)[0]
    mean = np.where(hidden, parts.max(0), mean)
    base, spread = _ground(mean)
    mean = (mean - base - 2 * spread).clip(0)
    if mean.sum() <= 0:
        return None, 0.0
    return centred(torch.from_numpy(mean)).numpy().astype(np.float32), mean[hidden].sum() / mean.sum()


def _grown(inside):
    """A mask (h, w) with what is at most two pixels from it, as 0 and 1."""
    return cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8))


def _part_of(trail):
    return trail > PART_OF_KERNEL * trail.max()


def _refined(y, kernels):
    """The best kernel (h, w) that a refinement makes of some kernels (n, h, w), those of least energy in y (H, W)."""
    candidates = list(kernels[:REFINED])
    candidates += [refine_kernel(y, kernel, rounds=ROUNDS) for kernel in candidates]
    energies = summed_energies(y, torch.stack(candidates))
    energy, kernel = min(zip(energies, candidates, strict=True), key=lambda pair: pair[0])
    for _ in range(ROUNDS, MOST_ROUNDS, ROUNDS):
        further = refine_kernel(y, kernel, rounds=ROUNDS)
        (now,) = summed_energies(y, further[None])
        if now > (1 - FALLS) * energy:
            break
        energy, kernel = now, further
    return kernel
