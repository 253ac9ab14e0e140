"""One picture of any size and kind: what is left out, which kernel, which image, and whether it became better.

`restore` is what stands between the command line and the method. It leaves out
what is no picture (bars, black borders), finds the kernel in the luminance of
the best part, restores luminance and colour, and says how far the result may
be trusted.
"""

import time
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from selfdeblur.api import SMALLEST, choose_device, start, take_steps
from selfdeblur.checks import check_image, check_kernel, check_kernel_size
from selfdeblur.classical import quality as judge
from selfdeblur.classical.deconvolution import prior_weight
from selfdeblur.classical.judge import JUDGED_SIDE, busiest_window, extent, judged_window, noise_level
from selfdeblur.classical.search import estimate_kernel
from selfdeblur.classical.sharp import is_sharp
from selfdeblur.classical.size import (
    MOST_APART,
    estimate_kernel_of_any_size,
    estimate_kernel_within,
    estimate_size,
    kernel_of_trails_of_any_size,
)
from selfdeblur.classical.trails import kernel_of_trails
from selfdeblur.classical.varying import MOST_VARIATION, variation
from selfdeblur.colour import luminance, with_luminance
from selfdeblur.errors import UserError
from selfdeblur.forward import centre
from selfdeblur.settings import PRESETS, QUICK, TV_WEIGHT_OF_NOISE, make_settings
from selfdeblur.tiles import deconvolve_tiled

# Presets that search for the kernel by classical means.
WITH_SEARCH = (QUICK, "fast", "best")
# A picture of more pixels is not fitted as a whole: its kernel comes from a part, see `judged_window`.
WHOLE = 1 << 20
# A picture whose values differ by no more than this holds nothing to sharpen.
FLAT = 2 / 255
# A kernel of which half lies within so many pixels blurs nothing that one could see.
POINT_RADIUS = 0.75
# Chroma is smooth, and its deconvolution soon done: more rounds and steps change it by less than 0.3 dB.
CHROMA_EFFORT = {"rounds": 3, "steps": 12}


@dataclass(frozen=True)
class Restored:
    """What `restore` returns.

    Attributes
    ----------
    image : ndarray of float32
        Sharp image of the shape of the blurry one. Range 0 to 1, but values above 1 stand where it is brighter than
        white: whoever writes it limits it to what the file can hold.
    kernel : ndarray of float32 or None
        Kernel (h, w), sum 1, correlation sense; None where none was searched for.
    kernel_size : (int, int) or None
        Size (h, w) of the kernel; None where there is none.
    noise : float
        Standard deviation of the noise, of the range 0 to 1: as given, or estimated.
    quality : dict
        ``doubtful``, ``reasons`` and measures, see `selfdeblur.classical.quality.assess`.
    seconds : float
        Time that all of it took.
    improved : bool
        Whether the result may be taken for better than the blurry image.
    unchanged : bool
        Whether ``image`` is the blurry one, bit for bit.
    stopped : str
        "interrupted", "time limit" or "callback" where the fit ended early, else "".
    notes : list of str
        What was done to the picture, where it is not the usual.
    """

    image: np.ndarray
    kernel: np.ndarray | None
    kernel_size: tuple[int, int] | None
    noise: float
    quality: dict = field(repr=False)
    seconds: float
    improved: bool
    unchanged: bool = False
    stopped: str = ""
    notes: list = field(default_factory=list)


