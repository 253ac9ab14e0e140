"""The stages of a run: a kernel search, a fit that checks what it found, a vote and a deconvolution.

The method of the paper is the fit alone. Which of it all a run has is said by its `Settings`.
"""

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from selfdeblur.classical import deconvolve, estimate_kernel, quality
from selfdeblur.classical.judge import busiest_window, clearly_better, noise_level
from selfdeblur.classical.search import SEARCHES_AGAIN
from selfdeblur.classical.trails import kernel_of_trails
from selfdeblur.forward import centre
from selfdeblur.solver import Fit
from selfdeblur.vote import vote

# The kernels of a run that has a search: what that found, and what the fit that starts there made of it.
ESTIMATE, FITTED = "estimate", "check"

# Why the estimate is taken whatever a fit finds.
TRAILS = "trails of lights show the kernel"
SIMPLE = "a disk, a Gaussian, a line or two points explain the blurry image"
NOISY = "there is too much noise for a fit of networks"

# After so many steps a run looks at what its check has come to, see `Settings.settled`.
LOOK_AFTER = 80

# So often a run with a search looks whether its fit has come to the noise of y, and ends there: from there on it would
# fit the noise, and kernel and image become worse (the discrepancy principle).
LOOK_EVERY = 20


@dataclass(frozen=True)
class Output:
    """What a run has come to, on its device.

    Attributes
    ----------
    x : tensor (H + h - 1, W + w - 1)
        Sharp image on the padded grid, range 0 to 1.
    kernel : tensor (h, w)
        Sum 1, correlation sense.
    deconvolved : tensor (H + h - 1, W + w - 1) or None
        y deconvolved with the kernel, which may leave the range 0 to 1, where that is in x besides the image of G_x.
    share : float
        Its share in x; the rest is G_x's.
    handed_back : str or None
        Why image and kernel are those of the estimate, and not of the networks.
    """

    x: Tensor
    kernel: Tensor
    deconvolved: Tensor | None = None
    share: float = 0.0
    handed_back: str | None = None

    @property
    def image(self):
        """The sharp image over the blurry one, (H, W)."""
        return centre(self.x[None, None], self.kernel.shape)[0, 0]


