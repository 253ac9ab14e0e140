"""Networks that the authors' program has saved: whole pickled modules, read without running any of it.

Such a file is a pickle that names classes and functions to be called. Here
each class stands for a plain container of ours; a name that is not known ends
the reading. What comes out are the tensors alone.

``torch.load(weights_only=True)``, told of these containers, reads the files of
torch 1.6 and later. The stream of earlier versions, of torch 1.0 that the
authors used, it refuses with "Only persistent_load of storage is allowed":
each class stands there together with its source, as a reference of the kind
"module". So that stream has a small reader here.
"""

import collections
import io
import pickle
from pathlib import Path

import torch

from selfdeblur.errors import UserError

LARGEST = 512 * 2**20
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_STORAGES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "LongStorage": torch.int64}


class _Saved:
    """Stands for a saved module; holds its attributes and does nothing."""

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("the state of a module is not a dictionary")
        self.__dict__.update(state)


class _Conv(_Saved):
    pass


class _Norm(_Saved):
    pass


class _Linear(_Saved):
    pass


class _NonLocal(_Saved):
    pass


def _tensor(storage, offset, size, stride, *_):
    return torch.as_strided(storage, size, stride, offset)


def _parameter(data, *_):
    return data


_CLASSES = {
    ("torch.nn.modules.container", "Sequential"): _Saved,
    ("torch.nn.modules.conv", "Conv2d"): _Conv,
    ("torch.nn.modules.batchnorm", "BatchNorm2d"): _Norm,
    ("torch.nn.modules.linear", "Linear"): _Linear,
    ("torch.nn.modules.activation", "LeakyReLU"): _Saved,
    ("torch.nn.modules.activation", "ReLU6"): _Saved,
    ("torch.nn.modules.activation", "Sigmoid"): _Saved,
    ("torch.nn.modules.activation", "Softmax"): _Saved,
    ("torch.nn.modules.padding", "ReflectionPad2d"): _Saved,
    ("torch.nn.modules.pooling", "MaxPool2d"): _Saved,
    ("torch.nn.modules.upsampling", "Upsample"): _Saved,
    ("networks.common", "Concat"): _Saved,
    ("networks.non_local_dot_product", "NONLocalBlock2D"): _NonLocal,
}
_NAMES = {
    **_CLASSES,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Of the stream: knows the names above and no others; ``storage`` gives the tensor of a storage's key."""

    def __init__(self, file, storage):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module, name):
        try:
            return _NAMES[module, name]
        except KeyError:
            # What a damaged file names can be of any length and hold anything.
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'[:60]!r}") from None

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or not pid:
            raise pickle.UnpicklingError("it holds a reference of an unknown kind")
        if pid[0] == "module" and len(pid) > 1:
            return pid[1]  # the class; its file and its source follow
        if pid[0] != "storage" or len(pid) < 5 or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("it holds a reference of an unknown kind")
        return self.storage(pid[1], str(pid[2]), int(pid[4]))


