"""Take the blur out of one image, without a training set: SelfDeblur (Ren et al., CVPR 2020)."""

__version__ = "0.1.0"

from selfdeblur.api import Result, deblur
from selfdeblur.errors import UserError
from selfdeblur.files.models import load_model
from selfdeblur.settings import PRESETS, Settings

__all__ = ["PRESETS", "Result", "Settings", "UserError", "deblur", "load_model"]
