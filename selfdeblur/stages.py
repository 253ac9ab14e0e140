"""A run: one fit, or several fits one after the other, with the interface of one.

What a stage hands on is its kernel. Before a stage that starts at kernels, these
are searched for, or chosen by `selfdeblur.vote` where there are two.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdeblur.classical import deconvolve, estimate_kernel, quality
from selfdeblur.classical.judge import busiest_window, clearly_better, noise_level
from selfdeblur.classical.search import SEARCHES_AGAIN
from selfdeblur.classical.trails import kernel_of_trails
from selfdeblur.forward import centre
from selfdeblur.solver import Fit
from selfdeblur.vote import vote

# Why the estimate is taken whatever a fit finds.
TRAILS = "trails of lights show the kernel"
SIMPLE = "a disk, a Gaussian, a line or two points explain the blurry image"
NOISY = "there is too much noise for a fit of networks"

# After so many steps a run that is concluded looks at its check; if that agrees with the estimate more closely than by
# this share of what confirms it in the end, the run is done. Of 26 such runs 8 end so, which changes the result of one.
LOOK_AFTER, EARLY_SHARE = 80, 2 / 3


@dataclass(frozen=True)
class Output:
    """What a run has come to, on its device.

    Attributes
    ----------
    x : tensor (H + h - 1, W + w - 1)
        Sharp image on the padded grid, range 0 to 1.
    kernel : tensor (h, w)
        Sum 1, correlation sense.
    other : tensor (H + h - 1, W + w - 1) or None
        The image that is in x besides that of G_x.
    share : float
        Share of ``other`` in x; the rest is G_x's.
    handed_back : str or None
        Why image and kernel are those of the estimate, and not of the networks.
    """

    x: Tensor
    kernel: Tensor
    other: Tensor | None = None
    share: float = 0.0
    handed_back: str | None = None

    @property
    def image(self):
        """The sharp image over the blurry one, (H, W)."""
        return centre(self.x[None, None], self.kernel.shape)[0, 0]


class Run:
    """The fits of one image.

    Parameters
    ----------
    y : tensor (1, 1, H, W)
        Blurry image, range 0 to 1; its device and type are those of the run.
    kernel_size : tuple of int
        (h, w), odd.
    settings : Settings
    kernel : tensor (1, 1, h, w), optional
        Known kernel in correlation sense; with it only G_x is fitted.
    plain : bool
        See `selfdeblur.solver.Fit`.

    Attributes
    ----------
    fit : Fit or None
        The fit of the stage that the run is in. None where a search has to come
        first, which takes seconds and is left for the first step.
    stage : str
        Name of that stage, "" before the first one.
    losses : tensor (num_iter,)
        The objective at each step done so far, of all stages.
    kernels : dict of str to tensor (h, w)
        The kernels handed on so far, by the stage that found them; "estimate"
        is that of the search.
    images : dict of str to tensor (H + h - 1, W + w - 1)
        The images of stages so far that a later one takes into its mean.
    disagreement : float or None
        `selfdeblur.classical.quality.disagreement` of the two kernels that a vote left.
    vote : str or None
        What decided that vote, see `selfdeblur.vote`.
    search_progress : callable or None
        Told of each scale of a kernel search, see `selfdeblur.classical.estimate_kernel`; it may end the search.
    """

    search_progress = None

    def __init__(self, y, kernel_size, settings, *, kernel=None, plain=False):
        self.y, self.kernel_size, self.settings = y, kernel_size, settings
        self.kernel, self.plain = kernel, plain
        self.losses = torch.zeros(settings.num_iter, dtype=y.dtype, device=y.device)
        self.stages = settings.each_stage()
        self.kernels, self.images = {}, {}
        self.disagreement = self.vote = self._conclusion = None
        self._slowed, self._looks = 0, {}
        first = next(iter(self.stages))
        if self.stages[first].kernel_from:
            self.stage, self.fit, self.kernel_starts = "", None, None
        else:
            self._enter(first, self._new_fit(first, None), None)

    @property
    def stage_begin(self):
        """Steps of the run before this stage."""
        return self._begin(self.stage)

    @property
    def steps_done(self):
        """Steps of all stages."""
        return self.stage_begin + self.fit.steps_done if self.fit else 0

    @property
    def slowed(self):
        """How often the learning rates were halved besides the milestones."""
        return self._slowed

    @slowed.setter
    def slowed(self, times):
        self._slowed = times
        if self.fit:
            self.fit.slowed = times

    def step(self):
        """One step of the fit of this stage; after the last one of a stage, the first of the next."""
        self.gradient()
        self.update()

    def gradient(self):
        """The objective and its gradient, see `Fit.gradient`."""
        if self.stage_is_done:
            self.next_stage()
        self.fit.gradient()

    def update(self):
        """Move the parameters by the gradient."""
        self.fit.update()

    @property
    def is_done(self):
        """Whether the run is at its end: after the last step, or where those that are left would change nothing."""
        steps = self.steps_done
        if steps == self.settings.num_iter:
            return True
        if not self.settings.concluded_from or steps not in (1, LOOK_AFTER):
            return False
        if steps not in self._looks:
            if self.y.is_cuda:
                torch.cuda.synchronize(self.y.device)  # the step may be under way
            self._looks[steps] = self._is_settled()
        return self._looks[steps]

    def _is_settled(self):
        """Whether the estimate is the result, as far as can be told after some steps of the check."""
        estimate, y = self.kernels["estimate"], self.y[0, 0]
        if self.steps_done < LOOK_AFTER:
            return self._stands_alone(estimate) is not None
        check = self.fit.outputs()[1][0, 0]
        images = (deconvolve(y, kernel) for kernel in (estimate, check))
        return quality.disagreement(y, *images, check.shape) < EARLY_SHARE * self.settings.confirmed

    @property
    def stage_is_done(self):
        """Whether the next step is the first one of a stage that has still to be entered; true at the end, too."""
        return self.fit is None or self.fit.steps_done == self.fit.settings.num_iter

    def data_term(self, step):
        """Name of the data term at a step of the run, counted from 0: "mse" or "1-ssim"."""
        for settings in self.stages.values():
            if step < settings.num_iter:
                break
            step -= settings.num_iter
        return settings.data_term(step)

    def is_finite(self):
        """Whether the losses of this stage and all parameters are numbers."""
        return self.fit.is_finite()

    @property
    def fits_all_of_y(self):
        """Whether the stage fits all of y, not only a window."""
        return self.fit.y.shape == self.y.shape

    def output(self):
        """The `Output` so far, without the noise of the steps, so that the networks alone give it again.

        At the end of a run that is concluded from several kernels, this takes a vote and deconvolves y; once. Where the
        fit sees a window of y, y is deconvolved with its kernel.
        """
        if self.settings.concluded_from and self.is_done:
            return self._concluded()
        x, k = (output[0, 0] for output in self.fit.outputs())
        if not self.fits_all_of_y:
            return self._deconvolved(k)
        other_stage = self.fit.settings.mean_with
        if other_stage is None:
            return Output(x, k)
        if reason := self._against_networks(k, self.kernels.get("estimate")):
            return self._deconvolved(self.kernels["estimate"], reason)
        other = self.images[other_stage]
        return Output((x + other) / 2, k, other, 0.5)

    def _concluded(self):
        """The output at the end, where that is y deconvolved with a kernel that several fits agree on; made once."""
        if self._conclusion is None:
            settings = self.settings
            kernels = {**self.kernels, self.stage: self.fit.outputs()[1][0, 0]}
            choice = self._choice(kernels, settings.concluded_from, settings)
            kernel = torch.stack(choice.kernels).mean(0)
            estimate = kernels["estimate"] if choice.estimate is None else choice.estimate
            reason = self._against_networks(kernel, estimate)
            self.kernels = kernels | {"estimate": estimate}
            self.disagreement, self.vote = choice.disagreement, choice.reason
            self._conclusion = self._deconvolved(estimate if reason else kernel, reason)
        return self._conclusion

    def _deconvolved(self, kernel, handed_back=None):
        """The output whose image is y deconvolved with a kernel, and no part of it a network's."""
        y = self.y[0, 0]
        image = deconvolve(y, kernel).clamp(0, 1).to(y)
        return Output(image, kernel, image, 1.0, handed_back)

    def _choice(self, kernels, names, settings):
        """What `vote` says of the kernels of these names."""
        return vote(
            self.y[0, 0],
            *(kernels[name] for name in names),
            doubt=settings.doubt,
            confirmed=settings.confirmed,
            search_again=lambda: self._search(searches=SEARCHES_AGAIN),
        )

    def _stands_alone(self, estimate):
        """Why the estimate is taken whatever a fit finds; None if networks may improve it."""
        y = self.y[0, 0]
        if kernel_of_trails(y, self.kernel_size) is not None:
            return TRAILS
        if quality.stands_alone(y, estimate):
            return SIMPLE
        return NOISY if noise_level(y) > self.fit.settings.most_noise else None

    def _against_networks(self, kernel, estimate):
        """Why the estimate is to be taken instead of what the networks made of it; None if they may have improved it.

        A generator that is still smooth narrows the kernel to make up for it, and one that sees noise fits it.
        """
        if estimate is None:
            return None
        if reason := self._stands_alone(estimate):
            return reason
        if clearly_better(self.y[0, 0], estimate, kernel, share=self.fit.settings.passes):
            return "the kernel of the networks explains the blurry image worse than the estimate does"
        return None

    def result(self):
        """The image (H, W) and the kernel (h, w) of `output`, on the CPU."""
        output = self.output()
        return output.image.cpu(), output.kernel.cpu()

    def quality(self, output):
        """What `selfdeblur.classical.quality.assess` says of an output, and what decided, see ``vote`` and `Output`."""
        y, lights = self.y[0, 0], output.handed_back == TRAILS
        measures = quality.assess(
            y,
            output.x,
            output.kernel,
            None if lights else self.disagreement,
            lights=lights,
            searched="estimate" in self.kernels,
        )
        decided = {"vote": self.vote, "handed_back": output.handed_back}
        return measures | {name: reason for name, reason in decided.items() if reason is not None}

    def image_state(self, output):
        """The state of G_x as `selfdeblur.load_model` reads it.

        Besides the parameters, what G_x sees in a guided stage as ``guide`` and, where the image is not G_x's alone,
        the other part of it as ``other`` and its ``share``.
        """
        state = self.fit.G_x.state_dict()
        if self.fit.settings.guided:
            state["guide"] = self.fit.z_x
        if output.other is not None:  # of which the image of a network that saw a window of y is no part
            state["other"], state["share"] = output.other, torch.tensor(output.share)
        return state

    def kernel_state(self, output):
        """The state of a G_k that gives the kernel of an output, or None where the kernel is known."""
        if self.kernel is not None:
            return None
        if output.share < 1:
            return self.fit.G_k.state_dict()
        generator = copy.deepcopy(self.fit.G_k)
        generator.start_at(self.fit.z_k, output.kernel)
        return generator.state_dict()

    def next_stage(self):
        """Go from the end of a stage, or from before the first one, to the next; `step` does it by itself.

        The run is changed at the end only: where this is given up by an exception, it is as it was before.
        """
        names = list(self.stages)
        name = names[names.index(self.stage) + 1] if self.stage else names[0]
        settings = self.stages[name]
        kernels, images = dict(self.kernels), dict(self.images)
        if self.fit:
            x, k = (output[0, 0] for output in self.fit.outputs())
            kernels[self.stage] = k
            if any(later.mean_with == self.stage for later in self.stages.values()):
                images[self.stage] = x
        if "estimate" in settings.kernel_from and "estimate" not in kernels:
            kernels["estimate"] = self._search()
        starts, guides = [kernels[source] for source in settings.kernel_from], None
        disagreement, decided_by = self.disagreement, self.vote
        if len(starts) == 2:
            choice = self._choice(kernels, settings.kernel_from, settings)
            starts, guides = choice.kernels, choice.images
            disagreement, decided_by = choice.disagreement, choice.reason
            if choice.estimate is not None:
                kernels["estimate"] = choice.estimate
        starts = torch.stack(list(starts)) if starts else None
        fit = self._new_fit(name, starts, guides)
        fit.slowed = self._slowed
        self._enter(name, fit, starts)
        self.kernels, self.images = kernels, images
        self.disagreement, self.vote = disagreement, decided_by

    def _search(self, **how):
        return estimate_kernel(self.y[0, 0], self.kernel_size, progress=self.search_progress, **how).to(self.y)

    def _new_fit(self, name, starts, guides=None):
        """The fit of a stage at its first step; G_k starts at the mean of ``starts`` (n, h, w) if there are any.

        ``guides``, if they are there already, are y deconvolved with each of them.
        """
        settings, y = self.stages[name], self.y
        if settings.window:
            rows, columns = busiest_window(y[0, 0], settings.window)
            y, guides = y[..., rows, columns].contiguous(), None
        if settings.guided:
            guides = guides or [deconvolve(y[0, 0], kernel) for kernel in starts]
        begin = self._begin(name)
        return Fit(
            y,
            self.kernel_size,
            settings,
            kernel=self.kernel,
            start=None if starts is None else starts.mean(0),
            guides=guides if settings.guided else None,
            losses=self.losses[begin : begin + settings.num_iter],
            plain=self.plain,
        )

    def _enter(self, name, fit, starts):
        self.stage, self.fit, self.kernel_starts = name, fit, starts

    def _begin(self, name):
        """Steps of the run before the stage ``name``."""
        begin = 0
        for stage, settings in self.stages.items():
            if stage == name:
                break
            begin += settings.num_iter
        return begin if name else 0

    def state_dict(self):
        """All that `load_state_dict` needs to go on as if there had been no interruption."""
        return {
            "steps_done": self.steps_done,
            "stage": self.stage,
            "fit": self.fit.state_dict(),
            "earlier_losses": self.losses[: self.stage_begin].cpu(),
            "kernel_starts": None if self.kernel_starts is None else self.kernel_starts.cpu(),
            "kernels": {name: kernel.cpu() for name, kernel in self.kernels.items()},
            "images": {name: image.cpu() for name, image in self.images.items()},
            "disagreement": self.disagreement,
            "vote": self.vote,
        }

    def load_state_dict(self, state):
        """Go on from a state that `state_dict` gave, of a run with the same image and settings."""
        starts = state["kernel_starts"]
        if starts is not None:
            starts = starts.to(self.y)
        fit = self._new_fit(state["stage"], starts)
        fit.load_state_dict(state["fit"])
        self._enter(state["stage"], fit, starts)
        self._slowed = fit.slowed
        self.losses[: self.stage_begin] = state["earlier_losses"]
        self.kernels = {name: kernel.to(self.y) for name, kernel in state["kernels"].items()}
        self.images = {name: image.to(self.y) for name, image in state["images"].items()}
        self.disagreement, self.vote = state["disagreement"], state["vote"]