def restore(
    array,
    *,
    kernel_size=None,
    kernel=None,
    noise=None,
    preset="fast",
    colour="rgb",
    device=None,
    time_limit=None,
    callback=None,
    seed=0,
    opaque=None,
    side=None,
):
    """Take the blur out of one picture, about which nothing need be known.

    Parameters
    ----------
    array : ndarray (H, W) or (H, W, 3)
        Blurry picture, floating point within 0 to 1 or unsigned integers over their whole range.
    kernel_size : int or (int, int), optional
        Size (h, w) in pixels, odd; by default estimated from the picture.
    kernel : ndarray (h, w), optional
        Known kernel, of odd sizes, non-negative, in correlation sense; it is divided by its sum.
    noise : float, optional
        Standard deviation of the noise, of the range 0 to 1; by default estimated.
    preset : str
        "quick" for kernel search and deconvolution alone, or one of `selfdeblur.PRESETS`.
    colour : {"rgb", "luminance"}
        Whether the colours are sharpened as well, or those of the blurry picture kept.
    device : str or torch.device, optional
        By default CUDA where there is one, else the CPU.
    time_limit : float, optional
        Seconds after which search or fit end with the best so far; a scale of a search is brought to its end.
    callback : callable, optional
        Called once a step, and once a scale of a search, with a dict: ``stage``, ``step``, ``steps``, ``loss`` (None
        where there is none), ``seconds`` and ``left``, the seconds that the steps left may take. While networks are
        fitted there is also ``so_far``, a function that gives the image of what is fitted, the picture or a part of
        it, and the kernel (h, w), both float32 within 0 to 1; it takes a third of the time of a step. Where the
        callback returns True, the search or the fit ends with the best so far.
    seed : int
        Of the networks, their inputs and the noise of the steps, at least 0.
    opaque : ndarray of bool (H, W), optional
        Where the picture can be seen; the rim where it cannot is left as it is.
    side : int, optional
        Largest side of the tiles in which a large picture is deconvolved; by default what the memory bears.

    Returns
    -------
    Restored
        The sharp picture, the kernel, and whether the picture became better.

    Raises
    ------
    UserError
        If picture, kernel, size, preset or device cannot be used.
    KeyboardInterrupt
        On an interrupt before there is a kernel; later ones end the fit with the best so far.
    """
    begun = time.monotonic()
    y = check_image(array)
    if preset != QUICK and preset not in PRESETS:
        raise UserError(f"preset: {preset!r} is unknown; the presets are {', '.join((QUICK, *PRESETS))}")
    if colour not in ("rgb", "luminance"):
        raise UserError(f"colour: {colour!r} is unknown; take rgb or luminance")
    grey = y.ndim == 2 or bool((y == y[:, :, :1]).all())
    single = luminance(y if y.ndim == 2 or not grey else y[:, :, 0])
    if float((y.max((0, 1)) - y.min((0, 1))).max()) <= FLAT:
        return _unchanged(array, y, begun, noise, "the picture is flat: there is nothing to sharpen")
    part = inner_part(single, opaque)
    notes = _border_note(part, y.shape)
    inner = single[part]
    if float(inner.max() - inner.min()) <= FLAT:
        return _unchanged(array, y, begun, noise, "the picture within its borders is flat", notes)
    if kernel is not None:
        kernel = check_kernel(kernel)
        if kernel_size is not None and check_kernel_size(kernel_size) != kernel.shape:
            raise UserError(f"kernel_size: {kernel_size} differs from the size of the kernel, {kernel.shape}")
        size = kernel.shape
    else:
        size = None if kernel_size is None else check_kernel_size(kernel_size)
    _check_room(inner.shape, size or (3, 3))
    inner = torch.from_numpy(np.ascontiguousarray(inner))
    if size is None and is_sharp(inner[busiest_window(inner, JUDGED_SIDE)]):
        return _unchanged(array, y, begun, noise, "the edges of the picture are sharp already", notes)
    device = choose_device(device)
    task = _Task(inner.to(device), size, noise, preset, begun, time_limit, callback, seed)
    x, k, quality = task.solve(None if kernel is None else torch.from_numpy(kernel).to(device), side)
    radius = float(extent(k)) * max(k.shape)
    if kernel is None and k.numel() > 1 and radius < POINT_RADIUS:
        reason = "no blur was found that could be taken out: the picture may be sharp already"
        return _unchanged(array, y, begun, task.noise, reason, notes, kernel=k.cpu().numpy(), quality=quality)
    restored = x.cpu().numpy()
    if not grey:
        restored = task.colours(y[part], restored, k, colour, side)
    image = y.copy()
    image[part] = restored if image.ndim == 2 or not grey else restored[:, :, None]
    return Restored(
        image=image,
        kernel=k.cpu().numpy(),
        kernel_size=tuple(k.shape),
        noise=task.noise,
        quality=quality,
        seconds=time.monotonic() - begun,
        improved=not quality["doubtful"],
        stopped=task.stopped,
        notes=notes + task.notes,
    )


