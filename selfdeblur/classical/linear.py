"""Linear algebra that search, judge and deconvolution share: correlation by FFT, differences, two small solvers."""

import torch
import torch.nn.functional as F

from selfdeblur.classical.recorded import Recorded
from selfdeblur.forward import fast_length
from selfdeblur.losses import gaussian
from selfdeblur.precision import arithmetic


class Correlation:
    """Valid correlation y = k ⊗ x of images (..., h, w) to (..., H, W), and its transposes, by FFT.

    ``mask``, a tensor that goes with (..., H, W), is 0 at the pixels of y that are left out, and 1 elsewhere; y itself
    is to be multiplied by it where it is handed to a transpose. With ``pairs`` all images are complex, each two real
    ones that share the kernel: so one transform does for both.
    """

    def __init__(self, blurry_size, kernel_size, mask=None, *, pairs=False):
        self.mask, self.pairs = mask, pairs
        self.blurry_size, self.kernel_size = tuple(blurry_size), tuple(kernel_size)
        self.sharp_size = tuple(n + k - 1 for n, k in zip(self.blurry_size, self.kernel_size, strict=True))
        self.fft_size = tuple(fast_length(n) for n in self.sharp_size)

    def spectrum(self, a):
        """Fourier transform of images or kernels, padded to one size."""
        return (torch.fft.fft2 if self.pairs else torch.fft.rfft2)(a, s=self.fft_size)

    def _crop(self, spectrum, size):
        back = torch.fft.ifft2 if self.pairs else torch.fft.irfft2
        return back(spectrum, s=self.fft_size)[..., : size[0], : size[1]]

    def forward(self, x_spectrum, k_conjugate):
        """y = k ⊗ x, and 0 where the mask is 0; of the kernel it takes the conjugate of the spectrum."""
        y = self._crop(x_spectrum * k_conjugate, self.blurry_size)
        return y if self.mask is None else y * self.mask

    def masked(self, y):
        """y with 0 where the mask is 0."""
        return y if self.mask is None else y * self.mask

    def transpose_in_x(self, y, k_spectrum):
        """What `forward` with a fixed kernel becomes when it is transposed: (H, W) to (h, w)."""
        return self._crop(self.spectrum(y) * k_spectrum, self.sharp_size)

    def transpose_in_k(self, y, x_conjugate):
        """What `forward` of fixed pairs of images becomes when it is transposed: pairs (H, W) to kernels (h, w)."""
        h, w = self.kernel_size
        # The real part of the inverse transform of the conjugate, by a forward one.
        return torch.fft.fft2(x_conjugate * self.spectrum(y), norm="forward").real[..., :h, :w]


def gradients(x):
    """Forward differences to the right and down, (..., H, W) to (..., 2, H - 1, W - 1)."""
    return torch.stack([x[..., :-1, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, :-1]], -3)


def gradient_pairs(x):
    """The same as real and imaginary part of one image: (..., H, W) to complex (..., H - 1, W - 1)."""
    return torch.complex(*gradients(x).unbind(-3))


def differences(x):
    """First differences of an image (H, W) to the right and down, then second ones: right, down, mixed."""
    return (
        x[:, 1:] - x[:, :-1],
        x[1:] - x[:-1],
        x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2],
        x[2:] - 2 * x[1:-1] + x[:-2],
        x[1:, 1:] - x[1:, :-1] - x[:-1, 1:] + x[:-1, :-1],
    )


def differences_transposed(d):
    """What `differences` becomes when it is transposed: five arrays to an image (H, W)."""
    right, down, right_twice, down_twice, both = d
    result = F.pad(right, (1, 0))
    result[:, :-1] -= right
    result[1:] += down
    result[:-1] -= down
    for places, twice in ((result, right_twice), (result.T, down_twice.T)):
        places[:, 2:] += twice
        places[:, 1:-1].sub_(twice, alpha=2)
        places[:, :-2] += twice
    result[1:, 1:] += both
    result[1:, :-1] -= both
    result[:-1, 1:] -= both
    result[:-1, :-1] += both
    return result


def shrink(image, size):
    """An image (H, W) at another size, by bicubic means without aliasing."""
    return F.interpolate(image[None, None], size=size, mode="bicubic", antialias=True, align_corners=False)[0, 0]


def taper(x):
    """A window (H, W) that goes to 0 at the border of images (..., H, W)."""
    rows, columns = (torch.hann_window(n, periodic=False, dtype=x.dtype, device=x.device) for n in x.shape[-2:])
    return rows[:, None] * columns


def smooth(x, sigma):
    """The valid part of an image (H, W) under a Gaussian of a standard deviation in pixels."""
    taps = gaussian(sigma, min(max(round(3 * sigma), 1), min(x.shape) // 4), x)
    with arithmetic("float32", x.device):
        return F.conv2d(F.conv2d(x[None, None], taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[0, 0]


def conjugate_gradients(matrix, right_side, x, steps, scaling=1.0, dims=2, *, residual=None, at_a_time=1):
    """Solve matrix(x) = right_side from x on; ``scaling`` is the inverse of the matrix's diagonal, if known.

    Returns x and the residual, right_side - matrix(x), which may be handed in if it is known for the x to begin with.

    Each problem is one tensor of the last ``dims`` dimensions, on its own. On a CPU there are fewer steps where all are
    solved; a GPU would have to be waited for. With more than one step ``at_a_time``, of which ``steps`` is a multiple,
    these are `Recorded`.
    """
    axes = tuple(range(-dims, 0))

    def inner(a, b):
        return (a * b).sum(axes, keepdim=True)

    def step(x, residual, direction, power):
        going = power > enough
        product = matrix(direction)
        length = torch.where(going, power / inner(direction, product), 0)
        x = torch.addcmul(x, length, direction)
        residual = torch.addcmul(residual, length, product, value=-1)
        scaled = scaling * residual
        new_power = inner(residual, scaled)
        direction = torch.addcmul(scaled, torch.where(going, new_power / power, 0), direction)
        return x, residual, direction, new_power

    def several(*state):
        for _ in range(at_a_time):
            state = step(*state)
        return state

    residual = right_side - matrix(x) if residual is None else residual
    direction = scaling * residual
    state = x, residual, direction, inner(residual, direction)
    enough = 1e-10 * inner(right_side, scaling * right_side)
    may_wait = x.device.type == "cpu" and not Recorded.on(x.device)
    with Recorded(several) as several:
        for _ in range(0, steps, at_a_time):
            if may_wait and not (state[-1] > enough).any():
                break
            state = several(*state) if at_a_time > 1 else step(*state)
    return state[:2]


def to_simplex(v):
    """Nearest point with non-negative entries that sum to 1, of each (h, w)."""
    ordered = v.flatten(-2).sort(descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, ordered.shape[-1] + 1, device=v.device)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (v - excess.gather(-1, last)[..., None]).clamp(min=0)
