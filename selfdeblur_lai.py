"""Deblur Lai's benchmark, or any folder of images: python selfdeblur_lai.py --help"""

import os
import sys


def main():
    """Run the command line and return its exit status."""
    # By default threads that wait keep their core busy for so long that two programs on one machine take four times
    # as long as one. It is read when PyTorch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from selfdeblur.data.benchmarks import LAI
    from selfdeblur.runs.command import benchmark_main

    return benchmark_main(LAI)


if __name__ == "__main__":
    sys.exit(main())
