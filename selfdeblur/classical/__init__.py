"""Classical means: the kernel search, its judge, deconvolution with a known kernel.

No network and no training: `estimate_kernel` finds the kernel of a blurry image
in seconds, `deconvolve` the sharp image for a kernel.
"""

from selfdeblur.classical.deconvolution import deconvolve
from selfdeblur.classical.search import estimate_kernel

__all__ = ["deconvolve", "estimate_kernel"]