def _unchanged(array, y, begun, noise, reason, notes=(), *, kernel=None, quality=None):
    quality = {**(quality or {}), "doubtful": True, "reasons": [reason]}
    noise = noise_level(torch.from_numpy(luminance(y))) if noise is None and min(y.shape[:2]) > 2 else noise or 0.0
    seconds = time.monotonic() - begun
    size = None if kernel is None else kernel.shape
    array = np.asarray(array)
    image = array if array.dtype.kind == "f" else y
    return Restored(image, kernel, size, noise, quality, seconds, False, True, notes=list(notes))


def _so_far(run):
    x, k = (output[0, 0] for output in run.fit.outputs())
    return centre(x, k.shape).clamp(0, 1).cpu().numpy(), k.cpu().numpy()


def _doubted(quality, reason):
    return {**quality, "doubtful": True, "reasons": [*quality["reasons"], reason]}


def _check_room(shape, size):
    if shape[0] < size[0] or shape[1] < size[1]:
        raise UserError(f"the picture, {shape[0]} x {shape[1]}, is smaller than the kernel, {size[0]} x {size[1]}")
    if min(n + k for n, k in zip(shape, size, strict=True)) <= SMALLEST:
        raise UserError(f"the picture, {shape[0]} x {shape[1]}, is too small; {SMALLEST} pixels a side are enough")