def read_legacy(path):
    """The state dict, named as our networks name it, of a network that the authors' program saved.

    Parameters
    ----------
    path : str or Path
        ``NAME_xnet.pth`` or ``NAME_knet.pth``.

    Returns
    -------
    dict of str to tensor

    Raises
    ------
    UserError
        If the file is damaged, names anything that does not belong into such
        a network, or holds a network of another structure.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: larger than any network of this method")
        content = path.read_bytes()
        module = _read_zip(content) if content[:2] == b"PK" else _read_stream(content)
        leaves = list(_leaves(module))
        return _kernel_state(leaves) if isinstance(leaves[0], _Linear) else _image_state(leaves)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: not a network of this method; {error}") from error
    except Exception as error:
        # A damaged pickle can break off in any way.
        raise UserError(f"{path}: damaged, or not a network of this method") from error


def _read_zip(content):
    """A module as torch 1.6 and later save it."""
    classes = [(stand_in, f"{module}.{name}") for (module, name), stand_in in _CLASSES.items()]
    try:
        with torch.serialization.safe_globals(classes):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words take many lines and advise to read the file with less care.
        raise pickle.UnpicklingError("it is damaged or names something that is no part of one") from error


def _read_stream(content):
    """A module as torch before 1.6 saved it: five pickles, then the storages."""
    file, storages = io.BytesIO(content), {}

    def storage(dtype, key, numel):
        if key not in storages:
            if not 0 <= numel <= len(content):
                raise pickle.UnpicklingError("a tensor in it is larger than the file")
            storages[key] = torch.zeros(numel, dtype=dtype)
        return storages[key]

    magic, protocol, _ = (_Unpickler(file, storage).load() for _ in range(3))
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise pickle.UnpicklingError("it is no file of torch")
    module = _Unpickler(file, storage).load()
    for key in _Unpickler(file, storage).load():
        target = storages[key]
        count = int.from_bytes(file.read(8), "little")
        data = file.read(target.numel() * target.element_size())
        if count != target.numel():
            raise pickle.UnpicklingError("a storage in it has another size than its tensors")
        target.copy_(torch.frombuffer(bytearray(data), dtype=target.dtype, count=count))
    return module


def _leaves(module, seen=None):
    """Convolutions, normalisations, linear layers and non-local blocks, in the order they are run in."""
    seen = set() if seen is None else seen
    if isinstance(module, _Conv | _Norm | _Linear | _NonLocal):
        yield module
    elif isinstance(module, _Saved) and id(module) not in seen:
        seen.add(id(module))  # a module that holds itself would never end
        for child in getattr(module, "_modules", {}).values():
            yield from _leaves(child, seen)


def _parameters(leaf, kind):
    if not isinstance(leaf, kind):
        raise pickle.UnpicklingError("its layers are in another order")
    return {name: leaf._parameters[name].detach() for name in ("weight", "bias")}


def _kernel_state(leaves):
    first, second = (_parameters(leaf, _Linear) for leaf in leaves)
    return {f"layers.{i}.{name}": value for i, part in ((0, first), (2, second)) for name, value in part.items()}


def _image_state(leaves):
    """Names of `SkipGenerator` for the layers: each scale's encoder on the way down, its decoder on the way up."""
    rest, state = iter(leaves), {}

    def take(name, kind):
        state.update({f"{name}.{part}": value for part, value in _parameters(next(rest), kind).items()})

    # Five convolutions a scale, those inside the non-local blocks aside, and the last one.
    scales = (sum(isinstance(leaf, _Conv) for leaf in leaves) - 1) // 5
    for scale in range(scales):
        prefix = f"scales.{scale}"
        for unit in ("skip", "down"):
            take(f"{prefix}.{unit}.0", _Conv)
            take(f"{prefix}.{unit}.1", _Norm)
        following = next(rest)
        if isinstance(following, _NonLocal):
            for name, value in _non_local(following).items():
                state[f"{prefix}.non_local.{name}"] = value
            following = next(rest)
        state.update({f"{prefix}.refine.0.{n}": v for n, v in _parameters(following, _Conv).items()})
        take(f"{prefix}.refine.1", _Norm)
    for scale in reversed(range(scales)):
        take(f"scales.{scale}.merge_norm", _Norm)
        for unit in ("merge", "mix"):
            take(f"scales.{scale}.{unit}.0", _Conv)
            take(f"scales.{scale}.{unit}.1", _Norm)
    take("out", _Conv)
    if next(rest, None) is not None:
        raise pickle.UnpicklingError("it has more layers than a network of this method")
    return state


def _non_local(block):
    """Names of `NonLocal`; in a saved block a convolution may stand alone or before its pooling."""
    state = {}
    for name in ("theta", "phi", "g"):
        first, *_ = _leaves(block._modules[name])
        state.update({f"{name}.{part}": value for part, value in _parameters(first, _Conv).items()})
    conv, norm = _leaves(block._modules["W"])
    state.update({f"out.{part}": value for part, value in _parameters(conv, _Conv).items()})
    state.update({f"norm.{part}": value for part, value in _parameters(norm, _Norm).items()})
    return state
