"""The settings of a run, and the presets: what each of them changes from the paper."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from selfdeblur.errors import UserError

# What is computed in less than float32, see `selfdeblur.precision`.
PRECISIONS = {
    "float32": "float32 throughout",
    "tf32": "the convolutions of the image generator in TF32, on a GPU that has it",
    "fp16": "the image generator in float16, which has the digits of TF32 but not its range",
    "bf16": "the image generator in bfloat16",
}

# `selfdeblur.classical.quality.disagreement` from which on two kernels cannot both be nearly right.
DOUBT = 0.035

# `disagreement` of estimate and check below which what still differs is the error of the networks, not the estimate's.
CONFIRMED = 0.018

# `disagreement` after a quarter of the steps of "fast" from which on these hardly ever change the result. Of 26 runs 8
# have less, and the result of one of these changes.
SETTLED = 2 / 3 * CONFIRMED

# Where the noise of the steps may be drawn.
NOISE_FROM = ("cpu", "cuda")

# The settings that the record of every result has; the others are recorded where they differ from their default.
ALWAYS_RECORDED = (
    "preset",
    "num_iter",
    "mse_steps",
    "tv_weight",
    "lr_image",
    "lr_kernel",
    "milestones",
    "input_noise",
    "seed",
)


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
    channels : tuple of int
        Channels of G_x at each scale, finest first.
    non_local : bool
        Whether G_x has non-local blocks, from its third scale on.
    searched : bool
        A kernel search comes first. G_k starts at what it finds, the estimate,
        and the fit is a check of it. The kernel of the result is the mean of
        both, or of what `selfdeblur.vote` leaves; the image is y deconvolved
        with it. Otherwise G_k starts as it is drawn, and image and kernel are
        those of the networks. The next seven are for such a run alone.
    doubt : float
        If `selfdeblur.classical.quality.disagreement` of two kernels is larger than this,
        another search follows, and one kernel may be left out, see `selfdeblur.vote`.
    confirmed : float
        If it is smaller than this, the check confirms the estimate, whose kernel is taken alone.
    settled : float
        If it is smaller than this after `selfdeblur.stages.LOOK_AFTER` steps already, the run ends there.
    passes : float
        The estimate's kernel is the result, and not the networks', if the energy
        by which the judge orders kernels is less than this share of that of
        the networks' kernel, see `selfdeblur.classical.judge.badness`.
    most_noise : float
        So it is if y has white noise of more than this deviation.
    window : int or None
        The fit sees only a square of y of at most this side, the one with the
        most structure: enough to find the kernel, which is the same everywhere.
    network_share : float
        Share of G_x's image in that of the result, unless the vote leaves neither
        estimate nor check, a window was fitted, or the run ended early as both
        agreed: what a network and a deconvolution have wrong is only partly the same.
    noise_from : {"cpu", "cuda"}
        Which generator draws the noise of the steps. Inputs and networks are
        always drawn on the CPU.
    precision : str
        See `PRECISIONS`.
    low_memory : bool
        Compute more than once what would fill the memory. It changes the
        result only by rounding, but a run has to go on as it began.

    Raises
    ------
    UserError
        If a value is out of its range.
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
    channels: tuple[int, ...] = (128,) * 5
    non_local: bool = True
    searched: bool = False
    doubt: float = 0.0
    confirmed: float = 0.0
    settled: float = 0.0
    passes: float = 0.0
    most_noise: float = 1.0
    window: int | None = None
    network_share: float = 0.0
    noise_from: str = "cpu"
    precision: str = "float32"
    low_memory: bool = False

    def __post_init__(self):
        for name in ("milestones", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
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
        if not 0 <= self.network_share <= 1:
            raise UserError(f"network_share: {self.network_share!r} is not a number from 0 to 1")
        if self.noise_from not in NOISE_FROM:
            raise UserError(f"noise_from: {self.noise_from!r} is unknown; there are {', '.join(NOISE_FROM)}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision: {self.precision!r} is unknown; there are {', '.join(PRECISIONS)}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as a dictionary that JSON can hold.

        Settings that came later are left out where they are at their default, so results from before stay valid.
        """
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        defaults = {f.name: f.default for f in dataclasses.fields(self) if f.name not in ALWAYS_RECORDED}
        return {
            name: value
            for name, value in fields.items()
            if name in ALWAYS_RECORDED or getattr(self, name) != defaults[name]
        }

    def data_term(self, step: int) -> str:
        """Name of the data term at a step, counted from 0: "mse" or "1-ssim"."""
        return "mse" if self.mse_steps is None or step < self.mse_steps else "1-ssim"