class _Task:
    """The search for the kernel and the image of a luminance y (H, W)."""

    def __init__(self, y, size, noise, preset, begun, time_limit, callback, seed):
        self.y, self.size, self.preset, self.begun = y, size, preset, begun
        self.noise = noise_level(y) if noise is None else float(noise)
        self.noise_given = noise is not None
        self.time_limit, self.callback, self.seed = time_limit, callback, seed
        self.stopped, self.notes = "", []
        # The best kernel so far of a search that is under way, and how far the searches for its size are from it.
        self.found = self.apart = None

    def solve(self, kernel, side):
        """Image (H, W), kernel (h, w) and quality."""
        y, whole = self.y, self.y.numel() <= WHOLE
        part = (slice(None), slice(None)) if whole else judged_window(y, self.size or (1, 1))
        seen = y[part]
        if not whole:
            self.notes.append(
                f"large: the kernel comes from {seen.shape[1]} x {seen.shape[0]} pixels, and the picture is "
                "deconvolved with it in tiles"
            )
        image = quality = None
        lights = False
        if kernel is None and self.preset in WITH_SEARCH:
            kernel = kernel_of_trails(seen, self.size) if self.size else kernel_of_trails_of_any_size(seen)
            if kernel is not None:
                lights = True
                self.notes.append("the kernel is what trails of lights show")
        searched = kernel is None
        if kernel is None and self.preset != QUICK:
            image, kernel, quality = self._fit(seen)
        elif kernel is None:
            kernel = self._search(seen).to(y)
        elif self.preset in ("release", "paper", "nonblind") and whole:
            image, kernel, quality = self._fit(seen, kernel)
        if image is None or not whole:
            image = self._deconvolve(y, kernel, prior_weight(self.noise), side)
        if quality is None:
            # The measures want an image with its border; a replicated one disturbs only what is near it.
            padded = torch.nn.functional.pad(image[part][None, None], self._border(kernel), mode="replicate")[0, 0]
            quality = judge.assess(seen, padded.clamp(0, 1), kernel, lights=lights, searched=searched)
        if self.stopped:
            quality = _doubted(quality, f"ended early: {self.stopped}")
        elif searched:
            quality = self._opinions(seen, kernel, quality)
        return image, kernel, quality

    def _opinions(self, y, kernel, quality):
        """Quality with what searches for the size and parts of y (H, W) say of the kernel that was found."""
        if self.apart is not None:
            quality = {**quality, "apart": round(self.apart, 5)}
            if self.apart > MOST_APART:
                quality = _doubted(quality, "searches for kernels of other sizes find another kernel: name its size")
        if (varies := variation(y, kernel)) is not None:
            quality = {**quality, "variation": round(varies, 5)}
            if varies > MOST_VARIATION:
                quality = _doubted(quality, "the blur differs over the picture: take a part of it")
        return quality

    def _search(self, y, *, checked=False):
        """The kernel of y (H, W) by a search alone, or by one that is to be checked; ended early where wanted."""
        try:
            if self.size is None:
                kernel, self.apart = estimate_kernel_of_any_size(y, self._searching)
                return kernel
            if checked:
                return estimate_kernel(y, self.size, progress=self._searching)
            return estimate_kernel_within(y, self.size, self._searching)
        except KeyboardInterrupt:
            if self.found is None:
                raise
            self.stopped = "interrupted"
            return self.found

    def _searching(self, done, of, kernel):
        """Told of each scale of a search, and of each search for a size: whether it is to end."""
        if self._tell("size" if kernel is None else "kernel", done, of) is True:
            self.stopped = "callback"
        elif self.time_limit is not None and time.monotonic() - self.begun > self.time_limit and done < of:
            self.stopped = "time limit"
        self.found = self.found if kernel is None else kernel
        return bool(self.stopped)

    @staticmethod
    def _border(kernel):
        top, left = (n // 2 for n in kernel.shape)
        return left, left, top, top

    def _deconvolve(self, y, kernel, weight, side, stage="deconvolution", **effort):
        def progress(done, of):
            self._tell(stage, done, of)

        return deconvolve_tiled(y, kernel, weight=weight, side=side, progress=progress, **effort)

    def _fit(self, y, kernel=None):
        """Image or None, kernel and quality of a fit of networks to y (H, W), ended early where that is wanted."""
        preset = "nonblind" if kernel is not None else self.preset
        changes = {"noise_from": y.device.type}
        if self.noise_given and preset in ("release", "paper"):
            changes["tv_weight"] = TV_WEIGHT_OF_NOISE * self.noise
        settings = make_settings(preset, seed=self.seed, **changes)
        if noise_level(y) > settings.most_noise:
            self.notes.append("there is too much noise for a fit of networks: the kernel is that of the search")
            return None, self._search(y), None
        known = None if kernel is None else kernel.cpu().numpy()
        estimate = None
        if preset in WITH_SEARCH:
            estimate = self._search(y, checked=True).to(y)
            if self.stopped:
                return None, estimate, None
            if judge.stands_alone(y, estimate):
                self.notes.append("a kernel of a simple form explains the picture: no networks were fitted to it")
                return None, estimate, None
            self.size = tuple(estimate.shape)
        elif self.size is None:
            self.size = estimate_size(y, self._searching)
        run = start(y.cpu().numpy(), None if known is not None else self.size, settings, device=y.device, kernel=known)
        run.search_progress = self._searching
        if estimate is not None:
            run.estimate = estimate
        wanted = self.callback is not None or self.time_limit is not None
        try:
            take_steps(run, (lambda told: self._after_step(told, run)) if wanted else None)
        except KeyboardInterrupt:
            if not run.steps_done and self.found is None:
                raise
            self.stopped = "interrupted"
        if self.stopped and not run.steps_done:
            return None, self.found, None
        if self.stopped and settings.searched:
            # A fit of some steps has no image yet; the kernel that it started at is the best so far.
            return None, (run.output().kernel if run.estimate is None else run.estimate).to(y), None
        output = run.output()
        return output.image.to(y), output.kernel.to(y), run.quality(output)

    def _after_step(self, told, run):
        told |= {"seconds": time.monotonic() - self.begun, "so_far": lambda: _so_far(run)}
        if self.callback and self.callback(told) is True:
            self.stopped = "callback"
        elif self.time_limit is not None and told["seconds"] > self.time_limit and told["step"] < told["steps"]:
            self.stopped = "time limit"
        return bool(self.stopped)

    def _tell(self, stage, step, steps):
        if self.callback:
            told = {"stage": stage, "step": step, "steps": steps, "loss": None}
            return self.callback({**told, "seconds": time.monotonic() - self.begun, "left": None})
        return None

    def colours(self, blurry, y, kernel, colour, side):
        """Image (H, W, 3) of luminance y (H, W), its chroma that of the blurry one, deconvolved for "rgb".

        Of red, green and blue deconvolved one by one and brought to this
        luminance only their differences from their own luminance would be left,
        and these are what is deconvolved here.
        """
        if colour == "luminance":
            return with_luminance(blurry, y)
        ycrcb = cv2.cvtColor(np.ascontiguousarray(blurry), cv2.COLOR_RGB2YCrCb)
        ycrcb[:, :, 0] = y
        for channel in (1, 2):
            chroma = torch.from_numpy(np.ascontiguousarray(ycrcb[:, :, channel])).to(kernel)
            weight = prior_weight(max(noise_level(chroma), self.noise))
            sharp = self._deconvolve(chroma, kernel, weight, side, "colour", **CHROMA_EFFORT)
            ycrcb[:, :, channel] = sharp.cpu().numpy()
        return np.maximum(cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB), 0)


