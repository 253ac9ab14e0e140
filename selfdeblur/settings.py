"""The settings of a run, and the presets: what each of them changes from the paper."""

import dataclasses
import math
from dataclasses import dataclass

from selfdeblur.errors import UserError


@dataclass(frozen=True)
class Settings:
    """All that decides the result of a run, besides the image and the kernel size.

    Parameters
    ----------
    preset : str
        Name of the preset that these settings started from.
    num_iter : int
        Steps of Adam.
    mse_steps : int or None
        Steps whose data term is the mean squared error; the later ones take
        1 - SSIM. None: the mean squared error throughout.
    tv_weight : float
        Weight lambda of the total variation of the image (paper, equation 6).
    lr_image, lr_kernel : float
        Learning rates of the image generator and of the kernel generator.
    milestones : tuple of int
        Steps at which both learning rates are halved.
    input_noise : float
        Standard deviation of the noise added to z_x at each step.
    seed : int
        Seed of the inputs, of the networks' start and of the input noise.
    low_memory : bool
        Compute more than once what would fill the memory. It changes the
        result only by rounding, but a run has to go on as it began.
    """

    preset: str = "release"
    num_iter: int = 5000
    mse_steps: int | None = 1000
    tv_weight: float = 0.0
    lr_image: float = 1e-2
    lr_kernel: float = 1e-4
    milestones: tuple[int, ...] = (2000, 3000, 4000)
    input_noise: float = 1e-3
    seed: int = 0
    low_memory: bool = False

    def __post_init__(self):
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, lowest in (("num_iter", 1), ("mse_steps", 0), ("seed", 0)):
            value = getattr(self, name)
            if not (isinstance(value, int) or (value is None and name == "mse_steps")):
                raise UserError(f"{name}: {value!r} is not a whole number")
            if value is not None and not lowest <= value < 2**63:
                raise UserError(f"{name}: {value} is out of range; the lowest value is {lowest}")
        if not isinstance(self.low_memory, bool):
            raise UserError(f"low_memory: {self.low_memory!r} is neither true nor false")
        for name in ("tv_weight", "lr_image", "lr_kernel", "input_noise"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise UserError(f"{name}: {value!r} is not a number of at least 0")

    def as_dict(self):
        """The settings as a dictionary that JSON can hold.

        ``low_memory`` is left out where it is off, as in results from before there was that setting.
        """
        settings = {**dataclasses.asdict(self), "milestones": list(self.milestones)}
        if not self.low_memory:
            del settings["low_memory"]
        return settings


# What each preset is, then what it changes from the defaults above, which are the released program's.
PRESETS = {
    "release": (
        "the released program: mean squared error for 1000 steps (500 on Lai), then 1 - SSIM, no total variation",
        {},
    ),
    "paper": (
        "the paper: mean squared error plus 1e-6 times the total variation throughout",
        {"mse_steps": None, "tv_weight": 1e-6},
    ),
    "nonblind": (
        "the released program for a known kernel: only the image generator is fitted, with 1 - SSIM",
        {"num_iter": 1000, "mse_steps": 0, "milestones": (700, 800, 900)},
    ),
}


def make_settings(preset="release", **changes):
    """The settings of a preset, with changes.

    Parameters
    ----------
    preset : {"release", "paper", "nonblind"}
    **changes
        Fields of `Settings`; a value of None for num_iter keeps the preset's.

    Raises
    ------
    UserError
        If there is no such preset or a value is out of range.
    """
    if preset not in PRESETS:
        raise UserError(f"preset: {preset!r} is unknown; the presets are {', '.join(PRESETS)}")
    if changes.get("num_iter", 0) is None:
        del changes["num_iter"]
    unknown = changes.keys() - {field.name for field in dataclasses.fields(Settings)}
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    return Settings(**{"preset": preset, **PRESETS[preset][1], **changes})
