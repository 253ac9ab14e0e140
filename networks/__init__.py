"""The two untrained generators of SelfDeblur, plain modules that know nothing of files or benchmarks."""

from networks.kernel import KernelGenerator
from networks.skip import SkipGenerator

__all__ = ["KernelGenerator", "SkipGenerator"]
