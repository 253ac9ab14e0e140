"""The public call: one blurry image in, the sharp image and the kernel out."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from selfdeblur.colour import luminance, with_luminance
from selfdeblur.errors import UserError
from selfdeblur.graphs import stepping
from selfdeblur.settings import Settings, make_settings
from selfdeblur.solver import Run


@dataclass(frozen=True)
class Result:
    """What `deblur` returns.

    Attributes
    ----------
    image : ndarray of float32
        Sharp image x of the shape of y, range 0 to 1.
    kernel : ndarray of float32
        Blur kernel k (h, w), non-negative, sum 1, in correlation sense: the
        flip of MATLAB's convolution kernel.
    history : dict of str to ndarray
        ``loss``: the objective at each step.
    settings : Settings
    seconds : float
        Time that the steps took.
    quality : dict
        What speaks for or against the result, judged without the sharp image:
        see `selfdeblur.classical.quality.assess`.
    """

    image: np.ndarray
    kernel: np.ndarray
    history: dict[str, np.ndarray] = field(repr=False)
    settings: Settings
    seconds: float
    quality: dict = field(repr=False)


def deblur(
    y,
    kernel_size=None,
    *,
    preset="release",
    num_iter=None,
    seed=0,
    device=None,
    kernel=None,
    progress=False,
    **changes,
):
    """Deblur one image with SelfDeblur (Ren et al., CVPR 2020).

    Parameters
    ----------
    y : ndarray
        Blurry image (H, W), or (H, W, 3) red, green, blue. Floating point
        within 0 to 1, or unsigned integers over their whole range. Of a colour
        image the luminance is deblurred, its chroma is kept.
    kernel_size : int or (int, int)
        Size (h, w) of the kernel, odd; rather too large than too small. Not
        needed where ``kernel`` is given.
    preset : {"release", "paper", "nonblind", "fast", "best"}
        See `selfdeblur.PRESETS`.
    num_iter : int, optional
        Steps; by default those of the preset.
    seed : int
    device : str or torch.device, optional
        By default CUDA where there is one, else the CPU.
    kernel : ndarray (h, w), optional
        Known kernel, non-negative, in correlation sense; it is divided by its
        sum. Needed by, and only used with, preset ``nonblind``.
    progress : bool
        Show a progress bar on standard error.
    **changes
        Further fields of `Settings`, say ``tv_weight=1e-3``.

    Returns
    -------
    Result

    Raises
    ------
    UserError
        If the image, the kernel, its size, a setting or the device is not usable.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdeblur import deblur
    >>> y = np.random.default_rng(0).random((40, 48))
    >>> result = deblur(y, (5, 5), num_iter=2, device="cpu")
    >>> result.image.shape, result.kernel.shape, len(result.history["loss"])
    ((40, 48), (5, 5), 2)
    """
    device = choose_device(device)
    changes.setdefault("noise_from", device.type)
    settings = make_settings(preset, num_iter=num_iter, seed=seed, **changes)
    y = check_image(y)
    run = start(y, kernel_size, settings, device=device, kernel=kernel)
    begun = time.monotonic()
    with stepping(run) as (step, settle), tqdm(total=settings.num_iter, disable=not progress, unit="step") as bar:
        while run.steps_done < settings.num_iter:
            step()
            bar.update()
            if progress and run.steps_done % 10 == 0:
                settle()
                bar.set_postfix(loss=f"{run.losses[run.steps_done - 1].item():.3e}", refresh=False)
    image, k = finish(run, y)
    seconds = time.monotonic() - begun
    return Result(image, k, {"loss": run.losses.cpu().numpy()}, settings, seconds, run.quality())


def start(y, kernel_size, settings, *, device=None, kernel=None):
    """A `Run` at its first step for a checked image y, see `deblur` for the parameters."""
    if (kernel is None) == (settings.preset == "nonblind"):
        raise UserError(
            "kernel: preset nonblind needs a kernel"
            if kernel is None
            else f"kernel: preset {settings.preset} estimates the kernel; use preset nonblind with a known one"
        )
    if kernel is not None:
        kernel = check_kernel(kernel)
        if kernel_size is not None and check_kernel_size(kernel_size) != kernel.shape:
            raise UserError(f"kernel_size: {kernel_size} differs from the size of the kernel, {kernel.shape}")
        kernel_size = kernel.shape
    elif kernel_size is None:
        raise UserError("kernel_size: needed where no kernel is given")
    h, w = check_kernel_size(kernel_size)
    if y.shape[0] < h or y.shape[1] < w:
        raise UserError(f"the image, {y.shape[0]} x {y.shape[1]}, is smaller than the kernel, {h} x {w}")
    if y.shape[0] + h <= SMALLEST or y.shape[1] + w <= SMALLEST:
        raise UserError(f"the image, {y.shape[0]} x {y.shape[1]}, is too small; {SMALLEST} pixels a side are enough")
    device = choose_device(device)
    if kernel is not None:
        kernel = torch.from_numpy(kernel)[None, None].to(device)
    return Run(torch.from_numpy(luminance(y))[None, None].to(device), (h, w), settings, kernel=kernel)


def finish(run, y):
    """Sharp image (shape of y) and kernel (h, w) of a run on image y, as float32 arrays."""
    x, k = run.result()
    return with_luminance(y, x.numpy()), k.numpy()


def check_image(y):
    """Turn an image into float32 within 0 to 1, or raise `UserError`."""
    y = np.asarray(y)
    if not (y.ndim == 2 or (y.ndim == 3 and y.shape[2] == 3)):
        raise UserError(f"the image must be of shape (H, W) or (H, W, 3), found {y.shape}")
    if np.issubdtype(y.dtype, np.unsignedinteger):
        y = y / np.iinfo(y.dtype).max
    elif not np.issubdtype(y.dtype, np.floating):
        raise UserError(f"the image must be of floats or unsigned integers, found {y.dtype}")
    if not np.isfinite(y).all():
        raise UserError("the image holds values that are not finite")
    if y.size == 0:
        raise UserError("the image is empty")
    if y.min() < 0 or y.max() > 1:
        raise UserError(f"the image must lie within 0 to 1, found {y.min():.3g} to {y.max():.3g}")
    return y.astype(np.float32)


# Five halvings of H + h - 1 must leave the two pixels that reflection padding needs.
SMALLEST = 33


def check_kernel(kernel):
    """Turn a kernel into float32 of sum 1, or raise `UserError`."""
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 2:
        raise UserError(f"the kernel must be of shape (h, w), found {kernel.shape}")
    if not np.isfinite(kernel).all() or kernel.min() < 0:
        raise UserError("the kernel holds values that are negative or not finite")
    if kernel.sum() <= 0:
        raise UserError("the kernel sums to 0")
    check_kernel_size(kernel.shape)
    return (kernel / kernel.sum()).astype(np.float32)


def check_kernel_size(kernel_size):
    """Turn one or two numbers into (h, w), or raise `UserError` where one is not odd and positive."""
    size = np.atleast_1d(kernel_size).tolist()
    size = tuple(size * 2 if len(size) == 1 else size)
    if len(size) != 2 or any(not isinstance(n, int) or n < 1 or n % 2 == 0 for n in size):
        raise UserError(f"kernel_size: {' '.join(map(str, size))}: one or two odd, positive numbers are needed")
    return size


def choose_device(device=None):
    """The device to run on: the one that is named, else CUDA where there is one, else the CPU."""
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {device} cannot be used here; try --device cpu ({_first_line(error)})") from error
    return device


def _first_line(error):
    return str(error).strip().split("\n")[0]
