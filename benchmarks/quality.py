"""Quality and cost of a preset on a benchmark: python benchmarks/quality.py levin --preset fast

Each image is run by the benchmark's script in a process of its own, then all are scored into the table of scores in
results/ (PSNR, SSIM, error ratio, kernel similarity, seconds, peak memory, whether the result calls itself doubtful).
What is finished is left, so the same command goes on where it was stopped.

    --subset      20 images of Lai, each category with each kernel; the 16 of im1 and im2 of Levin
    --plot FILE   PSNR over seconds of all presets in the table, instead of a run (needs matplotlib)
"""

import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selfdeblur.arguments import Parser, guarded
from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.errors import UserError
from selfdeblur.files.images import find_images
from selfdeblur.scores import scoring
from selfdeblur.scores.tables import read_csv
from selfdeblur.settings import PRESETS

ROOT = Path(__file__).resolve().parents[1]
# A mean over fewer images than these is not drawn: images differ more than methods.
LEAST = 16
CATEGORIES = ("manmade", "natural", "people", "saturated", "text")


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("benchmark", choices=("levin", "lai"))
    parser.add_argument("--preset", choices=[name for name in PRESETS if name != "nonblind"], default="fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="by default all cores")
    parser.add_argument("--images", metavar="PATTERN", default="*")
    parser.add_argument("--subset", action="store_true")
    parser.add_argument("--save_path", type=Path, help="default: results/quality/BENCHMARK_PRESET_SEED")
    parser.add_argument("--add_to", type=Path, metavar="FILE", help="table of scores; default: results/BENCHMARK.csv")
    parser.add_argument("--source", help="where the rows come from, in words; default: the command")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    table = args.add_to or ROOT / "results" / f"{args.benchmark}.csv"
    if args.plot:
        return plot(table, args.plot)
    benchmark = {"levin": LEVIN, "lai": LAI}[args.benchmark]
    names = [path.stem for path in find_images(ROOT / benchmark.blurry, args.images)]
    if args.subset:
        chosen = subset(benchmark.name)
        names = sorted(set(names) & set(chosen), key=chosen.index)
    folder = args.save_path or ROOT / "results" / "quality" / f"{benchmark.name}_{args.preset}_{args.seed}"
    failed = [name for name in names if not run(benchmark, name, folder, args)]
    source = args.source or f"python benchmarks/quality.py {benchmark.name} --preset {args.preset}"
    command = ["--results", str(folder), "--add_to", str(table), "--method", "selfdeblur", "--source", source]
    status = scoring.command_line(benchmark, command)
    return 2 if failed else status


def subset(benchmark):
    """Names of a fixed part of a benchmark, in an order whose every beginning is as mixed as it can be."""
    if benchmark == "levin":
        return [f"im{image}_kernel{kernel}_img" for kernel in range(1, 9) for image in (1, 2)]
    return [
        f"{category}_0{(round_ + place) % 5 + 1}_kernel_0{(round_ + place) % 4 + 1}"
        for round_ in range(4)
        for place, category in enumerate(CATEGORIES)
    ]


def run(benchmark, name, folder, args):
    """Run one image; returns whether it ended well."""
    command = [sys.executable, str(ROOT / f"selfdeblur_{benchmark.name}.py"), "--images", name, "--preset", args.preset]
    command += ["--save_path", str(folder), "--seed", str(args.seed), "--save_frequency", "0"]
    command += ["--data_path", str(ROOT / benchmark.blurry)]
    if args.threads:
        command += ["--threads", str(args.threads)]
    return subprocess.run(command, check=False).returncode == 0


def plot(table, path):
    """Draw mean PSNR over the median of the seconds, a point for each method, preset and device with enough images."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot: needs matplotlib (pip install matplotlib)") from error
    groups = {}
    for row in read_csv(table):
        if not row["seed"]:  # other seeds are run on fewer images, to see the spread
            groups.setdefault((row["method"], row["preset"], row["device"]), []).append(row)
    axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).add_subplot()
    for (method, preset, device), rows in groups.items():
        if len(rows) < LEAST:
            continue
        mean = statistics.mean(row["psnr"] for row in rows)
        label = f"{method}, {preset}, {len(rows)} images" + (f", {device}" if device else "")
        seconds = [row["seconds"] for row in rows if row["seconds"]]
        if seconds:
            axes.plot(statistics.median(seconds), mean, "o", label=label)
        else:
            axes.axhline(mean, linestyle=":", linewidth=1, color="grey")
            axes.annotate(label, (1, mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=6)
    axes.set(xscale="log", xlabel="seconds an image (median)", ylabel="PSNR, dB (mean)")
    axes.legend(fontsize=7, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
