"""Scores of a folder of results: one row an image, averages, CSV, and the command line of ``statistic/``.

A row is made for each image of the benchmark, whether its result is there or
not, so that a part of the benchmark never looks like the whole.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import signal
from tqdm import tqdm

from selfdeblur.arguments import Parser, guarded
from selfdeblur.data.benchmarks import LAI, LEVIN
from selfdeblur.errors import UserError
from selfdeblur.files.images import SUFFIXES, read_image, write_image
from selfdeblur.files.names import IMAGE, KERNEL, RECORD, natural
from selfdeblur.files.records import read_json
from selfdeblur.scores import metrics
from selfdeblur.scores.tables import SCORES, add_to_record, groups_of, write_csv

BENCHMARKS = {b.name: b for b in (LEVIN, LAI)}

# Columns taken from the record of a run, empty where there is none.
RUN = ("steps", "seconds", "peak_mb", "device", "torch", "seed", "preset")
COLUMNS = ("image", "status", *SCORES, "shift_y", "shift_x", "on_rim", "maxshift", *RUN, "doubtful", "note")
# Error ratios up to which a result counts as a success; there is a rate for each.
SUCCESS = (1.5, 2, 3)

# Results may have another format than a run writes.
IMAGE_STEM, KERNEL_STEM = Path(IMAGE).stem, Path(KERNEL).stem


def score_image(image, truth, *, reference=None, maxshift=10):
    """Score one result against its sharp image.

    Parameters
    ----------
    image, truth : ndarray
        (H, W) or (H, W, 3), range 0 to 1. A colour truth is compared on
        MATLAB's Y; a grey result is then taken to be that Y already, as the
        published script for Lai does.
    reference : ndarray, optional
        The result with the true kernel, for the error ratios.
    maxshift : int
        Pixels, see `selfdeblur.scores.metrics.align`.

    Returns
    -------
    scores : dict
        ``psnr`` (dB), ``ssim``, ``ssim_plain``, ``error_ratio``,
        ``ssd_ratio`` (None without ``reference``), ``shift_y``, ``shift_x``
        (pixels), ``on_rim``.
    alignment : selfdeblur.scores.metrics.Alignment
        The moved result, the cut truth and their difference.

    Raises
    ------
    ValueError
        If the sizes differ, or a colour result meets a grey truth.
    """
    image, grey = _comparable(image, truth)
    found = metrics.align(image, grey, maxshift=maxshift)
    scores = {
        "psnr": metrics.psnr(found.image, found.truth),
        "ssim": metrics.ssim(found.image, found.truth),
        "ssim_plain": metrics.ssim(found.image, found.truth, downsample=False),
        "error_ratio": None,
        "ssd_ratio": None,
        "shift_y": found.shift_y,
        "shift_x": found.shift_x,
        "on_rim": found.on_rim,
    }
    if reference is not None:
        best = metrics.align(_comparable(reference, truth)[0], grey, maxshift=maxshift)
        scores["error_ratio"] = metrics.error_ratio(found.error, best.error)
        scores["ssd_ratio"] = metrics.ssd_ratio(found.error, best.error)
    return scores, found


def score_folder(
    benchmark,
    results,
    ground_truth=None,
    true_kernel=None,
    *,
    maxshift=10,
    blurry=None,
    aligned=None,
    progress=False,
):
    """Score the results in a folder.

    Parameters
    ----------
    benchmark : Benchmark, "levin", "lai" or None
        None takes whatever lies in ``results``; a result NAME then belongs to
        the sharp image NAME in ``ground_truth``.
    results : str or Path
        Folder with ``NAME_x.png`` or else ``NAME.png``, NAME being the stem of
        the blurry image; ``NAME_k.png``, the kernel in the sense of
        correlation, and ``NAME.json``, the record of the run, may lie beside.
    ground_truth : str or Path, optional
        Folder of the sharp images and, where they are known, of the kernels
        (``kernel1.png``, in either sense). The benchmark's own by default.
    true_kernel : str or Path, optional
        Folder of the results with the true kernel, named like the results; for
        the error ratios. By default where the benchmark has it, seen from its
        sharp images, if it exists.
    maxshift : int
        Pixels, 0 to 15.
    blurry : str or Path, optional
        Folder of the blurry images; needed to tell in which sense a true
        kernel is stored. By default where the benchmark has it, seen from its
        sharp images.
    aligned : str or Path, optional
        Folder that receives the moved and cut results, ``NAME_aligned.png``.
    progress : bool
        Show a bar on the error stream.

    Returns
    -------
    list of dict
        Sorted by name; the keys are ``COLUMNS`` and ``truth``, ``kernel``,
        ``finished`` and ``result`` (Path or None). What is unknown is None.
        ``status`` is ``ok``, ``unfinished`` (scored, but the run had not come
        to its end), ``missing`` (no result) or ``failed`` (the reason is in
        ``note``).

    Raises
    ------
    UserError
        If a folder does not exist, ``results`` holds no result at all, or
        ``maxshift`` is out of range.
    """
    benchmark = BENCHMARKS[benchmark] if isinstance(benchmark, str) else benchmark
    if maxshift != int(maxshift) or not 0 <= maxshift <= metrics.BORDER:
        raise UserError(f"--maxshift: {maxshift} found, give a whole number of pixels from 0 to {metrics.BORDER}")
    results = _folder(results, "--results")
    if ground_truth is None and benchmark is None:
        raise UserError("--ground_truth: not given, name the folder of the sharp images")
    ground_truth = _folder(ground_truth or benchmark.ground_truth, "--ground_truth")
    if true_kernel is not None:
        true_kernel = _folder(true_kernel, "--true_kernel")
    elif benchmark is not None:
        true_kernel = beside_truth(benchmark.true_kernel, benchmark, ground_truth)
    if blurry is not None:
        blurry = _folder(blurry, "--blurry")
    elif benchmark is not None:
        blurry = beside_truth(benchmark.blurry, benchmark, ground_truth)

    found = find_results(benchmark, results)
    if not found:
        what = f"result of {benchmark.name}" if benchmark else "result"
        raise UserError(f"{results}: holds no {what} (NAME_x.png or NAME.png, NAME as the blurry image is called)")
    names = sorted({*found, *expected_names(benchmark, ground_truth)}, key=natural)
    truths = _Truths(benchmark, ground_truth, blurry)
    rows = []
    for name in tqdm(names, unit="image", disable=None if progress else True):
        row = dict.fromkeys((*COLUMNS, "finished"))
        row |= {"image": name, "result": found.get(name), "maxshift": int(maxshift)}
        row |= {"truth": truths.truth_name(name), "kernel": truths.kernel_name(name)}
        rows.append(row)
        if row["result"] is None:
            row["status"] = "missing"
            continue
        row |= _run(results / f"{name}{RECORD}")
        notes = [row["note"]] if row["note"] else []
        try:
            image, truth = read_image(row["result"]), truths.truth(name)
            reference = _or_note(notes, _reference, true_kernel, name, truth)
            scores, alignment = score_image(image, truth, reference=reference, maxshift=maxshift)
            row |= scores
            row["kernel_similarity"] = _or_note(notes, _similarity, results / f"{name}{KERNEL}", truths, name)
            row["status"] = "unfinished" if row["finished"] is False else "ok"
        except ValueError as error:
            named = isinstance(error, UserError)
            row |= {"status": "failed", "note": str(error) if named else f"{row['result']}: {error}"}
            continue
        row["note"] = "; ".join(notes) or None
        if aligned is not None:
            write_image(Path(aligned) / f"{name}_aligned.png", alignment.image)
    return rows


def find_results(benchmark, results):
    """Find the deblurred images of a folder.

    Returns
    -------
    dict of str to Path
        The file of each NAME; ``NAME_x`` goes before ``NAME``.
    """
    files = [p for p in sorted(Path(results).iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()]
    found = {p.stem.removesuffix(IMAGE_STEM): p for p in files if p.stem.endswith(IMAGE_STEM)}
    beside = {f"{name}{KERNEL_STEM}" for name in found}
    for path in files:
        if not path.stem.endswith(IMAGE_STEM) and path.stem not in beside:
            found.setdefault(path.stem, path)
    return {name: p for name, p in found.items() if benchmark is None or benchmark.stem.fullmatch(name)}


def expected_names(benchmark, ground_truth):
    """Names of the benchmark's images whose sharp image lies in ``ground_truth``; none without a benchmark."""
    if benchmark is None:
        return []
    truths = [p.stem for p in Path(ground_truth).iterdir() if p.suffix.lower() in SUFFIXES]
    names = {f"{t}_{k}{end}" for t in truths for k in benchmark.kernel_sizes for end in ("", "_img")}
    return sorted((n for n in names if benchmark.stem.fullmatch(n)), key=natural)


