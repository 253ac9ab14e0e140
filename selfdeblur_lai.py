"""Deblur Lai's benchmark: python selfdeblur_lai.py --help"""

import sys

from selfdeblur.benchmarks import LAI
from selfdeblur.cli import benchmark_main

if __name__ == "__main__":
    sys.exit(benchmark_main(LAI))
