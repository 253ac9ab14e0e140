"""The public call: one blurry image in, the sharp image and the kernel out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from selfdeblur.checks import check_image, check_kernel, check_kernel_size
from selfdeblur.colour import luminance, with_luminance
from selfdeblur.errors import UserError
from selfdeblur.graphs import stepping
from selfdeblur.settings import Settings, check_known_kernel, make_settings
from selfdeblur.stages import Output, Run

# Fewest pixels that image and kernel have together on a side, less one: five halvings of H + h - 1 must leave the two
# pixels that reflection padding needs.
SMALLEST = 33


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
    quality: dict[str, Any] = field(repr=False)


def deblur(
    y: np.ndarray,
    kernel_size: int | Sequence[int] | None = None,
    *,
    preset: str = "release",
    num_iter: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    kernel: np.ndarray | None = None,
    progress: bool = False,
    **changes: Any,
) -> Result:
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
    output = run.output()
    image, k = to_arrays(output, y)
    seconds = time.monotonic() - begun
    return Result(image, k, {"loss": run.losses.cpu().numpy()}, settings, seconds, run.quality(output))


def start(
    y: np.ndarray,
    kernel_size: int | Sequence[int] | None,
    settings: Settings,
    *,
    device: str | torch.device | None = None,
    kernel: np.ndarray | None = None,
) -> Run:
    """A `Run` at its first step for a checked image y, see `deblur` for the parameters."""
    check_known_kernel(settings.preset, kernel is not None)
    if kernel is not None:
        kernel = check_kernel(kernel).astype(np.float32)
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


def to_arrays(output: Output, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sharp image (shape of y, with its chroma) and kernel (h, w) of a run's `Output` on image y, as float32 arrays."""
    return with_luminance(y, output.image.cpu().numpy()), output.kernel.cpu().numpy()


def affordable_preset() -> str:
    """The method of the paper, "release", where there is a GPU; "fast", which takes minutes on a CPU, elsewhere."""
    return "release" if torch.cuda.is_available() else "fast"


def choose_device(device: str | torch.device | None = None) -> torch.device:
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