def beside_truth(folder, benchmark, ground_truth):
    """One of the benchmark's folders, as it lies to the sharp images in ``ground_truth``; None where it does not exist.

    So a copy of the benchmark, or the sample, is never scored against the files of another one.
    """
    if folder is None:
        return None
    path = Path(os.path.normpath(ground_truth / os.path.relpath(folder, benchmark.ground_truth)))
    return path if path.is_dir() else None


def true_kernel_image(kernel, truth, blurry):
    """The true kernel in the sense of correlation, the sense in which results are saved.

    The kernels that come with Levin's images are not all stored in one sense
    (4 and 8 are turned against the others), so the sense is taken that makes
    the blurry image out of the sharp one.

    Parameters
    ----------
    kernel : ndarray
        (h, w), in either sense.
    truth, blurry : ndarray
        (H, W), range 0 to 1.

    Returns
    -------
    ndarray
        (h, w), sum 1.
    """
    kernel = kernel / kernel.sum()
    border = max(8, min(*kernel.shape, min(truth.shape) // 4))

    def distance(candidate):
        blurred = signal.fftconvolve(truth, metrics.correlation_kernel(candidate), mode="same")
        return np.mean(metrics.align(blurred, blurry, maxshift=8, border=border).error ** 2)

    return min((kernel, metrics.correlation_kernel(kernel)), key=distance)


def averages(rows, benchmark=None):
    """Means of the rows that have a score, for all images and by group.

    Parameters
    ----------
    rows : list of dict
        From `score_folder`.
    benchmark : Benchmark, str or None
        Levin is grouped by image and by kernel, Lai by category and by kernel.

    Returns
    -------
    list of dict
        ``group`` (``all`` first), ``images`` (how many have a score), ``of``
        (how many there should be), ``unfinished``; the means of the columns
        ``SCORES``, None where no row has one, and the number of rows behind
        each as ``NAME_of``; ``success`` and ``success_ssd``, dicts from an
        error ratio, published and Levin's, to the share of images at or below.
    """
    benchmark = BENCHMARKS[benchmark] if isinstance(benchmark, str) else benchmark
    total = max(benchmark.images, len(rows)) if benchmark else len(rows)
    groups = [("all", rows, total)]
    if benchmark is not None:
        belongs = [groups_of(benchmark, r["image"]) for r in rows]
        sizes = {key: size for keys in belongs for key, size in keys.items()}
        for key in sorted(sizes, key=lambda k: (k.startswith("kernel"), natural(k))):
            groups.append((key, [r for r, keys in zip(rows, belongs, strict=True) if key in keys], sizes[key]))
    return [_average(*group) for group in groups]


def remarks(rows, benchmark=None):
    """What a reader of the averages has to know, one line each; empty for a whole and sound set."""
    benchmark = BENCHMARKS[benchmark] if isinstance(benchmark, str) else benchmark
    lines = []
    scored = [r for r in rows if r["psnr"] is not None]
    total = max(benchmark.images, len(rows)) if benchmark else len(rows)
    if len(scored) < total:
        lines.append(f"PARTIAL: only {len(scored)} of {total} images have a score")
    known = len(rows)
    if benchmark and known < benchmark.images:
        lines.append(f"the sharp images found make {known} of the {benchmark.images} images of {benchmark.name}")
    if benchmark and benchmark.true_kernel and scored and all(r["error_ratio"] is None for r in scored):
        lines.append("no results with the true kernel were found, so there is no error ratio")
    for status, text in (("missing", "no result for"), ("unfinished", "unfinished runs, scored as they are:")):
        names = [r["image"] for r in rows if r["status"] == status]
        if names:
            lines.append(f"{text} {_listed(names)}")
    lines += [f"{r['image']} not scored: {r['note']}" for r in rows if r["status"] == "failed"]
    lines += [f"{r['image']}: {r['note']}" for r in rows if r["status"] != "failed" and r["note"]]
    rim = [r["image"] for r in scored if r["on_rim"]]
    if rim:
        shift = rows[0]["maxshift"]
        advice = " (a larger --maxshift may score higher)" if shift < metrics.BORDER else ""
        lines.append(f"best shift on the rim of the search, {shift} pixels: {_listed(rim)}{advice}")
    return lines


def report(rows, benchmark=None):
    """The averages as text for a terminal, see `averages`."""
    means = averages(rows, benchmark)
    shown = [c for c in SCORES if any(m[c] is not None for m in means)]
    lines = [f"{'':<12}{'images':>10}" + "".join(f"{c:>19}" for c in shown)]
    for mean in means:
        cells = "".join(f"{'-' if mean[c] is None else format(mean[c], '.6f'):>19}" for c in shown)
        count = f"{mean['images']}/{mean['of']}"
        lines.append(f"{mean['group']:<12}{count:>10}{cells}")
    overall = means[0]
    lines += [
        f"mean {c} over {overall[c + '_of']} of {overall['of']} images"
        for c in shown
        if overall[f"{c}_of"] < overall["images"]
    ]
    for key, name in (("success", "error_ratio"), ("success_ssd", "ssd_ratio")):
        if overall[key]:
            shares = ", ".join(f"{share:.1%} at most {limit:g}" for limit, share in overall[key].items())
            lines.append(f"success rate by {name}: {shares} (of {overall[name + '_of']} images)")
    return "\n".join(lines)


def gains(rows, blurry, ground_truth):
    """A line of text for each row, with the PSNR of the blurry image that the result was made from.

    Parameters
    ----------
    rows : list of dict
        From `score_folder`.
    blurry, ground_truth : str or Path
        Folders of the blurry and of the sharp images.
    """
    lines = [f"{'image':<28}{'blurry PSNR':>12}{'PSNR':>8}{'gain':>8}{'SSIM':>8}"]
    scored, before = [r for r in rows if r["psnr"] is not None], []
    for row in scored:
        path, truth = _image(blurry, row["image"]), _image(ground_truth, row["truth"])
        if path is None:
            raise UserError(f"{Path(blurry) / row['image']}.png: the blurry image is missing")
        scores, _ = score_image(read_image(path), read_image(truth), maxshift=row["maxshift"])
        before.append(scores["psnr"])
        lines.append(_gain(row["image"], before[-1], row["psnr"], row["ssim"]))
    if len(scored) > 1:
        psnr, ssim = (np.mean([r[column] for r in scored]) for column in ("psnr", "ssim"))
        lines.append(_gain(f"mean of {len(scored)}", np.mean(before), psnr, ssim))
    return "\n".join(lines)


def _gain(name, before, psnr, ssim):
    return f"{name:<28}{before:>12.2f}{psnr:>8.2f}{psnr - before:>+8.2f}{ssim:>8.4f}"


def command_line(benchmark, argv=None):
    """Run ``statistic/statistic_levin.py`` or ``statistic/statistic_lai.py``.

    Returns
    -------
    int
        Exit status: 0 when every result found has a score, 1 when some have
        none, 2 for a mistake in what was asked.
    """
    parser = Parser(description=f"Score results on the {benchmark.name} images as the published script does.")
    add_arguments(parser, benchmark)
    return guarded(lambda: _command(benchmark, parser.parse_args(argv)))


def add_arguments(parser, benchmark):
    """Add the options of the scoring scripts to an argument parser."""
    option = parser.add_argument
    option("--results", metavar="DIR", default=str(benchmark.results), help="folder of the results")
    option("--ground_truth", metavar="DIR", default=str(benchmark.ground_truth), help="folder of the sharp images")
    option(
        "--true_kernel",
        metavar="DIR",
        help="results with the true kernel, for the error ratios; default: beside the sharp images",
    )
    option("--blurry", metavar="DIR", help="folder of the blurry images; default: beside the sharp images")
    option("--maxshift", metavar="N", type=int, default=10, help="pixels searched each way, 0 to 15")
    option("--each", action="store_true", help="print a line for each result, with its gain over the blurry image")
    option("--csv", metavar="FILE", help="write a row for each image")
    option("--save_aligned", metavar="DIR", help="write the moved and cut results")
    option("--add_to", metavar="FILE", help="add the rows to a table such as results/levin.csv")
    option("--method", help="name of the method in that table")
    option("--preset", help="its settings; default: the preset in the record of each run")
    option("--source", help="where the results come from, in words")


def _command(benchmark, args):
    if args.add_to and not (args.method and args.source):
        raise UserError("--add_to: needs --method NAME and --source TEXT as well")
    rows = score_folder(
        benchmark,
        args.results,
        args.ground_truth,
        args.true_kernel,
        maxshift=args.maxshift,
        blurry=args.blurry,
        aligned=args.save_aligned,
        progress=True,
    )
    if args.csv:
        write_csv(args.csv, rows, COLUMNS)
    if args.add_to:
        add_to_record(
            args.add_to, rows, method=args.method, preset=args.preset, source=args.source, commit=commit_of_package()
        )
    if args.each:
        # Of whatever set of images it is: nothing is missing, the results that are there are shown.
        rows = [r for r in rows if r["status"] != "missing"]
        blurry = args.blurry or beside_truth(benchmark.blurry, benchmark, Path(args.ground_truth))
        print(gains(rows, blurry, args.ground_truth))
        benchmark = None
    else:
        print(report(rows, benchmark))
    for line in remarks(rows, benchmark):
        print(f"warning: {line}", file=sys.stderr)
    return 1 if any(r["status"] == "failed" for r in rows) else 0


class _Truths:
    """Sharp images and kernels of a folder, each read once."""

    def __init__(self, benchmark, folder, blurry):
        self.benchmark, self.folder, self.blurry = benchmark, folder, blurry
        self.name, self.image, self.kernels = None, None, {}

    def truth_name(self, name):
        return self.benchmark.truth_name(name) if self.benchmark else name

    def kernel_name(self, name):
        return self.benchmark.kernel_name(name) if self.benchmark else None

    def truth(self, name):
        truth = self.truth_name(name)
        if truth != self.name:
            path = _image(self.folder, truth)
            if path is None:
                raise UserError(f"{self.folder / truth}.png: the sharp image is missing")
            self.image, self.name = read_image(path), truth
        return self.image

    def kernel(self, name):
        """The true kernel in the sense of correlation, or None if it or the blurry image is not there."""
        kernel = self.kernel_name(name)
        if kernel is None:
            return None
        if kernel not in self.kernels:
            path = _image(self.folder, kernel)
            blurry = _image(self.blurry, name) if self.blurry else None
            if path is None or blurry is None:
                return None
            image, truth = _comparable(_of_size(blurry, self.truth(name), "no kernel similarity"), self.truth(name))
            stored = read_image(path)
            if stored.ndim != 2 or not stored.sum() > 0:
                raise UserError(f"{path}: not a kernel (a grey image that is not black all over)")
            self.kernels[kernel] = true_kernel_image(stored, truth, image)
        return self.kernels[kernel]


def _comparable(image, truth):
    """Both as (H, W), on Y if the truth is in colour."""
    if truth.ndim == 3:
        return (metrics.luminance(image) if image.ndim == 3 else image), metrics.luminance(truth)
    if image.ndim == 3:
        if np.ptp(image, axis=2).any():
            raise ValueError("a colour image, but the sharp image is grey")
        image = image[:, :, 0]
    return image, truth


def _or_note(notes, function, *args):
    """What ``function`` returns; its complaint goes to ``notes`` instead, because the scores stand without it."""
    try:
        return function(*args)
    except ValueError as error:
        notes.append(str(error))
        return None


def _reference(folder, name, truth):
    path = folder and (_image(folder, f"{name}{IMAGE_STEM}") or _image(folder, name))
    if not path:
        return None
    return _of_size(path, truth, "no error ratio")


def _of_size(path, truth, without):
    """The image, unless its size is another than that of the sharp image."""
    image = read_image(path)
    if image.shape[:2] != truth.shape[:2]:
        sizes = " against ".join(f"{a.shape[1]} x {a.shape[0]}" for a in (image, truth))
        raise UserError(f"{path}: the sizes differ, {sizes} of the sharp image; {without}")
    return image


def _similarity(path, truths, name):
    if not path.is_file():
        return None
    truth = truths.kernel(name)
    if truth is None:
        return None
    kernel = read_image(path)
    if kernel.ndim != 2:
        raise UserError(f"{path}: a kernel has to be a grey image")
    return metrics.kernel_similarity(kernel, truth)


def _run(path):
    """What the record of a run says; a record that cannot be read is noted."""
    try:
        record = read_json(path)
        if record is None:
            return {}
        settings = record.get("settings") or {}
        facts = {key: record.get(key, settings.get(key)) for key in RUN}
        quality = record.get("quality")
        doubtful = bool(quality.get("doubtful")) if isinstance(quality, dict) else None
        return facts | {"doubtful": doubtful, "finished": record.get("finished") is True}
    except (UserError, AttributeError):
        return {"finished": False, "note": f"{path.name} cannot be read, so the run counts as unfinished"}


def _average(group, rows, total):
    scored = [r for r in rows if r["psnr"] is not None]
    mean = {
        "group": group,
        "images": len(scored),
        "of": total,
        "unfinished": sum(r["status"] == "unfinished" for r in scored),
    }
    for column in SCORES:
        values = [r[column] for r in scored if r[column] is not None]
        mean[column] = float(np.mean(values)) if values else None
        mean[f"{column}_of"] = len(values)
    for key, column in (("success", "error_ratio"), ("success_ssd", "ssd_ratio")):
        values = np.array([r[column] for r in scored if r[column] is not None])
        mean[key] = {limit: float(np.mean(values <= limit)) for limit in SUCCESS} if values.size else {}
    return mean


def _folder(path, option):
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder (option {option})")
    return path


def _image(folder, stem):
    paths = (Path(folder) / f"{stem}{suffix}" for suffix in SUFFIXES)
    return next((p for p in paths if p.is_file()), None)


def _listed(names, most=6):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def commit_of_package():
    """Short name of this package's commit, with a + if its files were changed since; None outside git."""
    folder = Path(__file__).parents[1]
    try:
        run = [
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno", "."])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return run[0] + ("+" if run[1] else "")
