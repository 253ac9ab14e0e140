"""Scores of a deblurred image and of an estimated kernel: arrays in, numbers out.

The protocol is that of the published scripts: cut a border off the sharp
image, move the result by the quarter-pixel shift that fits best, then compare.
The shift is found exactly without trying all of them on the pixels, see
`align`.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage, signal

# Pixels cut off at each side of the sharp image, and steps of the shift a pixel, both as in the published scripts.
BORDER = 15
STEPS = 4

# Numbers are computed on the scale 0..255: the products and quarter weights of 8-bit values are then whole
# multiples of 1/256, which float64 adds without rounding, so that equal sums are equal and ties are real ties.
_PEAK = 255.0


@dataclass(frozen=True)
class Alignment:
    """A result moved onto the sharp image.

    Attributes
    ----------
    image : ndarray
        (H - 2 border, W - 2 border), the moved result; range 0 to 1.
    truth : ndarray
        The sharp image with its border cut off, of the same shape.
    shift_y, shift_x : float
        Pixels: ``image[i, j]`` is the result at row ``border + i + shift_y``
        and column ``border + j + shift_x``.
    on_rim : bool
        True if the shift is the largest that was tried in some direction, so
        that a better one may lie outside.
    """

    image: np.ndarray
    truth: np.ndarray
    shift_y: float
    shift_x: float
    on_rim: bool

    @property
    def error(self):
        """The signed difference image - truth."""
        return self.image - self.truth


def luminance(image):
    """Y of MATLAB's ``rgb2ycbcr`` for a floating-point image.

    Parameters
    ----------
    image : ndarray
        (H, W, 3) red, green, blue; range 0 to 1.

    Returns
    -------
    ndarray
        (H, W), range 16/255 to 235/255: ITU-R BT.601 with head room, not the
        full-range Y of OpenCV.
    """
    image = np.asarray(image, dtype=np.float64)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a colour image of shape (H, W, 3) is needed, not {image.shape}")
    return (image @ np.array([65.481, 128.553, 24.966]) + 16) / _PEAK


def align(image, truth, *, maxshift=10, border=BORDER):
    """Move a result onto the sharp image by the shift with the least squared difference.

    All shifts from ``-maxshift`` to ``maxshift`` in steps of a quarter pixel
    are compared, both ways, with bilinear interpolation between pixels. Of
    equal sums the first counts, by rows: the least ``shift_y``, then the least
    ``shift_x``.

    Parameters
    ----------
    image, truth : ndarray
        (H, W) result and sharp image; range 0 to 1.
    maxshift : int
        Pixels, 0 to ``border``. The published scripts had 5, later 10.
    border : int
        Pixels cut off the sharp image at each side.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If the shapes differ, an image is not (H, W) or too small, or
        ``maxshift`` is out of range.

    Notes
    -----
    A moved image is a sum of four pixel-shifted ones with weights w, so its
    squared difference from the truth t is ``w' G w - 2 w' c + t't``. G holds
    window sums of products of neighbouring pixels, from running sums; c holds
    the correlations with the truth at whole shifts, from one FFT. The shifts
    whose sum is least but for rounding are then compared on the pixels
    themselves, which makes the answer that of the exhaustive search.
    """
    image = np.asarray(image, dtype=np.float64)
    truth = np.asarray(truth, dtype=np.float64)
    if image.ndim != 2 or truth.ndim != 2:
        raise ValueError(f"two images of shape (H, W) are needed, not {image.shape} and {truth.shape}")
    if image.shape != truth.shape:
        raise ValueError(f"the sizes differ: {_size(image)} against {_size(truth)} of the sharp image")
    if maxshift != int(maxshift) or not 0 <= maxshift <= border:
        raise ValueError(f"maxshift is {maxshift}, it has to be a whole number from 0 to {border}")
    if min(truth.shape) <= 2 * border:
        raise ValueError(f"{_size(truth)} pixels are too few for a border of {border} at each side")
    maxshift = int(maxshift)
    inner = truth[border : truth.shape[0] - border, border : truth.shape[1] - border] * _PEAK
    rows, columns = (slice(border - maxshift, n - border + maxshift) for n in image.shape)
    reach = np.pad(image[rows, columns] * _PEAK, ((0, 1), (0, 1)), mode="edge")

    sums, rounding = _squared_differences(reach, inner)
    alike = np.argwhere(sums <= sums.min() + rounding)
    if np.ptp(reach) == 0:
        # A run that failed may leave one grey: every shift is as good, and there is no need to try thousands.
        alike = alike[:1] * 0
    first = None
    for row, column in alike:
        moved = _moved(reach, inner.shape, row, column)
        exact = np.sum((moved - inner) ** 2)
        if first is None or exact < first[0]:
            first = exact, row, column, moved
    _, row, column, moved = first
    last = sums.shape[0] - 1
    on_rim = maxshift > 0 and (row in (0, last) or column in (0, last))
    shift_y, shift_x = (float(i) / STEPS - maxshift for i in (row, column))
    return Alignment(moved / _PEAK, inner / _PEAK, shift_y, shift_x, bool(on_rim))


def psnr(image, truth):
    """Peak signal-to-noise ratio in dB for the peak 1; infinite for equal images.

    Parameters
    ----------
    image, truth : ndarray
        Of one shape; range 0 to 1.
    """
    image, truth = _pair(image, truth)
    mean = np.mean((image - truth) ** 2)
    return float(-10 * np.log10(mean)) if mean > 0 else float("inf")


def ssim(image, truth, *, downsample=True):
    """Structural similarity of Wang et al. 2004.

    Window of 11 x 11, Gaussian of sigma 1.5, K = 0.01 and 0.03, weighted
    (biased) moments, mean over the places where the window lies in the image.

    Parameters
    ----------
    image, truth : ndarray
        (H, W), at least 11 x 11; range 0 to 1.
    downsample : bool
        First average over f x f pixels and keep each f-th one,
        f = round(min(H, W) / 256), as the script of the authors of SSIM and
        the published figures do. Without it the score of a large image is
        much lower.

    Returns
    -------
    float
    """
    image, truth = _pair(image, truth)
    if image.ndim != 2 or min(image.shape) < 11:
        raise ValueError(f"SSIM needs images of shape (H, W), at least 11 x 11, not {image.shape}")
    image, truth = image * _PEAK, truth * _PEAK
    # MATLAB rounds halves up, Python to even: 640 pixels are a factor of 3.
    factor = int(np.floor(min(image.shape) / 256 + 0.5)) if downsample else 1
    if factor > 1:
        image, truth = (_box(a, factor)[::factor, ::factor] for a in (image, truth))
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def local(a):
        along_y = ndimage.correlate1d(a, taps, axis=0, mode="constant")[5:-5]
        return ndimage.correlate1d(along_y, taps, axis=1, mode="constant")[:, 5:-5]

    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    mean_a, mean_b = local(image), local(truth)
    squares = mean_a**2 + mean_b**2
    products = mean_a * mean_b
    spread = local(image**2 + truth**2) - squares
    joint = local(image * truth) - products
    return float(np.mean((2 * products + c1) * (2 * joint + c2) / ((squares + c1) * (spread + c2))))


def error_ratio(error, reference):
    """Error ratio as the published Levin figures have it: a ratio of matrix 2-norms.

    Parameters
    ----------
    error, reference : ndarray
        (H, W) differences from the sharp image, each after its own alignment:
        of the result, and of the result with the true kernel.

    Returns
    -------
    float
        Largest singular value of ``error`` over that of ``reference``.

    Notes
    -----
    Levin et al. 2009 define another number, see `ssd_ratio`.
    """
    return _ratio(np.linalg.norm(error, 2), np.linalg.norm(reference, 2))


def ssd_ratio(error, reference):
    """Error ratio as Levin et al. 2009 define it: a ratio of sums of squares.

    Parameters and result are those of `error_ratio`.
    """
    return _ratio(np.sum(np.square(error)), np.sum(np.square(reference)))


def kernel_similarity(kernel, truth):
    """Greatest normalised cross-correlation of two kernels over all whole shifts.

    Parameters
    ----------
    kernel, truth : ndarray
        (h, w) non-negative, at any scale and of any two sizes. Both have to
        be of one sense, see `correlation_kernel`.

    Returns
    -------
    float
        0 to 1; 1 for kernels that are equal but for scale and shift.

    References
    ----------
    Hu and Yang, "Good regions to deblur", ECCV 2012.
    """
    kernel, truth = np.asarray(kernel, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if kernel.ndim != 2 or truth.ndim != 2:
        raise ValueError(f"two kernels of shape (h, w) are needed, not {kernel.shape} and {truth.shape}")
    scale = np.linalg.norm(kernel) * np.linalg.norm(truth)
    if not scale > 0:
        return 0.0
    return float(signal.correlate(kernel, truth, mode="full", method="direct").max() / scale)


def correlation_kernel(kernel):
    """Turn a convolution kernel (MATLAB's ``conv2`` and ``imfilter(.., 'conv')``) into a correlation kernel, or back.

    Parameters
    ----------
    kernel : ndarray
        (h, w).

    Returns
    -------
    ndarray
        (h, w), turned by 180 degrees.
    """
    return np.asarray(kernel)[::-1, ::-1]


def _pair(image, truth):
    image, truth = np.asarray(image, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if image.shape != truth.shape:
        raise ValueError(f"the shapes differ: {image.shape} and {truth.shape}")
    return image, truth


def _size(image):
    return f"{image.shape[1]} x {image.shape[0]}"


def _ratio(value, reference):
    if reference > 0:
        return float(value / reference)
    return 1.0 if value == 0 else float("inf")


def _moved(reach, shape, row, column):
    """The window of ``shape`` whose corner is at (row, column) quarter pixels of ``reach``."""
    y, x = row // STEPS, column // STEPS
    fy, fx = row % STEPS / STEPS, column % STEPS / STEPS
    a = reach[y : y + shape[0] + 1, x : x + shape[1] + 1]
    return (1 - fy) * ((1 - fx) * a[:-1, :-1] + fx * a[:-1, 1:]) + fy * ((1 - fx) * a[1:, :-1] + fx * a[1:, 1:])


def _squared_differences(reach, inner):
    """Sums of squared differences at all quarter-pixel corners, and a bound on their rounding."""
    h, w = inner.shape
    n = reach.shape[0] - h
    # A constant taken off both changes no difference and makes the sums, and so their rounding, smaller.
    middle = np.rint(inner.mean())
    inner, reach = inner - middle, reach - middle

    size = [fft.next_fast_len(s, real=True) for s in reach.shape]
    spectrum = fft.rfft2(reach, size) * np.conj(fft.rfft2(inner, size))
    cross = np.pad(fft.irfft2(spectrum, size)[:n, :n], ((0, 1), (0, 1)), mode="edge")

    def windows(products):
        """Sums over each h x w window; the last ones repeated, where the weight is zero."""
        total = np.pad(products, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        sums = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
        return np.pad(sums, [(0, n + 1 - s) for s in sums.shape], mode="edge")

    square = windows(reach**2)
    below = windows(reach[:-1] * reach[1:])
    beside = windows(reach[:, :-1] * reach[:, 1:])
    falling = windows(reach[:-1, :-1] * reach[1:, 1:])
    rising = windows(reach[1:, :-1] * reach[:-1, 1:])
    total = np.sum(inner**2)

    sums = np.empty((STEPS * n, STEPS * n))
    for py in range(STEPS):
        for px in range(STEPS):
            fy, fx = py / STEPS, px / STEPS
            (a, b), (c, d) = ((1 - fy) * (1 - fx), (1 - fy) * fx), (fy * (1 - fx), fy * fx)
            energy = (
                a * a * square[:-1, :-1] + b * b * square[:-1, 1:] + c * c * square[1:, :-1] + d * d * square[1:, 1:]
            )
            energy += 2 * (a * c * below[:-1, :-1] + b * d * below[:-1, 1:])
            energy += 2 * (a * b * beside[:-1, :-1] + c * d * beside[1:, :-1])
            energy += 2 * (a * d * falling[:-1, :-1] + b * c * rising[:-1, :-1])
            match = a * cross[:-1, :-1] + b * cross[:-1, 1:] + c * cross[1:, :-1] + d * cross[1:, 1:]
            sums[py::STEPS, px::STEPS] = energy - 2 * match + total
    last = STEPS * (n - 1) + 1
    rounding = 1e-12 * (np.sum(reach**2) + total)
    return sums[:last, :last], rounding


def _box(image, factor):
    """Mean over factor x factor pixels, symmetric border; an even window reaches further right and down."""
    taps = np.full(factor, 1 / factor)
    origin = -1 if factor % 2 == 0 else 0
    for axis in (0, 1):
        image = ndimage.correlate1d(image, taps, axis=axis, mode="reflect", origin=origin)
    return image
