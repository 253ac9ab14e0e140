"""Tables of scores: CSV files in ``results/`` and the README's Markdown made from them."""

import argparse
import csv
import io
from pathlib import Path

import numpy as np

from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.errors import UserError
from selfdeblur.files.atomic import write_text

SCORES = ("psnr", "ssim", "ssim_plain", "error_ratio", "ssd_ratio", "kernel_similarity")

RECORD_COLUMNS = (
    "method",
    "preset",
    "image",
    "steps",
    *SCORES,
    "shift_y",
    "shift_x",
    "on_rim",
    "maxshift",
    "finished",
    "seconds",
    "peak_mb",
    "doubtful",
    "device",
    "torch",
    "commit",
    "seed",
    "source",
)

PUBLISHED = "published.csv"
PUBLISHED_COLUMNS = ("benchmark", "group", "method", "psnr", "ssim", "error_ratio", "source")


def write_csv(path, rows, columns):
    """Write dicts as CSV: numbers with at most 8 decimals, booleans as yes and no, None left empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(row.get(c)) for c in columns] for row in rows)
    write_text(path, out.getvalue())


def read_csv(path, columns=(), *, numbers=True):
    """Read a CSV as a list of dicts; empty fields become None, and ``numbers`` float, the rest stays text.

    Raises
    ------
    UserError
        If the file is missing, is not a table, or lacks one of ``columns``.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [dict(row) for row in reader]
            absent = [c for c in columns if c not in (reader.fieldnames or ())]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error})") from error
    if absent:
        raise UserError(f"{path}: the column {absent[0]!r} is missing")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise UserError(f"{path}: row {number} has another number of fields than the first line")
    return [{key: _value(text, numbers) for key, text in row.items()} for row in rows]


def add_to_record(path, rows, *, method, preset=None, source, commit=None):
    """Add scored rows to one of the tables in ``results/``.

    Rows of the same method, preset, seed and image are replaced.

    Parameters
    ----------
    path : str or Path
        CSV with the columns ``RECORD_COLUMNS``; made if absent.
    rows : list of dict
        From `selfdeblur.scores.scoring.score_folder`; those without a score are left
        out.
    method, preset, source, commit : str
        What was run, with which settings, where the figures come from, and the
        state of the program. Without ``preset``, that of the run's record.
    """
    path = Path(path)
    table = read_csv(path, RECORD_COLUMNS) if path.exists() else []
    given = {"method": method, "source": source, "commit": commit}
    new = [row | given | {"preset": preset or row.get("preset")} for row in rows if row["psnr"] is not None]

    def key(row):
        return tuple(_text(row.get(c)) for c in ("method", "preset", "seed", "image"))

    fresh = {key(row) for row in new}
    write_csv(path, [row for row in table if key(row) not in fresh] + new, RECORD_COLUMNS)


def add_arguments(parser):
    """Add the options of ``python -m selfdeblur table`` to an argument parser."""
    parser.add_argument(
        "--tables", metavar="DIR", default="results", help="folder of levin.csv, lai.csv and published.csv"
    )
    parser.add_argument("--benchmark", choices=("levin", "lai"), help="one of the two; default: both")
    parser.add_argument("--groups", action="store_true", help="PSNR / SSIM of each image and kernel, or category, too")


def main(args=None):
    """Print the Markdown tables.

    Parameters
    ----------
    args : argparse.Namespace, optional
        With the attributes that `add_arguments` defines; read from the command
        line by default.
    """
    if args is None:
        parser = argparse.ArgumentParser(description=__doc__)
        add_arguments(parser)
        args = parser.parse_args()
    benchmarks = [b for b in (LEVIN, LAI) if args.benchmark in (None, b.name)]
    print("\n\n".join(markdown(b, args.tables, groups=args.groups) for b in benchmarks))
    return 0


