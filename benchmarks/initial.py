"""The classical first estimate on Levin's images: python benchmarks/initial.py --save_path results/initial

Writes NAME_x.png and NAME_k.png as a run does, to be scored by statistic/statistic_levin.py.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from selfdeblur.arguments import Parser, guarded
from selfdeblur.classical import deconvolve, estimate_kernel
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.files.images import find_images, read_image, write_image
from selfdeblur.files.names import IMAGE, KERNEL
from selfdeblur.forward import centre


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", type=Path, default=LEVIN.blurry)
    parser.add_argument("--save_path", type=Path, required=True)
    parser.add_argument("--images", default="*")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for path in find_images(args.data_path, args.images):
        y = torch.from_numpy(read_image(path)).float()
        begun = time.process_time()
        kernel = estimate_kernel(y, LEVIN.kernel_size(path.stem))
        x = centre(deconvolve(y, kernel), kernel.shape)
        print(f"{path.stem}: {time.process_time() - begun:.1f} s", flush=True)
        write_image(args.save_path / f"{path.stem}{IMAGE}", x.numpy())
        write_image(args.save_path / f"{path.stem}{KERNEL}", (kernel / kernel.max()).numpy())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
