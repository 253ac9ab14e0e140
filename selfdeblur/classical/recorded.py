"""Functions of many small operations, which a GPU is told of once instead of one by one.

Between two scales of a search, or two rounds of a deconvolution, the same hundreds of operations follow each other on
tensors of the same sizes; most of the time of a GPU would go into starting them.
"""

import contextlib
import warnings

import torch

# Numbers in the arguments from which on operations take longer than to start them, and a recording only memory.
LARGEST = 1 << 25


class Recorded(contextlib.AbstractContextManager):
    """A function from tensors to a tuple of tensors; on a GPU it is recorded as a CUDA graph, elsewhere it is called.

    The first call of a kind, which loads all that is needed, is done as it stands; at the second one the function is
    recorded, and from then on played again. Calls are of one kind if sizes, types and the arguments by name are equal.
    Large tensors, and what cannot be recorded, are left to the function as it stands. The recordings last as long as
    the context that it is.

    Parameters
    ----------
    function : callable
        It may not wait for the GPU, and what it reads besides its arguments must stay where it is.
    """

    recordable = True

    def __init__(self, function):
        self.function, self.recordings = function, {}
        self.pool = self.stream = None

    def __call__(self, *tensors, **fixed):
        if not Recorded.on(tensors[0].device) or sum(tensor.numel() for tensor in tensors) > LARGEST:
            return self.function(*tensors, **fixed)
        kind = tuple(sorted(fixed.items())), tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if kind not in self.recordings:
            self.recordings[kind] = None
            return self.function(*tensors, **fixed)
        if self.recordings[kind] is None:
            self.recordings[kind] = self._record(tensors, fixed)
        play, inputs, outputs = self.recordings[kind]
        if play is None:
            return self.function(*tensors, **fixed)
        for place, tensor in zip(inputs, tensors, strict=True):
            place.copy_(tensor)
        play()
        # The next one that is played may use the same memory.
        return tuple(output.clone() for output in outputs)

    def __exit__(self, *_):
        if self.stream:
            # What is played last may still be under way.
            torch.cuda.synchronize(self.stream.device)
        self.recordings.clear()

    @staticmethod
    def on(device):
        """Whether functions are recorded on a device."""
        return device.type == "cuda" and Recorded.recordable

    def _record(self, tensors, fixed):
        """What plays the function again, and where it reads and writes; None in the first place if it cannot be."""
        inputs = [tensor.clone() for tensor in tensors]
        try:
            play, outputs = self._capture(lambda: self.function(*inputs, **fixed), inputs[0].device)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError):
                Recorded.recordable = False
                warnings.warn(
                    f"a kernel search cannot be recorded as a CUDA graph, so it is slower: {error}", stacklevel=4
                )
            return None, None, None
        return play, inputs, outputs

    def _capture(self, function, device):
        """Record a function without doing it: what does it, and its outputs."""
        graph = torch.cuda.CUDAGraph()
        if self.stream is None:
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        # Not by torch.cuda.graph, which gives all free memory back first: that takes longer than what is recorded here.
        self.stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                outputs = function()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(self.stream)
        return graph.replay, outputs
