"""The terms of the objective: mean squared error, structural similarity, total variation."""

import torch
import torch.nn.functional as F

# Constants and window of SSIM as Wang et al. have them, for images within 0 to 1.
C1, C2 = 0.01**2, 0.03**2
TAPS, SIGMA = 11, 1.5


def mse(y_hat, y):
    """Mean squared error of two tensors of equal shape."""
    return F.mse_loss(y_hat, y)


def total_variation(x):
    """Total variation of an image as the released program weighs it.

    TV(x) = 2 (mean dx^2 + mean dy^2), the means over the differences that
    exist in each direction.

    Parameters
    ----------
    x : tensor (..., H, W)
    """
    dy = x[..., 1:, :] - x[..., :-1, :]
    dx = x[..., :, 1:] - x[..., :, :-1]
    return 2 * (dx.square().mean() + dy.square().mean())


class DSSIM:
    """1 - SSIM to one fixed image (Wang et al. 2004, as in the released program).

    Gaussian window of 11 taps and sigma 1.5, images within 0 to 1. The border
    is zero-padded ('same'), unlike in most libraries: that weighs the outer
    5 pixels differently and is part of the published method.

    A pass of the window along one axis is a product with a banded matrix,
    which runs many times faster than a convolution of one channel. All that
    depends on y alone is computed once.

    Parameters
    ----------
    y : tensor (1, 1, H, W)
        The image to be matched, range 0 to 1.
    """

    def __init__(self, y):
        self.y = y
        self.rows = _window_matrix(y.shape[-2], y)
        self.columns = _window_matrix(y.shape[-1], y)
        self.mean_y, square_y = self._filter(torch.cat([y, y * y])).split(1)
        self.mean_y_square = self.mean_y.square()
        self.variance_y = square_y - self.mean_y_square

    def _filter(self, stack):
        return self.rows @ stack @ self.columns

    def __call__(self, y_hat):
        """Return 1 - SSIM(y_hat, y) for y_hat of shape (1, 1, H, W)."""
        mean, square, product = self._filter(torch.cat([y_hat, y_hat * y_hat, y_hat * self.y])).split(1)
        mean_square = mean.square()
        mean_product = mean * self.mean_y
        ssim = ((2 * mean_product + C1) * (2 * (product - mean_product) + C2)) / (
            (mean_square + self.mean_y_square + C1) * (square - mean_square + self.variance_y + C2)
        )
        return 1 - ssim.mean()


def dssim_plain(y_hat, y):
    """1 - SSIM of two tensors (1, 1, H, W) with the two-dimensional window as a convolution layer."""
    taps = gaussian(SIGMA, TAPS // 2, y)
    window = taps.outer(taps)[None, None]

    def filtered(image):
        return F.conv2d(image, window, padding=TAPS // 2)

    mean_a, mean_b = filtered(y_hat), filtered(y)
    variance_a = filtered(y_hat * y_hat) - mean_a**2
    variance_b = filtered(y * y) - mean_b**2
    covariance = filtered(y_hat * y) - mean_a * mean_b
    ssim = ((2 * mean_a * mean_b + C1) * (2 * covariance + C2)) / (
        (mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2)
    )
    return 1 - ssim.mean()


def gaussian(sigma, reach, like):
    """Gaussian window of 2 ``reach`` + 1 taps and sum 1, of the type and device of ``like``."""
    offset = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    weights = torch.exp(-(offset**2) / (2 * sigma**2))
    return weights / weights.sum()


def _window_matrix(size, like):
    """Symmetric banded (size, size) matrix of the zero-padded window along one axis."""
    distance = torch.arange(size, device=like.device)
    distance = (distance[:, None] - distance[None, :]).abs()
    weights = torch.cat([gaussian(SIGMA, TAPS // 2, like)[TAPS // 2 :], like.new_zeros(1)])
    return weights[distance.clamp(max=TAPS // 2 + 1)]
