"""Score results on the Lai images: python statistic/statistic_lai.py --results results/... (see --help)."""

import sys
from pathlib import Path


def main():
    """Run the command line and return its exit status."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from selfdeblur.data.benchmarks import LAI
    from selfdeblur.scores.scoring import command_line

    return command_line(LAI)


if __name__ == "__main__":
    sys.exit(main())
