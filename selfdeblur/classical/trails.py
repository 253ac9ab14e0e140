"""A kernel that can be seen: a small light before a dark ground is drawn out into a trail of the kernel's shape."""

import cv2
import numpy as np
import torch

from selfdeblur.classical.clipped import away_from_lights
from selfdeblur.classical.judge import badness, judged_window, two_opinions
from selfdeblur.classical.kernels import PART_OF_KERNEL, centred, point_like, similarity

# How much brighter than the ground around it a trail is, at least; it is sought above each of these levels.
LEVELS = (0.08, 0.15, 0.25, 0.4)

# The deviation of the ground around a trail, as a share of the trail's height, up to which the trail stands alone.
# Of what else looks alike in a picture little stands so alone.
MOST_GROUND = 0.1

# Trails of one picture are alike from this similarity on. So many have to be, and so many are looked at.
ALIKE, FEWEST, MOST = 0.85, 3, 60

# Trails that are clipped show where the kernel is, but not how much of it: others are preferred.
CLIPPED = 0.98

# A trail reaches one BESIDE-th of the kernel's size, or two pixels, beyond what is above its level, where it may be
# faint or broken; what is further away belongs to another one.
BESIDE = 8

# Coins and windows are alike, too, and stand alone. But as kernels they explain the picture worse than a point does, by
# 1.3 to 4 times its energy; trails of lights of the development half of the zoo have 0.4 to 0.9.
BETTER_THAN_A_POINT = 0.95

# Shortest trail, in pixels; anything shorter is a point.
SHORTEST = 5


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
        FEWEST trails are alike that fit into this size and stand alone, or where what they show is in
        pieces, or explains y no better than a point.
    """
    return best_kernel_of_trails(y, [kernel_size])


def best_kernel_of_trails(y, kernel_sizes):
    """`kernel_of_trails` for that of some sizes that explains y (H, W) best, against a point; None if there is none."""
    seen = [pair for size in kernel_sizes if (pair := _seen(y, size)) is not None]
    share, kernel = min(seen, key=lambda pair: pair[0], default=(BETTER_THAN_A_POINT, None))
    return kernel if share < BETTER_THAN_A_POINT else None


def _seen(y, kernel_size):
    """The energy of the kernel that trails show, over that of a point, and the kernel (h, w); None without trails."""
    trails = []
    for trail in sorted(_trails(y.cpu().numpy(), kernel_size), key=lambda trail: trail[0]):
        if len(trails) < MOST and all(np.hypot(*(trail[1] - t[1])) > max(kernel_size) / 4 for t in trails):
            trails.append(trail)
    if len(trails) < FEWEST:
        return None
    grounds, _, peaks, images = zip(*trails, strict=True)
    images = torch.from_numpy(np.stack(images)).float()
    alike = torch.stack([similarity(image, images) for image in images]) > ALIKE
    if int(alike.sum(1).max()) < FEWEST:
        return None
    some = torch.nonzero(alike.sum(1) >= 0.7 * alike.sum(1).max()).flatten().tolist()
    first = min(some, key=lambda n: (peaks[n] >= CLIPPED, grounds[n]))
    clipped = [peak >= CLIPPED for peak in peaks]
    taken = [n for n in torch.nonzero(alike[first]).flatten().tolist() if clipped[n] <= clipped[first]]
    mean = sum(_moved_onto(images[first], images[n]) / (images[n].sum() * grounds[n] ** 2) for n in taken)
    kernel = centred(mean.rot90(2, (0, 1)))
    # Of a trail that is in pieces the faintest parts are lost in the noise.
    pieces = cv2.connectedComponents((kernel > PART_OF_KERNEL * kernel.max()).numpy().astype(np.uint8))[0] - 1
    if pieces != 1:
        return None
    part = y[judged_window(y, kernel_size)]
    both = torch.stack([kernel, point_like(kernel)]).to(y)
    (_, energy), (_, others) = badness(two_opinions(part, away_from_lights(part)), both)
    return energy / others, kernel.to(y)


def _trails(y, size):
    """Trails: the ground's deviation over the height, the place, the largest value, the trail alone (h, w)."""
    h, w = size
    ground = cv2.medianBlur(np.rint(y.clip(0, 1) * 255).astype(np.uint8), min(2 * max(size) + 1, 99)) / 255
    above = y - ground
    for level in LEVELS:
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((above > level).astype(np.uint8), connectivity=8)
        for number, (left, top, width, height, _) in enumerate(boxes[1:], 1):
            if not (max(height, width) >= SHORTEST and height <= h and width <= w):
                continue
            row, column = top + (height - 1) // 2 - h // 2, left + (width - 1) // 2 - w // 2
            if not (0 <= row <= y.shape[0] - h and 0 <= column <= y.shape[1] - w):
                continue
            part = y[row : row + h, column : column + w]
            rim = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
            base, spread = np.median(rim), rim.std()
            peak = part.max() - base
            if peak >= LEVELS[1] and spread <= MOST_GROUND * peak:
                itself = (labels[row : row + h, column : column + w] == number).astype(np.uint8)
                itself = cv2.dilate(itself, np.ones((3, 3), np.uint8), iterations=max(max(size) // BESIDE, 2))
                trail = (part - base - 2 * spread).clip(0) * itself
                yield spread / peak, np.array([row, column]), part.max(), trail


def _moved_onto(image, other):
    """Another image (h, w) moved by whole pixels to where it is most like the first."""
    size = [2 * n for n in image.shape]
    products = torch.fft.irfft2(torch.fft.rfft2(image, s=size) * torch.fft.rfft2(other, s=size).conj(), s=size)
    row, column = divmod(int(products.argmax()), size[1])
    padded = torch.nn.functional.pad(other, (0, other.shape[1], 0, other.shape[0]))
    return padded.roll((row, column), (0, 1))[: image.shape[0], : image.shape[1]]
