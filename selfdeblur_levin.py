"""Deblur Levin's benchmark: python selfdeblur_levin.py --help"""

import sys

from selfdeblur.benchmarks import LEVIN
from selfdeblur.cli import benchmark_main

if __name__ == "__main__":
    sys.exit(benchmark_main(LEVIN))
