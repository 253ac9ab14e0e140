"""Steps that wait for nothing: what makes a run fast on a GPU.

`Fit.step` is written to be read. On a GPU most of its time would go into
starting some 800 small programs one by one, into drawing noise on the CPU and
into waiting for the loss. Here the same step works on buffers that stay where
they are, so that it can be recorded once, as a CUDA graph, and then be played
again as a whole:

- noise is drawn by the GPU's own generator, whose state the graph counts on
  (`Settings.noise_from`; noise from the CPU is drawn and copied at each step);
- the loss is stored under an index that the GPU counts up;
- learning rates are tensors;
- each run has a stream of its own, so several runs step side by side.

On another device nothing is recorded and the very same step is called, which
is how it is tested without a GPU.
"""

import contextlib
import warnings

import torch

# Steps between two looks at the losses: each waits for the GPU.
CHECK_EVERY = 50


def on_fixed_buffers(run):
    """Whether a run is to be stepped by `FixedRun`: on a GPU."""
    return run.y.device.type == "cuda"


@contextlib.contextmanager
def stepping(run):
    """Two functions: one that does a step of a run in the way that suits its device, one that waits for its end."""
    if not on_fixed_buffers(run):
        yield run.step, lambda: None
        return
    fixed = FixedRun(run)
    try:
        yield fixed.step, fixed.settle
    finally:
        fixed.close()


class FixedRun:
    """The steps of a run: a `FixedStep` for its fit, which a search may come before.

    Parameters
    ----------
    run : Run
        Where it is to go on from; it must not be stepped by other means.
    """

    def __init__(self, run):
        self.run, self.fixed = run, None

    def prepare(self):
        """Search for the kernel where that has to come first. Given up, the run is as before."""
        self.run.begin()
        if self.fixed is None:
            self.fixed = FixedStep(self.run.fit)

    def step(self):
        """One step, see `FixedStep.step`."""
        self.prepare()
        self.fixed.step()

    def settle(self):
        """Wait until all steps are done, so that the run can be read."""
        if self.fixed:
            self.fixed.settle()

    def first_not_finite(self, since):
        """The first step, counted from 0 and from step ``since`` on, whose loss is not a number; None without one."""
        self.settle()
        losses = self.run.losses[since : self.run.steps_done].cpu()
        wrong = (~torch.isfinite(losses)).nonzero()
        return since + int(wrong[0]) if len(wrong) else None

    def close(self):
        """Let go of memory; the run can be read and go on by other means."""
        if self.fixed:
            self.fixed.close()
            self.fixed = None


class FixedStep:
    """The step of one fit on fixed buffers.

    The first step with each data term is done as it stands, which loads all
    that is needed; the second one is recorded.

    Parameters
    ----------
    fit : Fit
        Where it is to go on from; it must not be stepped by other means.
    """

    recordable = True

    def __init__(self, fit):
        self.fit, self.device = fit, fit.y.device
        on_gpu = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if on_gpu else None
        # Where noise from the CPU is copied to.
        self.noise = None if fit.noise_on_device else torch.zeros_like(fit.z_x)
        self.index = torch.full((1,), fit.steps_done, device=self.device)
        # What Adam's kernels read: on the CPU the rate is a double.
        dtype = torch.float32 if on_gpu else torch.float64
        self.rates = [torch.zeros((), dtype=dtype, device=self.device) for _ in fit.rates]
        self.rates_set = None
        self.data_term = self.play = None
        if on_gpu:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def step(self):
        """One step, which may still be under way on return; see `settle`.

        Where it is given up for lack of memory, the fit is as it was before.
        """
        fit = self.fit
        before = fit.rng.get_state()
        try:
            self._step()
        except BaseException:
            fit.rng.set_state(before)
            raise
        fit.steps_done += 1

    def _step(self):
        fit = self.fit
        with self._on_stream():
            if self.noise is not None and fit.settings.input_noise:
                self.noise.copy_(fit.draw_noise(self.noise))
            rates = fit.current_rates()
            if rates != self.rates_set:
                for tensor, rate in zip(self.rates, rates, strict=True):
                    tensor.fill_(rate)
                self.rates_set = rates
            data_term = fit.settings.data_term(fit.steps_done)
            if data_term != self.data_term:
                self.settle()  # before the graph's memory goes
                self.play, self.data_term = None, data_term
                self._compute()
            else:
                self.play = self.play or self._record()
                self.play()

    def settle(self):
        """Wait until all steps are done, so that the fit can be read."""
        if self.stream:
            self.stream.synchronize()

    def close(self):
        """Let go of memory; the fit can be read and go on by other means."""
        self.settle()
        # Gradients lie in the memory of the graph.
        self.fit.optimiser.zero_grad()
        self.play = None

    def _compute(self):
        """The step itself: nothing in here may wait for the GPU, or depend on a number that changes."""
        fit = self.fit
        z_x = fit.z_x
        if fit.settings.input_noise:
            noise = fit.draw_noise(z_x) if self.noise is None else self.noise
            z_x = z_x + fit.settings.input_noise * noise
        with fit.arithmetic():
            loss = fit.objective(z_x, self.data_term)
            fit.optimiser.zero_grad()
            fit.backward(loss)
        fit.losses.index_copy_(0, self.index, loss.detach()[None])
        with self._rates_on_device():
            fit.optimiser.step()
        self.index += 1

    def _record(self):
        """`_compute` as one graph, without doing it; returns the function that does it."""
        # So the backward pass makes the gradients anew, in the memory of the graph.
        self.fit.optimiser.zero_grad()
        if not self.stream or not FixedStep.recordable:
            return self._compute
        graph = torch.cuda.CUDAGraph()
        if self.noise is None:
            graph.register_generator_state(self.fit.rng)
        try:
            # Other threads may go on with what they do.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._compute()
        except RuntimeError as error:
            self.fit.optimiser.zero_grad()
            if out_of_memory(error):
                raise
            FixedStep.recordable = False
            warnings.warn(f"a step cannot be recorded as a CUDA graph, so it is slower: {error}", stacklevel=2)
            return self._compute
        return graph.replay

    @contextlib.contextmanager
    def _rates_on_device(self):
        """Adam reads the rates from tensors; they are not left in its state, which is the same on every device."""
        groups = self.fit.optimiser.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        recording = self.stream is not None and torch.cuda.is_current_stream_capturing()
        try:
            for group, rate in zip(groups, self.rates, strict=True):
                group["lr"], group["capturable"] = rate, recording
            yield
        finally:
            for group, (lr, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = lr, capturable

    def _on_stream(self):
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()


def out_of_memory(error):
    """Whether an exception, or one that it was raised over, says that memory is too small."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        text = str(error)
        if any(words in text for words in ("can't allocate memory", "out of memory", "ALLOC_FAILED")):
            return True
        error = error.__context__
    return False
