"""The public calls: one blurry image in, the sharp image and the kernel out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from selfdeblur.checks import check_image, check_kernel, check_kernel_size
from selfdeblur.classical.size import estimate_size
from selfdeblur.colour import luminance, with_luminance
from selfdeblur.errors import UserError
from selfdeblur.graphs import stepping
from selfdeblur.settings import PRESETS, TV_WEIGHT_OF_NOISE, Settings, check_known_kernel, make_settings
from selfdeblur.stages import Output, Run
from selfdeblur.values import from_unit, to_unit, value_range

# Fewest pixels that image and kernel have together on a side, less one: five halvings of H + h - 1 must leave the two
# pixels that reflection padding needs.
SMALLEST = 33


@dataclass(frozen=True)
class Result:
    """What `deblur` returns.

    Attributes
    ----------
    image : ndarray or tensor
        Sharp image x of the kind of y: its shape, type and range, a tensor on the same device where y was one.
    kernel : ndarray of float32
        Blur kernel k (h, w), non-negative, sum 1, in correlation sense: the
        flip of MATLAB's convolution kernel.
    history : dict of str to ndarray
        ``loss``: the objective at each step.
    settings : Settings
        The settings of the run, those that were not given at their defaults.
    seconds : float
        Time that the steps took, with the search for the kernel and the deconvolution; not the estimate of its size.
    quality : dict
        What speaks for or against the result, judged without the sharp image:
        see `selfdeblur.classical.quality.assess`.
    """

    image: np.ndarray | torch.Tensor
    kernel: np.ndarray
    history: dict[str, np.ndarray] = field(repr=False)
    settings: Settings
    seconds: float
    quality: dict[str, Any] = field(repr=False)


def deblur(
    y: np.ndarray | torch.Tensor,
    kernel_size: int | Sequence[int] | None = None,
    *,
    noise: float | None = None,
    channel_axis: int | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
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
    y : ndarray or tensor
        Blurry image (H, W), or (H, W, 3) red, green, blue. Floating point
        within 0 to 1, 8-bit integers, or integers of more bits, of which a part
        of the range may be used, see `selfdeblur.values.value_range`. Of a
        colour image the luminance is deblurred, its chroma is kept.
    kernel_size : int or (int, int), optional
        Size (h, w) of the kernel, odd; rather too large than too small. By
        default it is estimated, see `selfdeblur.classical.size.estimate_size`,
        or that of ``kernel``.
    noise : float, optional
        Standard deviation of the noise, of the range 0 to 1: sets ``tv_weight`` to a tenth of it, as the paper does.
        The presets "fast" and "best" go by what they find in y instead.
    channel_axis : int, optional
        The axis of the colours, where it is not the last one.
    callback : callable, optional
        Called once a step with a dict: ``stage``, ``step`` (from 1), ``steps``, ``loss``, ``seconds`` so far and the
        seconds ``left``, by the mean of the steps. On a GPU the loss is looked at every tenth step and None at the
        others. Where it returns True, the fit ends there.
    preset : {"release", "paper", "nonblind", "fast", "best"}
        See `selfdeblur.PRESETS`.
    num_iter : int, optional
        Steps; by default those of the preset.
    seed : int
        Of the networks, their inputs and the noise of the steps, at least 0.
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
        The sharp image, the kernel, and how far they may be trusted.

    Raises
    ------
    UserError
        A `ValueError`, if the image, the kernel, its size, a setting or the device is not usable.

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
    if noise is not None:
        if not (isinstance(noise, int | float) and 0 <= noise < 1):
            raise UserError(f"noise: {noise!r} is not a number from 0 to 1")
        if preset in PRESETS and not PRESETS[preset][1].get("searched"):
            changes.setdefault("tv_weight", TV_WEIGHT_OF_NOISE * noise)
    settings = make_settings(preset, num_iter=num_iter, seed=seed, **changes)
    kind = _Kind(y, channel_axis)
    y = check_image(kind.unit)
    check_known_kernel(preset, kernel is not None)
    run = start(y, kernel_size, settings, device=device, kernel=kernel)
    begun = time.monotonic()
    with tqdm(total=settings.num_iter, disable=not progress, unit="step") as bar:

        def tell(told):
            bar.update()
            if told["loss"] is not None and told["step"] % 10 == 0:
                bar.set_postfix(loss=f"{told['loss']:.3e}", refresh=False)
            return callback is not None and callback(told) is True

        take_steps(run, tell if progress or callback else None)
    output = run.output()
    image, k = to_arrays(output, y)
    seconds = time.monotonic() - begun
    losses = run.losses[: run.steps_done].cpu().numpy()
    return Result(kind.back(image), k, {"loss": losses}, settings, seconds, run.quality(output))


def blind_deconvolve(
    image: np.ndarray | torch.Tensor,
    kernel_size: int | Sequence[int] | None = None,
    *,
    preset: str = "fast",
    channel_axis: int | None = None,
    rng: int | np.random.Generator | None = 0,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> tuple[np.ndarray | torch.Tensor, np.ndarray]:
    """Blind deconvolution of one image, in the manner of scikit-image.

    The same as `deblur`, with the names and the result of a function of `skimage.restoration`.

    Parameters
    ----------
    image : ndarray or tensor
        Blurry image (H, W), or with three channels red, green, blue, see ``channel_axis``. Floating point within 0
        to 1, or unsigned integers of 8 bits or more.
    kernel_size : int or (int, int), optional
        Size (h, w) of the kernel in pixels, odd; rather too large than too small. By default it is estimated.
    preset : {"fast", "best", "release", "paper"}, optional
        See `selfdeblur.PRESETS`.
    channel_axis : int or None, optional
        The axis of the colours. None: the image is grey and has two axes.
    rng : int, numpy.random.Generator or None, optional
        The seed of the networks and of their inputs, or a generator that it is drawn from. None draws another one at
        each call.
    callback : callable, optional
        Called once a step with a dict, see `deblur`. Where it returns True, the fit ends there, with what it has come
        to, which is poor then.

    Returns
    -------
    image : ndarray or tensor
        Sharp image of the shape, type and range of the blurry one. Of a colour image the luminance is sharpened, its
        chroma is kept.
    kernel : ndarray of float32, (h, w)
        Blur kernel, non-negative, sum 1, in correlation sense. As the point spread function of `skimage.restoration`,
        which is meant for a convolution, take ``np.rot90(kernel, 2)``.

    Raises
    ------
    UserError
        A `ValueError`, if the image, the size of the kernel, the preset or rng is not usable.

    See Also
    --------
    deblur : The same with all settings, and with a sentence on how far the result may be trusted.

    References
    ----------
    D. Ren, K. Zhang, Q. Wang, Q. Hu, W. Zuo, "Neural Blind Deconvolution Using Deep Priors", CVPR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.signal import correlate
    >>> from skimage import data
    >>> from selfdeblur import blind_deconvolve
    >>> sharp = data.camera()[80:352:4, 120:392:4] / 255
    >>> motion = np.full((1, 5), 1 / 5)
    >>> blurry = correlate(sharp, motion, mode="valid")
    >>> image, kernel = blind_deconvolve(blurry, kernel_size=9)
    >>> image.shape, kernel.shape
    ((68, 64), (9, 9))

    The kernel found is a line of five pixels in one row. Where in its frame it lies cannot be told from the blurry
    image: a kernel that is shifted, with the image shifted against it, explains that as well.

    >>> rows, columns = np.nonzero(kernel > 0.1)
    >>> len(columns), len(set(rows.tolist()))
    (5, 1)
    """
    if channel_axis is None and np.ndim(image) == 3:
        raise UserError("channel_axis: the image has three axes; -1 says that the last one is that of the colours")
    if isinstance(rng, int | np.integer):
        seed = int(rng)
    else:
        try:
            seed = int(np.random.default_rng(rng).integers(2**31))
        except TypeError:
            raise UserError(f"rng: {rng!r} is neither a whole number nor a generator of NumPy") from None
    result = deblur(image, kernel_size, preset=preset, channel_axis=channel_axis, seed=seed, callback=callback)
    return result.image, result.kernel


class _Kind:
    """What an image was before it became an array of 0 to 1: tensor or array, order of axes, type, values."""

    def __init__(self, y, channel_axis):
        self.device = y.device if isinstance(y, torch.Tensor) else None
        if self.device is not None:
            self.tensor_type = y.dtype
            y = y.detach().cpu()
            y = (y.float() if y.dtype in (torch.bfloat16, torch.float16) else y).numpy()
        y = np.asarray(y)
        self.axis = channel_axis if y.ndim == 3 else None
        if self.axis is not None:
            if not -3 <= self.axis < 3:
                raise UserError(f"channel_axis: {self.axis}: the image has three axes, 0 to 2")
            y = np.moveaxis(y, self.axis, -1)
        self.dtype, self.values, self.white = y.dtype, (0.0, 1.0), None
        if y.dtype.kind == "u" and y.size:
            self.white = int(np.iinfo(y.dtype).max)
            self.values = value_range(y, self.white)
            y = to_unit(y, self.values)
        self.unit = y

    def back(self, image):
        """A sharp image as what y was."""
        if self.white is not None or self.dtype != np.float32:
            image = from_unit(image, self.values, self.dtype, self.white)
        if self.axis is not None and image.ndim == 3:
            image = np.ascontiguousarray(np.moveaxis(image, -1, self.axis))
        if self.device is None:
            return image
        return torch.from_numpy(image).to(self.device, self.tensor_type)


def take_steps(run: Run, tell: Callable[[dict[str, Any]], object] | None = None) -> None:
    """All steps of a run, or those until ``tell`` returns True; it is called after each, see `deblur` for its dict."""
    first, begun = run.steps_done, time.monotonic()
    with stepping(run) as (step, settle):
        while not run.is_done:
            step()
            if tell is None:
                continue
            done, seconds, loss = run.steps_done, time.monotonic() - begun, None
            steps = done if run.is_done else run.settings.num_iter
            if run.y.device.type == "cpu" or done % 10 == 0:
                settle()
                loss = run.losses[done - 1].item()
            left = seconds / (done - first) * (steps - done)
            told = {"stage": run.stage, "step": done, "steps": steps, "loss": loss, "seconds": seconds, "left": left}
            if tell(told) is True:
                return


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
        kernel_size = estimate_size(luminance(y))
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
