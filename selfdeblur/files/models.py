"""Images and kernels from the networks that an earlier run has left."""

import math
from pathlib import Path

import numpy as np
import torch

from networks import KernelGenerator, SkipGenerator
from selfdeblur.errors import UserError
from selfdeblur.files.legacy import read_legacy
from selfdeblur.files.names import RECORD
from selfdeblur.files.records import read_json
from selfdeblur.files.tensors import read_torch
from selfdeblur.forward import centre
from selfdeblur.solver import Z_CHANNELS, draw_z_k, draw_z_x

# Most scales and channels of a network that is read: a damaged file may claim any size.
MOST_SCALES, MOST_CHANNELS = 8, 512


class KernelModel:
    """A fitted kernel generator, see `load_model`.

    Attributes
    ----------
    kernel : ndarray of float32
        Blur kernel (h, w), sum 1, in correlation sense.
    """

    def __init__(self, path, state, kernel_size, seed):
        self.kernel_size = kernel_size
        self._net = _filled(KernelGenerator(kernel_size), path, state)
        self._seed = seed

    @property
    @torch.no_grad()
    def kernel(self) -> np.ndarray:
        return self._net(draw_z_k(seed=self._seed))[0, 0].numpy()


class ImageModel:
    """A fitted image generator, see `load_model`.

    Attributes
    ----------
    image : ndarray of float32
        Luminance of the sharp image (H, W), range 0 to 1.
    """

    def __init__(self, path, state, image_size, kernel_size, seed):
        self.image_size, self.kernel_size = image_size, kernel_size
        self._path, self._seed = path, seed
        self._guide, self._other = state.pop("guide", None), state.pop("other", None)
        share = state.pop("share", torch.tensor(0.5))
        self._net = _filled(_generator(state), path, state)
        channels = self._net.scales[0].down[0].in_channels
        if self._guide is not None and (self._guide.dim() != 4 or tuple(self._guide.shape[:2]) != (1, channels)):
            raise UserError(f"{path}: the image that the network in it sees is of another shape")
        if share.numel() != 1 or not 0 <= float(share) <= 1:
            raise UserError(f"{path}: the share of the other image is not within 0 to 1")
        self._share = 0.0 if self._other is None else float(share)
        if self._other is not None:
            # Where the image is not the network's at all, that may have seen a part of it only.
            seen = self._size_seen() if self._share < 1 else None
            if self._other.dim() != 2 or seen not in (None, tuple(self._other.shape)):
                raise UserError(f"{path}: the image that makes a mean with that of the network is of another shape")

    def _size_seen(self):
        """The size of the image that the network makes; None where it is not known yet."""
        if self._guide is not None:
            return tuple(self._guide.shape[2:])
        if self.image_size is None or self.kernel_size is None:
            return None
        return tuple(n + k - 1 for n, k in zip(self.image_size, self.kernel_size, strict=True))

    @property
    @torch.no_grad()
    def image(self) -> np.ndarray:
        if self.image_size is None or self.kernel_size is None:
            raise UserError(f"{self._path}: the sizes of image and kernel are not known; give both to load_model")
        if self._share == 1:
            return centre(self._other[None, None], self.kernel_size)[0, 0].numpy()
        z_x = draw_z_x(self.image_size, self.kernel_size, seed=self._seed) if self._guide is None else self._guide
        x = self._net(z_x)
        if self._other is not None:
            x = (1 - self._share) * x + self._share * self._other
        return centre(x, self.kernel_size)[0, 0].numpy()


def load_model(
    path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    kernel_size: tuple[int, int] | None = None,
    seed: int | None = None,
) -> ImageModel | KernelModel:
    """Read a network that a run of this program or of the authors' has left; nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        ``NAME_xnet.pth`` or ``NAME_knet.pth``.
    image_size, kernel_size : (int, int), optional
        (H, W) of the blurry image and (h, w) of the kernel. By default from
        the run's record ``NAME.json``; a kernel without a record is square.
    seed : int, optional
        Seed of the run; by default from its record, else 0.

    Returns
    -------
    ImageModel or KernelModel
        With ``.image`` or ``.kernel``.

    Raises
    ------
    UserError
        If the file is missing, damaged or no such network.
    """
    path = Path(path)
    try:
        state = read_torch(path)
    except UserError:
        if not path.is_file():
            raise
        state = read_legacy(path)
    if not isinstance(state, dict) or not all(_is_held(value) for value in state.values()):
        raise UserError(f"{path}: not the state of a network")
    record = read_json(path.with_name(path.stem.rsplit("_", 1)[0] + RECORD)) or {}
    kernel_size = kernel_size or record.get("kernel_size")
    image_size = image_size or record.get("image_size")
    seed = record.get("settings", {}).get("seed", 0) if seed is None else seed
    last = state.get("layers.2.bias")
    if last is None:
        return ImageModel(path, state, image_size, kernel_size, seed)
    if kernel_size is None:
        kernel_size = (math.isqrt(last.numel()),) * 2
    return KernelModel(path, state, tuple(kernel_size), seed)


def _is_held(value):
    """Whether a value is a tensor all of whose entries are there; one that repeats an entry may claim any size."""
    return isinstance(value, torch.Tensor) and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _generator(state):
    """A generator of the shape that the tensors of a state have; of the released shape where they are no such state."""
    refined = [state.get(f"scales.{i}.refine.0.weight") for i in range(MOST_SCALES)]
    channels = tuple(len(weight) for weight in refined if weight is not None and weight.dim() == 4)
    first = state.get("scales.0.down.0.weight")
    if not channels or first is None or first.dim() != 4 or max(*channels, first.shape[1]) > MOST_CHANNELS:
        return SkipGenerator(Z_CHANNELS)
    non_local = (i for i in range(len(channels)) if f"scales.{i}.non_local.theta.weight" in state)
    return SkipGenerator(first.shape[1], channels=channels, non_local_from=next(non_local, len(channels)))


def _filled(net, path, state):
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: the network in it is of another shape") from error
    return net