def markdown(benchmark, folder, *, groups=False):
    """The table of one benchmark: what was measured, then what others published.

    Parameters
    ----------
    benchmark : Benchmark
    folder : str or Path
        Holds ``levin.csv`` or ``lai.csv`` and ``published.csv``.
    groups : bool
        A second table: PSNR / SSIM for each image and kernel (Levin) or
        category (Lai).

    Returns
    -------
    str
        Markdown. A mean over a part of the images says so in bold.
    """
    folder = Path(folder)
    runs = _runs(read_csv(folder / f"{benchmark.name}.csv", RECORD_COLUMNS))
    # As text: a published .8790 keeps its digits.
    published = read_csv(folder / PUBLISHED, PUBLISHED_COLUMNS, numbers=False)
    published = [row for row in published if row["benchmark"] == benchmark.name]
    ratios = ["error_ratio", "ssd_ratio"] if benchmark is LEVIN else []
    titles = {"error_ratio": "error ratio", "ssd_ratio": "error ratio (squares)"}
    header = ["method", "PSNR", "SSIM", *(titles[r] for r in ratios), "images", "s / image", "source"]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 2), "---"])]
    for rows in runs:
        means = [_mean(rows, c) for c in ("psnr", "ssim", *ratios)]
        cells = [_cell(m, d, len(rows)) for m, d in zip(means, (2, 4, 3, 3), strict=False)]
        seconds, timed = _mean(rows, "seconds")
        time = f"{seconds:.0f}" if timed == len(rows) else "–"
        lines.append(_line([_title(rows[0]), *cells, _count(rows, benchmark.images), time, rows[0]["source"] or "–"]))
    for row in published:
        if row["group"] == "all":
            cells = [row.get(c) or "–" for c in ("psnr", "ssim", *ratios)]
            lines.append(_line([row["method"], *cells, "published", "–", row["source"]]))
    if groups:
        lines += ["", *_groups(benchmark, runs, published)]
    return "\n".join(lines)


def groups_of(benchmark, name):
    """The groups that figures are given for and that image ``name`` belongs to.

    Returns
    -------
    dict of str to int
        How many images a group has by its name: the sharp image (Levin) or
        the category (Lai), and the kernel.
    """
    truth, kernel = benchmark.truth_name(name), benchmark.kernel_name(name)
    kernels = len(benchmark.kernel_sizes)
    if benchmark is LEVIN:
        return {truth: kernels, kernel: benchmark.images // kernels}
    return {truth.split("_")[0]: benchmark.images // 5, kernel: benchmark.images // kernels}


def _runs(rows):
    """Rows of one method, preset and seed together, in the order of the file."""
    runs = {}
    for row in rows:
        runs.setdefault((row["method"], row["preset"], row["seed"]), []).append(row)
    return list(runs.values())


def _groups(benchmark, runs, published):
    sizes = {}
    for row in (row for rows in runs for row in rows):
        sizes |= groups_of(benchmark, row["image"])
    if benchmark is LAI:
        sizes = {name: size for name, size in sizes.items() if not name.startswith("kernel")}
    heads = sorted(sizes)
    lines = [_line(["method", *heads]), _line(["---", *["---:"] * len(heads)])]
    for rows in runs:
        cells = []
        for head in heads:
            members = [row for row in rows if head in groups_of(benchmark, row["image"])]
            part = f" ({len(members)} of {sizes[head]})" if len(members) < sizes[head] else ""
            scores = [_mean(members, c)[0] for c in ("psnr", "ssim")]
            cells.append(f"{scores[0]:.2f} / {scores[1]:.3f}{part}" if members else "–")
        lines.append(_line([_title(rows[0]), *cells]))
    for method in dict.fromkeys(row["method"] for row in published if row["group"] in heads):
        given = {row["group"]: row for row in published if row["method"] == method}
        cells = [f"{given[h]['psnr']} / {given[h]['ssim']}" if h in given else "–" for h in heads]
        lines.append(_line([method, *cells]))
    return lines


def _line(cells):
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _title(row):
    return f"{row['method']}, {row['preset']}" if row["preset"] else row["method"]


def _mean(rows, column):
    values = [row[column] for row in rows if row[column] is not None]
    return (float(np.mean(values)) if values else None), len(values)


def _cell(mean, decimals, total):
    value, count = mean
    if value is None:
        return "–"
    return f"{value:.{decimals}f}" + (f" ({count} images)" if count < total else "")


def _count(rows, total):
    unfinished = sum(row["finished"] == "no" for row in rows)
    part = f"{len(rows)} of {total}" + (f", {unfinished} unfinished" if unfinished else "")
    return f"**{part}**" if len(rows) < total or unfinished else str(total)


def _text(value):
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        text = f"{value:.8f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return str(value)


def _value(text, numbers):
    if text == "":
        return None
    if not numbers:
        return text
    try:
        return float(text)
    except ValueError:
        return text