# The preset that takes a known kernel; all others estimate it.
NONBLIND = "nonblind"

# Weight of the total variation over the deviation of the noise: the paper's rule for noisy images.
TV_WEIGHT_OF_NOISE = 0.1

# What the presets have in common whose fit checks the kernel of a search.
CHECK = {
    "mse_steps": 0,
    "lr_kernel": 5e-4,
    "non_local": False,
    "searched": True,
    "doubt": DOUBT,
    "confirmed": CONFIRMED,
    "most_noise": 0.02,
}

# Kernel search and deconvolution alone, without networks: besides the presets, which are fits of networks.
QUICK = "quick"

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "release": (
        "the released program: mean squared error for 1000 steps (500 on Lai), then 1 - SSIM, no total variation",
        {},
    ),
    "paper": (
        "the paper: mean squared error plus 1e-6 times the total variation throughout",
        {"mse_steps": None, "tv_weight": 1e-6},
    ),
    NONBLIND: (
        "the released program for a known kernel: only the image generator is fitted, with 1 - SSIM",
        {"num_iter": 1000, "mse_steps": 0, "milestones": (700, 800, 900)},
    ),
    "fast": (
        "no part of the paper: a classical estimate of the kernel, checked by a short fit of thin networks that starts "
        "at it, and ends as soon as more steps would not help; the result is deconvolved with the estimate where the "
        "check confirms it, with the mean of both kernels where they agree less closely, or with what a vote leaves; "
        "of a small picture, the image of the network is a part of it",
        {
            **CHECK,
            "num_iter": 320,
            "milestones": (),
            "channels": (16, 32, 32, 32),
            "window": 320,
            "settled": SETTLED,
            "passes": 0.8,
            "network_share": 0.15,
        },
    ),
    "best": (
        "no part of the paper: as fast, with a check by wider networks, in more steps and on all of the image, whose "
        "image makes a quarter of the result",
        {
            **CHECK,
            "num_iter": 560,
            "milestones": (500,),
            "channels": (64,) * 5,
            # The kernels of wide networks have more energy than those of thin ones, good or bad.
            "passes": 0.7,
            "network_share": 0.25,
        },
    ),
}
"""The presets by name: what each is, in one sentence, and what it changes from the defaults of `Settings`, which are
the released program's. "quick", kernel search and deconvolution alone, is none of them: `selfdeblur.restore` has it."""


def check_known_kernel(preset: str, known: bool, *, kernel: str = "kernel") -> None:
    """Raise `UserError` unless the kernel is known just where the preset takes one.

    Parameters
    ----------
    preset : str
    known : bool
        Whether a kernel is given.
    kernel : str
        What the kernel's argument is called where the user gave it.
    """
    if known and preset != NONBLIND:
        raise UserError(f"{kernel}: preset {preset} estimates the kernel; use preset {NONBLIND} with a known one")
    if not known and preset == NONBLIND:
        raise UserError(f"{kernel}: preset {NONBLIND} needs a kernel")


def make_settings(preset: str = "release", **changes: Any) -> Settings:
    """The settings of a preset, with changes.

    Parameters
    ----------
    preset : {"release", "paper", "nonblind", "fast", "best"}
        Its name, see `PRESETS`.
    **changes
        Fields of `Settings`; a value of None for num_iter keeps the preset's.

    Returns
    -------
    Settings
        Those of the preset, but for the changes.

    Raises
    ------
    UserError
        If there is no such preset or a value is out of range.
    TypeError
        If a change is no field of `Settings`.
    """
    if preset not in PRESETS:
        raise UserError(f"preset: {preset!r} is unknown; the presets are {', '.join(PRESETS)}")
    if changes.get("num_iter", 0) is None:
        del changes["num_iter"]
    values = {"preset": preset, **PRESETS[preset][1], **changes}
    unknown = changes.keys() - {field.name for field in dataclasses.fields(Settings)}
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    return Settings(**values)