# Borders

# Bars are of one value but for so much, which is what compression makes of them; beside a picture, in the rows that a
# block of JPEG or a resize mixes, it is more.
BAR, MIXED = 4 / 255, 8
# Borders of scans are darker than this; where so much of the middle is, too, the picture itself is dark.
BLACK, DARK_SHARE = 0.07, 0.3


def inner_part(y, opaque=None):
    """The part of a picture that is one, without bars of one colour, black borders of a scan and transparent rims.

    Parameters
    ----------
    y : ndarray (H, W)
        Luminance, 0..1.
    opaque : ndarray of bool (H, W), optional
        Where the picture can be seen.

    Returns
    -------
    (slice, slice)
        All of the picture where nothing is to be left out, or nothing sensible would be left.
    """
    whole = slice(0, y.shape[0]), slice(0, y.shape[1])
    if opaque is not None and opaque.any() and not opaque.all():
        rows, columns = opaque.any(1).nonzero()[0], opaque.any(0).nonzero()[0]
        rows, columns = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    else:
        rows, columns = whole
    for _ in range(2):  # bars above may hide bars at the sides
        rows = _cut(y[:, columns], rows, 1)
        columns = _cut(y[rows].T, columns, 1)
    middle = y[y.shape[0] // 4 : -(y.shape[0] // 4) or None, y.shape[1] // 4 : -(y.shape[1] // 4) or None]
    if np.mean(middle < BLACK) < DARK_SHARE:
        for _ in range(2):
            rows = _cut(y[:, columns], rows, 0)
            columns = _cut(y[rows].T, columns, 0)
    if min(rows.stop - rows.start, columns.stop - columns.start) < SMALLEST:
        return whole
    return rows, columns


def _cut(lines, span, constant):
    """The span without the bars before and after it; ``lines`` are the rows of the picture."""
    part = lines[span]
    first = _bar(part, constant)
    last = _bar(part[::-1], constant)
    if first + last >= len(part):
        return span
    return slice(span.start + first, span.stop - last)


def _bar(lines, constant):
    """How many of the first rows are a bar: of one value, or else black."""
    if constant:
        value = float(np.median(lines[0]))
        away = np.abs(lines - value)
        differs = away.max(axis=1) > BAR
    else:
        away = lines
        differs = np.mean(lines < BLACK, axis=1) < 0.7
        differs[len(lines) // 5 :] = True
    count = int(differs.argmax()) if differs.any() else len(lines)
    if count < 3 or count == len(lines):
        return 0
    # Rows that the bar and the picture share.
    mean = away[count : count + 2 * MIXED].mean(axis=1)
    for i in range(min(MIXED, len(mean) - MIXED)):
        if mean[i] >= 0.5 * mean[i + MIXED]:
            break
        count += 1
    return count


def _border_note(part, shape):
    rows, columns = part
    cut = rows.start, shape[0] - rows.stop, columns.start, shape[1] - columns.stop
    if not any(cut):
        return []
    above, below, left, right = cut
    return [f"borders left as they are: {above} rows above, {below} below, {left} columns left, {right} right"]
