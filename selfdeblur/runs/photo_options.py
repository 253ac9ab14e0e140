"""The options of ``selfdeblur PHOTO...``, without anything that takes long to load."""

from pathlib import Path

from selfdeblur import __version__
from selfdeblur.arguments import Parser
from selfdeblur.runs import cluster
from selfdeblur.settings import QUICK

WORDS = {
    QUICK: "kernel search and deconvolution alone, without networks",
    "fast": "as quick, with short fits of networks that check and refine it",
    "best": "as fast, with longer fits",
    "release": "the method of the paper as its authors released it",
    "paper": "the method as the paper describes it",
}


def parser():
    """The parser of the command."""
    presets = "; ".join(f"{name}: {text}" for name, text in WORDS.items())
    parser = Parser(
        prog="selfdeblur",
        usage="selfdeblur PHOTO... [-o FILE_OR_FOLDER] [options]\n       selfdeblur IN OUT [options]",
        description="Take the blur out of photographs, scans, slides: any PNG, JPEG, TIFF, WebP, BMP, PGM or PPM. "
        "photo.jpg becomes photo_deblurred.jpg, of the same kind, with the kernel as photo_kernel.png beside it.",
        epilog=f"Presets. {presets}. Exit status. 0: all improved; 1: some failed; 2: called wrongly; 3: no reliable "
        "improvement of some, which are written all the same unless --strict is given; 130: interrupted. "
        "The commands fetch, sample, report, status, table and serve (a page in the browser) "
        "have a --help of their own; a file of such a name is ./fetch.",
    )
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="files, folders, or - for standard input; or IN OUT")
    add("--version", action="version", version=__version__)
    add("-o", "--output", metavar="FILE_OR_FOLDER", help="where to write; - for standard output; default: beside it")
    add("--preset", choices=tuple(WORDS), default="fast", help="see below")
    add("--kernel_size", type=int, nargs="+", metavar="N", help="one or two odd numbers; by default estimated")
    add("--kernel", type=Path, metavar="FILE", help="known kernel (image or .npy), in correlation sense")
    add("--noise", type=_share, help="standard deviation of the noise, of the range 0 to 1; by default estimated")
    add("--colour", choices=("rgb", "luminance"), default="rgb", help="whether the colours are sharpened as well")
    add("--time_limit", type=_seconds, metavar="S", help="seconds for each picture; then the best so far is written")
    add("--device", default="auto", help="cuda, cuda:1, cpu; auto takes CUDA where there is one")
    add("--threads", type=_number, help="CPU threads; by default all cores")
    add("--seed", type=_number, default=0, help="seed of all random numbers")
    add("--overwrite", action="store_true", help="replace files that are there, the photographs included")
    add("--recursive", action="store_true", help="folders with the folders in them")
    add("--pages", choices=("each", "first"), default="each", help="which pages of a TIFF")
    add("--kernel_from", choices=("each", "first"), default="each", help="a kernel for each page, or the first one's")
    add("--save_kernel", action="store_true", help="write the kernel as numbers, too: photo_kernel.npy")
    add("--report", action="store_true", help="write a page that compares before and after with a slider")
    add("--strict", action="store_true", help="write only what is reliably better")
    add("--json", action="store_true", help="one line of JSON for each picture on standard output")
    add("--quiet", action="store_true", help="no progress, no messages but errors and warnings")
    add("--no_progress", action="store_true", help="no progress; there is none, either, where there is no terminal")
    add("--record", type=Path, metavar="FILE", help="add a line of JSON to a file where a picture begins and ends")
    cluster.add_arguments(parser)
    return parser


def _share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


def _seconds(text):
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


def _number(text):
    value = int(text)
    if value < 0:
        raise ValueError
    return value


_share.__name__ = "number from 0 to 1"
_seconds.__name__ = "number of seconds above 0"
_number.__name__ = "number of at least 0"
