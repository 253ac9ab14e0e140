"""Take the blur out of one image, without a training set: SelfDeblur (Ren et al., CVPR 2020).

The public names are loaded when they are first used, so that the version and
the help of the command line do not wait for PyTorch.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selfdeblur.api import Result, blind_deconvolve, deblur
    from selfdeblur.errors import UserError
    from selfdeblur.files.models import load_model
    from selfdeblur.settings import PRESETS, Settings

__all__ = ["PRESETS", "Result", "Settings", "UserError", "blind_deconvolve", "deblur", "load_model"]

# The module of each public name.
_MODULES = {
    "PRESETS": "selfdeblur.settings",
    "Result": "selfdeblur.api",
    "Settings": "selfdeblur.settings",
    "UserError": "selfdeblur.errors",
    "blind_deconvolve": "selfdeblur.api",
    "deblur": "selfdeblur.api",
    "load_model": "selfdeblur.files.models",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
