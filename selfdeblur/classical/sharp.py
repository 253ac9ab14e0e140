"""Whether a picture is sharp already, told from its edges, before any search for a kernel."""

import torch
import torch.nn.functional as F

from selfdeblur.classical.clipped import lights
from selfdeblur.classical.judge import noise_level
from selfdeblur.classical.linear import smooth

# An edge is looked at over so many pixels at each side. Over the shorter reach a short blur shows, over the longer one
# the two edges that a double exposure makes of one.
REACHES = (8, 16)

# Edges that count rise by so much, and by so many deviations of the noise, which makes steps of its own.
LEAST_RISE, LEAST_RISE_OF_NOISE = 0.1, 25
# The largest step of noise alone within a reach, in its deviations.
STEP_OF_NOISE = 2.5
# Fewer edges say nothing.
FEWEST_EDGES = 50

# Sharp photographs have a steepness of 0.3 and more, drawings up to 1, an edge that is blurred by a Gaussian of
# deviation s has 0.4 / s. Blurry ones of the development half of the zoo have less than 0.3 but for double exposures,
# which have ghosts, and lights at night.
SHARP = 0.3

# What correlates with a picture's finest detail from NEAR to FARTHEST pixels away is a ghost, or a pattern as that of
# text, whose thin strokes stay steep when they are blurred. The steepness has to be so many times the correlation: a
# sharp page has 0.65 and 0.23, blurred by nine pixels 0.34 and 0.25, a double exposure 0.44 and 0.39.
TIMES_GHOST, NEAR, FARTHEST = 1.8, 4, 45

# In a picture whose median is below this the trails of lights look like edges.
DARK = 0.15


def is_sharp(y):
    """Whether the edges of an image are as steep as those of a sharp one, and not doubled.

    Parameters
    ----------
    y : tensor (H, W)
        Image, 0..1.

    Returns
    -------
    bool
        False where there are too few edges to tell, or the picture is dark.
    """
    if float(y.median()) < DARK:
        return False
    steep = steepness(y)
    return steep >= SHARP and steep >= TIMES_GHOST * ghost(y)


def steepness(y):
    """The largest step from pixel to pixel at an edge, as a share of the whole rise of the edge.

    Parameters
    ----------
    y : tensor (H, W)
        Image, 0..1.

    Returns
    -------
    float
        Median over the edges, least of both directions and of both REACHES; 0 where there are too few edges. Edges
        at lights that may be clipped do not count.
    """
    noise, white = noise_level(y), lights(y)
    least_rise = max(LEAST_RISE, LEAST_RISE_OF_NOISE * noise)
    found = []
    for image, clipped in ((y, white), (y.T, None if white is None else white.T)):
        steps = (image[:, 1:] - image[:, :-1]).abs()
        for reach in REACHES:
            rises = _largest(image, reach) + _largest(-image, reach)
            rises = torch.minimum(rises[:, 1:], rises[:, :-1])
            counts = (steps >= _largest(steps, reach)) & (rises > least_rise)
            if clipped is not None:
                counts &= _largest(clipped.to(y), reach + 1)[:, 1:] == 0
            counts[:, :reach] = counts[:, -reach:] = False
            if int(counts.sum()) < FEWEST_EDGES:
                return 0.0
            found.append(float(((steps[counts] - STEP_OF_NOISE * noise).clamp(min=0) / rises[counts]).median()))
    return min(found)


def _largest(lines, reach):
    """The largest value within so many pixels to the left and the right."""
    return F.max_pool1d(lines[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]


def ghost(y):
    """The largest correlation of an image's fine detail with itself, more than NEAR and up to FARTHEST pixels away.

    Parameters
    ----------
    y : tensor (H, W)
        Image, 0..1.

    Returns
    -------
    float
        At most 1.
    """
    sigma = NEAR / 2
    smoothed = smooth(y, sigma)
    rim = [(n - m) // 2 for n, m in zip(y.shape, smoothed.shape, strict=True)]
    inside = y[rim[0] : rim[0] + smoothed.shape[0], rim[1] : rim[1] + smoothed.shape[1]]
    detail = (inside - smoothed).clamp(-0.1, 0.1)
    detail = detail - detail.mean()
    for axis in (0, 1):
        window = torch.hann_window(detail.shape[axis], periodic=False, dtype=y.dtype, device=y.device)
        detail = detail * (window[:, None] if axis == 0 else window)
    power = torch.fft.rfft2(detail, s=[2 * n for n in detail.shape]).abs() ** 2
    correlation = torch.fft.fftshift(torch.fft.irfft2(power, s=[2 * n for n in detail.shape]))
    reach = [min(FARTHEST, n - 1) for n in detail.shape]
    rows, columns = (slice(n - r, n + r + 1) for n, r in zip(detail.shape, reach, strict=True))
    correlation = correlation[rows, columns]
    places = [torch.arange(-r, r + 1, device=y.device) for r in reach]
    far = torch.hypot(*torch.meshgrid(*(p.to(y) for p in places), indexing="ij")) >= NEAR
    middle = correlation[reach[0], reach[1]].clamp(min=1e-12)
    return float((correlation[far] / middle).max())
