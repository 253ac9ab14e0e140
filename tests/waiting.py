"""What a CUDA graph does not bear, noticed on the CPU."""

from torch.utils._python_dispatch import TorchDispatchMode


class NothingWaits(TorchDispatchMode):
    """Fails where a step reads a number from a tensor, makes a tensor of Python numbers, or draws random numbers.

    The first waits for the GPU, the second copies from memory that is not pinned, and the third, from a generator that
    the graph does not know, is the same each time: a CUDA graph bears none of them.
    """

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift", "masked_select", "rand", "normal", "uniform", "dropout")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        if (kwargs or {}).get("generator") is not None:  # a graph counts on the state of the fit's own generator
            return function(*args, **kwargs)
        assert not name.startswith(self.FORBIDDEN), name
        return function(*args, **(kwargs or {}))