class Run:
    """The fit of one image, with a kernel search before it and a vote after it where its settings say so.

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
        None where a search has to come first, which takes seconds and is left for the first step.
    losses : tensor (num_iter,)
        The objective at each step done so far.
    kernels : dict of str to tensor (h, w)
        What was found so far of ESTIMATE and FITTED.
    disagreement : float or None
        `selfdeblur.classical.quality.disagreement` of the two kernels that the vote left.
    vote : str or None
        What decided the vote, see `selfdeblur.vote`.
    search_progress : callable or None
        Told of each scale of a kernel search, see `selfdeblur.classical.estimate_kernel`; it may end the search.
    """

    search_progress = None

    def __init__(self, y, kernel_size, settings, *, kernel=None, plain=False):
        self.y, self.kernel_size, self.settings = y, kernel_size, settings
        self.kernel, self.plain = kernel, plain
        self.losses = torch.zeros(settings.num_iter, dtype=y.dtype, device=y.device)
        self.kernels = {}
        self.disagreement = self.vote = self._conclusion = None
        self._slowed, self._looks, self._images = 0, {}, []
        self.fit = None if settings.searched else self._new_fit()

    @property
    def stage(self):
        """What the fit is called: the preset where it is all of the run, "" before it."""
        if self.fit is None:
            return ""
        return FITTED if self.settings.searched else self.settings.preset

    @property
    def steps_done(self):
        """Steps of the fit."""
        return self.fit.steps_done if self.fit else 0

    @property
    def estimate(self):
        """The kernel (h, w) of the search, None before it; where one is set before the first step, it is taken."""
        return self.kernels.get(ESTIMATE)

    @estimate.setter
    def estimate(self, kernel):
        self.kernels[ESTIMATE] = kernel

    @property
    def slowed(self):
        """How often the learning rates were halved besides the milestones."""
        return self._slowed

    @slowed.setter
    def slowed(self, times):
        self._slowed = times
        if self.fit:
            self.fit.slowed = times

    def begin(self):
        """Search for the kernel that the fit starts at, where there is no fit yet; `step` does it by itself.

        Where this is given up by an exception, the run is as it was before.
        """
        if self.fit is not None:
            return
        if self.estimate is None:
            self.estimate = self._search()
        self.fit = self._new_fit(self.estimate)
        self.fit.slowed = self._slowed

    def step(self):
        """One step of the fit."""
        self.gradient()
        self.update()

    def gradient(self):
        """The objective and its gradient, see `Fit.gradient`."""
        self.begin()
        self.fit.gradient()

    def update(self):
        """Move the parameters by the gradient."""
        self.fit.update()

    @property
    def is_done(self):
        """Whether the run is at its end: after the last step, or where the steps that are left would not help."""
        steps = self.steps_done
        if steps == self.settings.num_iter:
            return True
        if not self.settings.searched or not steps or (steps > 1 and steps % LOOK_EVERY):
            return False
        if steps not in self._looks:
            if self.y.is_cuda:
                torch.cuda.synchronize(self.y.device)  # the step may be under way
            self._looks[steps] = self._is_settled()
        return self._looks[steps]

    def _is_settled(self):
        """Whether the fit may end after some of its steps."""
        estimate, y, settled = self.estimate, self.y[0, 0], self.settings.settled
        if self.steps_done == 1:
            return self._stands_alone(estimate) is not None
        if self.steps_done == LOOK_AFTER and settled:
            check = self.fit.outputs()[1][0, 0]
            images = (self._sharp(kernel) for kernel in (estimate, check))
            if quality.disagreement(y, *images, check.shape) < settled:
                return True
        return self.fit.residual() < self._noise

    @cached_property
    def _noise(self):
        """The noise of y, which is asked for often."""
        return noise_level(self.y[0, 0])

    def is_finite(self):
        """Whether the losses and all parameters are numbers."""
        return self.fit.is_finite()

    @property
    def fits_all_of_y(self):
        """Whether the fit sees all of y, not only a window."""
        return self.fit.y.shape == self.y.shape

    def output(self):
        """The `Output` so far, without the noise of the steps, so that the networks alone give it again.

        At the end of a run that has a search, this takes a vote and deconvolves y; once. Where the fit sees a window
        of y, y is deconvolved with its kernel.
        """
        if self.settings.searched and self.is_done:
            if self._conclusion is None:
                self._conclusion = self._concluded()
            return self._conclusion
        x, k = (output[0, 0] for output in self.fit.outputs())
        return Output(x, k) if self.fits_all_of_y else self._deconvolved(k)

    def _concluded(self):
        """The output at the end of a run that has a search."""
        settings = self.settings
        x, check = (output[0, 0] for output in self.fit.outputs())
        choice = vote(
            self.y[0, 0],
            self.estimate,
            check,
            doubt=settings.doubt,
            confirmed=settings.confirmed,
            deconvolved=self._sharp,
            search_again=lambda: self._search(searches=SEARCHES_AGAIN),
        )
        kernel = torch.stack(choice.kernels).mean(0)
        fitted = choice.estimate is None or any(one is check for one in choice.kernels)
        estimate = self.estimate if choice.estimate is None else choice.estimate
        reason = self._against_networks(kernel, estimate)
        self.kernels = {ESTIMATE: estimate, FITTED: check}
        self.disagreement, self.vote = choice.disagreement, choice.reason
        if reason:
            return self._deconvolved(estimate, reason)
        output = self._deconvolved(kernel)
        share = settings.network_share
        early = settings.settled and self.steps_done == LOOK_AFTER
        if not share or early or not fitted or not self.fits_all_of_y:
            return output
        return dataclasses.replace(output, x=share * x + (1 - share) * output.x, share=1 - share)

    def _deconvolved(self, kernel, handed_back=None):
        """The output whose image is y deconvolved with a kernel."""
        image = self._sharp(kernel).to(self.y)
        return Output(image.clamp(0, 1), kernel, image, 1.0, handed_back)

    def _sharp(self, kernel):
        """y deconvolved with a kernel. The latest images are kept: a look, the vote and the output ask for the same."""
        for known, image in self._images:
            if torch.equal(known, kernel):
                return image
        image = deconvolve(self.y[0, 0], kernel)
        self._images = [*self._images[-2:], (kernel, image)]
        return image

    def _stands_alone(self, estimate):
        """Why the estimate is taken whatever a fit finds; None if networks may improve it."""
        y = self.y[0, 0]
        if kernel_of_trails(y, self.kernel_size) is not None:
            return TRAILS
        if quality.stands_alone(y, estimate):
            return SIMPLE
        return NOISY if self._noise > self.settings.most_noise else None

    def _against_networks(self, kernel, estimate):
        """Why the estimate is to be taken instead of what the networks made of it; None if they may have improved it.

        A generator that is still smooth narrows the kernel to make up for it, and one that sees noise fits it.
        """
        if reason := self._stands_alone(estimate):
            return reason
        if clearly_better(self.y[0, 0], estimate, kernel, share=self.settings.passes):
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
            searched=self.estimate is not None,
            image=output.deconvolved,
        )
        decided = {"vote": self.vote, "handed_back": output.handed_back}
        return measures | {name: reason for name, reason in decided.items() if reason is not None}

    def image_state(self, output):
        """The state of G_x as `selfdeblur.load_model` reads it.

        Besides the parameters, where the image is not G_x's alone, the other part of it as ``other`` and its ``share``.
        """
        state = self.fit.G_x.state_dict()
        if output.deconvolved is not None:  # of which the image of a network that saw a window of y is no part
            state["other"], state["share"] = output.deconvolved.clamp(0, 1), torch.tensor(output.share)
        return state

    def kernel_state(self, output):
        """The state of a G_k that gives the kernel of an output, or None where the kernel is known."""
        if self.kernel is not None:
            return None
        if output.deconvolved is None:
            return self.fit.G_k.state_dict()
        generator = copy.deepcopy(self.fit.G_k)
        generator.start_at(self.fit.z_k, output.kernel)
        return generator.state_dict()

    def _search(self, **how):
        return estimate_kernel(self.y[0, 0], self.kernel_size, progress=self.search_progress, **how).to(self.y)

    def _new_fit(self, start=None):
        """The fit at its first step, with G_k at a kernel (h, w) if there is one."""
        y = self.y
        if self.settings.window:
            rows, columns = busiest_window(y[0, 0], self.settings.window)
            y = y[..., rows, columns].contiguous()
        return Fit(
            y,
            self.kernel_size,
            self.settings,
            kernel=self.kernel,
            start=start,
            losses=self.losses,
            plain=self.plain,
        )

    def state_dict(self):
        """All that `load_state_dict` needs to go on as if there had been no interruption."""
        return {
            "steps_done": self.steps_done,
            "fit": self.fit.state_dict(),
            "kernels": {name: kernel.cpu() for name, kernel in self.kernels.items()},
            "disagreement": self.disagreement,
            "vote": self.vote,
        }

    def load_state_dict(self, state):
        """Go on from a state that `state_dict` gave, of a run with the same image and settings."""
        fit = self._new_fit()
        fit.load_state_dict(state["fit"])
        self.fit, self._slowed = fit, fit.slowed
        self.kernels = {name: kernel.to(self.y) for name, kernel in state["kernels"].items()}
        self.disagreement, self.vote = state["disagreement"], state["vote"]
