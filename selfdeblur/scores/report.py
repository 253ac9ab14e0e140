"""``python -m selfdeblur report``: a folder of results as one HTML page that needs no network.

This module gathers what the page shows: pictures, scores, settings, loss
curves. How it looks is all in ``report.html``, which receives them as JSON.
"""

import base64
import csv
import hashlib
import html
import itertools
import json
import math
import os
import tempfile
from datetime import date
from pathlib import Path

import cv2
import numpy as np

from selfdeblur.errors import UserError
from selfdeblur.files.atomic import write_text
from selfdeblur.files.images import SUFFIXES, read_image, reduced
from selfdeblur.files.names import CHECKPOINT, CONFIG, FAILURES, HISTORY, RECORD, natural
from selfdeblur.files.records import file_hash
from selfdeblur.scores import metrics, scoring

TEMPLATE = Path(__file__).with_name("report.html")

# Errors (1 is the range of an image) that the brightest colour of an error map may stand for; colours of a map.
ERROR_SCALES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ERROR_LEVELS = 32
# Most pixels a side of an error map: noise-like, they compress worst, and are shown smaller than other pictures.
ERROR_SIDE = 400

# Pixels a side of a thumbnail, quality of JPEG pictures, most points of a curve of losses.
THUMBNAIL = 144
JPEG_QUALITY = 88
CURVE_POINTS = 400

COLUMNS = (
    {"key": "psnr", "label": "PSNR", "unit": "dB", "digits": 2, "title": "Peak signal-to-noise ratio in dB"},
    {"key": "ssim", "label": "SSIM", "digits": 4, "title": "SSIM with automatic downsampling, as published"},
    {"key": "ssim_plain", "label": "Plain SSIM", "digits": 4, "title": "SSIM at full size"},
    {"key": "error_ratio", "label": "Error ratio", "digits": 2, "title": "Ratio of matrix 2-norms, as published"},
    {"key": "ssd_ratio", "label": "SSD ratio", "digits": 2, "title": "Ratio of sums of squares, Levin et al. 2009"},
    {
        "key": "kernel_similarity",
        "label": "Kernel similarity",
        "digits": 3,
        "title": "Likeness to the true kernel, at most 1",
    },
)


def add_arguments(parser):
    """Add the options of ``report`` to an argument parser."""
    option = parser.add_argument
    option("results", metavar="RESULTS_DIR", help="folder that a run wrote (its --save_path)")
    option("--output", metavar="FILE", help="the page; default: RESULTS_DIR/report.html")
    option(
        "--data_path",
        metavar="DIR",
        help="folder of the blurry images; default: where the run found them, else the benchmark's",
    )
    option(
        "--ground_truth",
        metavar="DIR",
        help="folder of the sharp images; default: the one beside the blurry images; without it there are no scores",
    )
    option(
        "--true_kernel",
        metavar="DIR",
        help="folder of the results with the true kernel, for the error ratios; default: the benchmark's",
    )
    option(
        "--benchmark",
        choices=("auto", *scoring.BENCHMARKS),
        default="auto",
        help="how the images are named, found from the names in RESULTS_DIR",
    )
    option("--maxshift", metavar="N", type=int, default=10, help="pixels searched each way")
    option(
        "--max_side",
        metavar="N",
        type=int,
        default=640,
        help="pictures with a longer side than N pixels are shown reduced, 0: none is",
    )


def main(args):
    """Write the page.

    Returns
    -------
    int
        Exit status 0.

    Raises
    ------
    UserError
        If a folder is missing, holds no results or cannot be written.
    """
    if args.max_side < 0:
        raise UserError(f"--max_side: {args.max_side} found, give a number of pixels, or 0 for full size")
    path = Path(args.output) if args.output else Path(args.results) / "report.html"
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder, name a file")
    page = render(
        args.results,
        data_path=args.data_path,
        ground_truth=args.ground_truth,
        true_kernel=args.true_kernel,
        benchmark=args.benchmark,
        maxshift=args.maxshift,
        max_side=args.max_side,
        progress=True,
    )
    write_text(path, page)
    print(f"{path}: {len(page) / 1e6:.1f} MB, open it in a browser")
    return 0


def render(
    results,
    *,
    data_path=None,
    ground_truth=None,
    true_kernel=None,
    benchmark="auto",
    maxshift=10,
    max_side=640,
    progress=False,
):
    """Make the page of a folder of results.

    Parameters
    ----------
    results : str or Path
        Folder with ``NAME_x.png`` or ``NAME.png`` and, where a run of this
        program wrote it, ``NAME_k.png`` (correlation sense), ``NAME.json``,
        ``NAME_history.csv`` and ``config.json``.
    data_path, ground_truth, true_kernel : str or Path, optional
        Folders of the blurry images, of the sharp ones, and of the results
        with the true kernel. Found from the records and the benchmark's names
        if not given; what is not found is left out of the page.
    benchmark : str
        ``levin``, ``lai`` or ``auto``.
    maxshift : int
        Pixels, see `selfdeblur.scores.metrics.align`.
    max_side : int
        Pictures with a longer side are reduced to it; 0 keeps all as they are.
    progress : bool
        Show a bar on the error stream while scoring.

    Returns
    -------
    str
        The HTML document. It names no other file and no address.

    Raises
    ------
    UserError
        If a folder is missing or ``results`` holds no result.
    """
    folder = Path(results)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, give the folder that a run wrote")
    for option, path in (("data_path", data_path), ("ground_truth", ground_truth), ("true_kernel", true_kernel)):
        if path is not None and not Path(path).is_dir():
            raise UserError(f"{path}: no such folder (option --{option})")
    records = _records(folder)
    benchmark = _benchmark(benchmark, {*scoring.find_results(None, folder), *records})
    if benchmark:
        records = {name: record for name, record in records.items() if benchmark.stem.fullmatch(name)}
    if not records and not scoring.find_results(benchmark, folder):
        of = f" of {benchmark.name}" if benchmark else ""
        raise UserError(f"{folder}: holds no result{of} (NAME_x.png or NAME.png, NAME as the blurry image is called)")
    blurry, ground_truth, true_kernel = _folders(benchmark, records, data_path, ground_truth, true_kernel)

    with tempfile.TemporaryDirectory() as scratch:
        aligned = Path(scratch) / "aligned"
        if ground_truth and scoring.find_results(benchmark, folder):
            rows = scoring.score_folder(
                benchmark,
                folder,
                ground_truth,
                # An empty folder says that there is no such result; None would take the benchmark's own.
                true_kernel or _made(Path(scratch) / "none"),
                maxshift=maxshift,
                blurry=blurry,
                aligned=aligned,
                progress=progress,
            )
        else:
            rows = _rows_without_scores(benchmark, folder, records)
        rows = _expected(rows, benchmark, records, blurry)
        page = _Page(folder, records, blurry, ground_truth, aligned, max_side, _error_scale(rows))
        images = [page.image(row) for row in rows]

    data = _summary(folder, rows, images, benchmark, blurry, ground_truth, maxshift)
    data |= {"images": images, "pictures": page.pictures}
    data["error_scale"] = {"maximum": page.error_scale, "colours": _heat_colours()}
    title = html.escape(f"{data['title']}: SelfDeblur report")
    return TEMPLATE.read_text(encoding="utf-8").replace("__TITLE__", title).replace("__DATA__", _json(data))


class _Page:
    """The pictures and facts of each image; a picture that several images share is kept once."""

    def __init__(self, folder, records, blurry, ground_truth, aligned, max_side, error_scale):
        self.folder, self.records = folder, records
        self.blurry, self.ground_truth, self.aligned = blurry, ground_truth, aligned
        self.max_side, self.error_scale = max_side, error_scale
        self.settings, self.failures = _folder_settings(folder), _failures(folder)
        self.pictures, self.kernels = {}, {}

    def image(self, row):
        """All that the page shows of one image, ready for JSON."""
        name = row["image"]
        record = self.records.get(name) or {}
        settings = record.get("settings") if isinstance(record.get("settings"), dict) else {}
        shown = {"pictures": {}, "settings": settings, "name": name, "quality": None, "flagged": False}
        shown |= _standing(row, record, self.folder / f"{name}{RECORD}")
        shown["problem"] = row["note"] or self.failures.get(name)
        if row["psnr"] is not None and not math.isfinite(row["psnr"]):
            shown["problem"] = "equal to the true image: its PSNR is infinite"
        shown["scores"] = {
            key: row[key]
            for key in (*scoring.SCORES, "shift_y", "shift_x")
            if row[key] is not None and math.isfinite(row[key])
        }
        shown["on_rim"] = bool(row["on_rim"])
        shown["differing"] = [k for k, v in settings.items() if k in self.settings and self.settings[k] != v]
        shown["run"] = _run_facts(row, record)
        if isinstance(record.get("quality"), dict) and record["quality"]:
            shown["quality"], shown["flagged"] = record["quality"], _flagged(record["quality"])
        shown["history"] = _history(self.folder / f"{name}{HISTORY}")
        try:
            self._add_pictures(shown, row, record)
        except UserError as error:
            shown["problem"] = shown["problem"] or str(error)
        return shown

    def _add_pictures(self, shown, row, record):
        name, pictures = row["image"], shown["pictures"]
        blurry = _read(self._blurry_path(name, record))
        deblurred = _read(row["result"])
        truth = _read(_find(self.ground_truth, row["truth"]))
        for key, array in (("blurry", blurry), ("deblurred", deblurred)):
            if array is not None:
                pictures[f"thumb_{key}"] = self._keep(reduced(array, THUMBNAIL), ".jpg")
        if deblurred is None:
            return
        size = deblurred.shape[:2]
        shown["size"] = list(size)
        shown["reduced"] = bool(self.max_side and max(size) > self.max_side)
        pictures["deblurred"] = self._keep_large(deblurred)
        if blurry is not None and blurry.shape[:2] == size:
            pictures["blurry"] = self._keep_large(blurry)
        if truth is not None and truth.shape[:2] == size:
            pictures["truth"] = self._keep_large(_grey(truth) if deblurred.ndim == 2 else truth)
        aligned = self.aligned / f"{name}_aligned.png"
        if aligned.is_file():
            target = metrics.luminance(truth) if truth.ndim == 3 else truth
            cut = metrics.BORDER
            error = np.abs(read_image(aligned) - target[cut:-cut, cut:-cut])
            if shown["reduced"]:
                error = reduced(error, min(ERROR_SIDE, self.max_side))
            pictures["error"] = self._keep(_heat(error / self.error_scale), ".jpg" if shown["reduced"] else ".png")

        kernel = _read(_find(self.folder, f"{name}_k"))
        if kernel is not None:
            pictures["kernel"], shown["kernel_size"] = self._keep_kernel(kernel)
        true_kernel = self._true_kernel(row["kernel"], truth, blurry)
        if true_kernel is not None:
            pictures["true_kernel"], shown["true_kernel_size"] = self._keep_kernel(true_kernel)

    def _blurry_path(self, name, record):
        recorded = record.get("blurry")
        if self.blurry is None and isinstance(recorded, str) and Path(recorded).is_file():
            return Path(recorded)
        return _find(self.blurry, name)

    def _true_kernel(self, name, truth, blurry):
        """The true kernel in the sense in which estimated ones are saved; its file may be stored in either."""
        path = _find(self.ground_truth, name)
        if path is None or truth is None or blurry is None or truth.shape[:2] != blurry.shape[:2]:
            return None
        if name not in self.kernels:
            stored = _grey(read_image(path))
            known = stored.sum() > 0 and min(truth.shape[:2]) > 2 * max(stored.shape)
            self.kernels[name] = scoring.true_kernel_image(stored, _grey(truth), _grey(blurry)) if known else None
        return self.kernels[name]

    def _keep_kernel(self, kernel):
        kernel = _grey(kernel)
        return self._keep(kernel / max(kernel.max(), 1e-12), ".png"), list(kernel.shape)

    def _keep_large(self, array):
        """Keep a picture without loss, or reduced, and then as JPEG: it is not exact any more anyway."""
        if self.max_side and max(array.shape[:2]) > self.max_side:
            return self._keep(reduced(array, self.max_side), ".jpg")
        return self._keep(array, ".png")

    def _keep(self, array, suffix):
        content = _encoded(array, suffix)
        key = hashlib.sha256(content).hexdigest()[:16]
        kind = "png" if suffix == ".png" else "jpeg"
        self.pictures[key] = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        return key


def _summary(folder, rows, images, benchmark, blurry, ground_truth, maxshift):
    """What stands above the table."""
    means = scoring.averages(rows, benchmark)
    # The benchmark's size counts, unless the blurry images at hand are known and fewer, as in the sample.
    here = benchmark and blurry and _count(blurry, benchmark)
    part = bool(here and here < benchmark.images)
    total = len(rows) if part or not benchmark else max(benchmark.images, len(rows))
    overall = means[0] | {"of": total}
    notices = []
    if part:
        notices.append(f"The folder of blurry images holds {here} of {benchmark.images} images of {benchmark.name}.")
    if not ground_truth:
        notices.append("No true images were found, so there are no scores; --ground_truth DIR names their folder.")
    remarks = scoring.remarks(rows, None if part or not ground_truth else benchmark) if ground_truth else []
    if not ground_truth:
        done = sum(image["done"] for image in images)
        remarks = [f"PARTIAL: only {done} of {total} images are finished"] if done < total else []
    notices += [_sentence(line) for line in remarks]
    kernels = {row["kernel"] for row in rows}
    groups = []
    for label, of_kernels in (("Kernel", True), ("Group", False)):
        members = [mean for mean in means[1:] if mean["images"] and (mean["group"] in kernels) == of_kernels]
        lines = [{"name": m["group"], "images": f"{m['images']}/{m['of']}", "means": _finite(m)} for m in members]
        if lines:
            groups.append({"label": label, "rows": lines})
    columns = [c for c in COLUMNS if c["key"] != "ssim_plain" or _differs(rows, "ssim", "ssim_plain")]
    settings = _folder_settings(folder) or _common([image["settings"] for image in images if image["settings"]])
    what = f"{benchmark.name.capitalize()} benchmark" if benchmark else None
    preset = settings.get("preset")
    day = date.today()
    made = f"{day.day} {day:%B %Y}"
    return {
        "title": folder.as_posix() if folder.name and not folder.is_absolute() else folder.resolve().name,
        "subtitle": " · ".join(str(part) for part in ("SelfDeblur", what, preset, made) if part),
        "notices": notices,
        "figures": _figures(overall, images, total),
        "groups": groups,
        "columns": columns,
        "settings": settings,
        "border": metrics.BORDER,
        "footer": _footer(benchmark, overall, maxshift),
    }


def _figures(overall, images, total):
    states = [image["state"] for image in images]
    done = sum(image["done"] for image in images)
    rest = {
        "unfinished": states.count("unfinished"),
        "missing": states.count("missing") + total - len(images),
        "not scored": states.count("failed"),
        "doubtful": sum(image["flagged"] for image in images),
    }
    notes = ", ".join(f"{number} {word}" for word, number in rest.items() if number)
    figures = [{"label": "Images finished", "value": str(done), "unit": f"of {total}", "note": notes or "all complete"}]
    over = f"mean of {overall['images']} images" if overall["images"] > 1 else "1 image"

    def add(key, label, digits, unit="", note=None):
        if overall[key] is not None:
            of = "" if overall[f"{key}_of"] == overall["images"] else f"mean of {overall[f'{key}_of']} images"
            value = f"{overall[key]:.{digits}f}" if math.isfinite(overall[key]) else "∞"
            figures.append({"label": label, "value": value, "unit": unit, "note": note or of or over})

    add("psnr", "PSNR", 2, "dB")
    plain = overall["ssim_plain"]
    differs = plain is not None and abs(plain - overall["ssim"]) > 1e-9
    add("ssim", "SSIM", 4, note=f"plain, at full size: {plain:.4f}" if differs else None)
    if overall["error_ratio"] is not None:
        add("error_ratio", "Error ratio", 2, note=f"as Levin defined it: {overall['ssd_ratio']:.2f}")
        shares = {limit: f"{100 * share:.0f}\u00a0%" for limit, share in overall["success"].items()}
        low, middle, high = scoring.SUCCESS
        note = f"{shares[low]} at most {low:g}, {shares[high]} at most {high:g}"
        value = shares[middle].removesuffix("\u00a0%")
        figures.append({"label": f"Error ratio at most {middle:g}", "value": value, "unit": "%", "note": note})
    add("kernel_similarity", "Kernel similarity", 3)
    seconds = [image["seconds"] for image in images if image["done"] and image["seconds"]]
    if seconds and len(figures) < 6:
        mean = sum(seconds) / len(seconds)
        value, unit = (f"{mean:.1f}", "s") if mean < 100 else (f"{mean / 60:.1f}", "min")
        note = f"mean of {len(seconds)} images" if len(seconds) > 1 else "1 image"
        figures.append({"label": "Time per image", "value": value, "unit": unit, "note": note})
    return figures


def _footer(benchmark, overall, maxshift):
    lines = []
    if overall["images"]:
        lines.append(
            f"Scores: {metrics.BORDER} pixels are cut off each side of the true image, and the result is moved by the "
            f"shift that fits best, at most {maxshift} pixels each way in quarter pixels. SSIM averages over "
            "round(min(height, width) / 256) pixels first, as published."
        )
        if overall["error_ratio"] is not None:
            lines.append(
                "Error ratio: largest singular value of the error over that of the result with the true kernel, as "
                "published. SSD ratio: the same with sums of squares, as Levin et al. 2009 define it."
            )
        if benchmark is scoring.LAI:
            lines.append("Colour is scored on Y with the range 16 to 235, as published; error maps show that Y.")
    lines.append("Kernels are shown as correlation kernels and scaled to their own maximum.")
    return lines


def _standing(row, record, path):
    """State of an image: finished, unfinished, missing or failed; and its steps."""
    settings = record.get("settings") if isinstance(record.get("settings"), dict) else {}
    state = {"ok": "finished"}.get(row["status"], row["status"])
    recorded = path.is_file()
    if state == "missing" and (recorded or path.with_name(f"{row['image']}{CHECKPOINT}").is_file()):
        state = "unfinished"
    done = row["result"] is not None and state != "unfinished" and (not recorded or record.get("finished") is True)
    steps, of, seconds = (_number(v) for v in (record.get("steps"), settings.get("num_iter"), record.get("seconds")))
    return {"state": state, "done": done, "steps": steps, "num_iter": of, "seconds": seconds}


def _run_facts(row, record):
    facts = {}
    if row["result"] is not None:
        facts["result"] = row["result"].name
    if _number(record.get("steps")) is not None:
        facts["steps"] = record["steps"]
    if row["psnr"] is not None:
        facts["shift found"] = f"{row['shift_y']:+.2f} px down, {row['shift_x']:+.2f} px right".replace("-", "−")
    if _number(record.get("loss")) is not None:
        facts["loss at the end"] = f"{record['loss']:.4g}"
    for key, label in (("seconds", "seconds"), ("device", "device"), ("torch", "torch"), ("version", "version")):
        if record.get(key) is not None:
            facts[label] = round(record[key], 1) if isinstance(record[key], float) else record[key]
    if isinstance(record.get("kernel_size"), list):
        facts["kernel size"] = " × ".join(str(n) for n in record["kernel_size"])
    return facts


def _flagged(quality):
    """Whether a record's ``quality`` calls the result doubtful."""
    return quality.get("ok") is False or any(quality.get(key) for key in ("flagged", "flag", "flags", "doubtful"))


def _history(path):
    """Steps and losses, thinned out for drawing, and the steps at which the loss changes."""
    points = []
    for line in _lines(path):
        try:
            step, loss = float(line["step"]), float(line["loss"])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(step) and math.isfinite(loss):
            points.append((step, loss, line.get("objective")))
    if not points:
        return None
    changes = [
        {"step": after[0], "label": f"{_objective(before[2])} → {_objective(after[2])}"}
        for before, after in itertools.pairwise(points)
        if before[2] != after[2]
    ]
    stride = max(1, math.ceil(len(points) / CURVE_POINTS))
    kept = points[::stride]
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return {"step": [p[0] for p in kept], "loss": [p[1] for p in kept], "changes": changes}


def _lines(path):
    """The lines of a CSV file as dicts; none if it cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError):
        return []


def _objective(name):
    return {"mse": "MSE", "1-ssim": "1 − SSIM"}.get(name, name or "?")


def _records(folder):
    """The records of runs in a folder by NAME; one that cannot be read is an empty dict."""
    records = {}
    for path in sorted(folder.glob(f"*{RECORD}")):
        if path.name == CONFIG:
            continue
        record = _load(path)
        if isinstance(record, dict) and not {"image", "blurry", "settings", "finished"} & record.keys():
            continue
        records[path.stem] = record if isinstance(record, dict) else {}
    for path in folder.glob(f"*{CHECKPOINT}"):
        records.setdefault(path.name.removesuffix(CHECKPOINT), {})
    return records


def _failures(folder):
    """Why images could not be done, by NAME."""
    return {line.get("image"): line.get("reason") for line in _lines(folder / FAILURES)}


def _folder_settings(folder):
    config = _load(folder / CONFIG)
    if not isinstance(config, dict):
        return {}
    return config["settings"] if isinstance(config.get("settings"), dict) else config


def _load(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _benchmark(choice, names):
    if choice != "auto":
        return scoring.BENCHMARKS[choice]
    fits = (b for b in scoring.BENCHMARKS.values() if names and all(b.stem.fullmatch(name) for name in names))
    return next(fits, None)


def _folders(benchmark, records, data_path, ground_truth, true_kernel):
    """Folders of the blurry images, of the sharp ones and of the results with the true kernel, None where unknown.

    The sharp images are looked for where the benchmark has them as seen from
    the blurry ones, so that a copy or a sample in another place is never
    compared with the benchmark's own images of the same names.
    """
    recorded = {str(Path(r["blurry"]).parent) for r in records.values() if isinstance(r.get("blurry"), str)}
    there = [path for path in sorted(recorded) if Path(path).is_dir()]
    blurry = Path(data_path) if data_path else None
    if blurry is None and len(there) == 1:
        blurry = Path(there[0])
    if blurry is None and not there and benchmark and benchmark.blurry.is_dir():
        own = not recorded or any(_made_from(_find(benchmark.blurry, name), r) for name, r in records.items())
        blurry = benchmark.blurry if own else None

    def beside(folder):
        if folder is None or blurry is None:
            return None
        path = blurry / os.path.relpath(folder, benchmark.blurry)
        return path if path.is_dir() else None

    if benchmark:
        ground_truth = ground_truth or beside(benchmark.ground_truth)
        true_kernel = true_kernel or beside(benchmark.true_kernel)
    return blurry, ground_truth and Path(ground_truth), true_kernel and Path(true_kernel)


def _made_from(path, record):
    """Whether a record says that its result was made from this very file."""
    identity = record.get("identity")
    known = identity.get("blurry_sha256") if isinstance(identity, dict) else None
    return path is not None and known == file_hash(path)


def _rows_without_scores(benchmark, folder, records):
    rows = []
    for name, path in scoring.find_results(benchmark, folder).items():
        finished = records[name].get("finished") is True if name in records else None
        status = "unfinished" if finished is False else "ok"
        rows.append(_row(benchmark, name) | {"result": path, "status": status, "finished": finished})
    return rows


def _row(benchmark, name):
    row = dict.fromkeys((*scoring.COLUMNS, "finished", "result"))
    truth, kernel = (benchmark.truth_name(name), benchmark.kernel_name(name)) if benchmark else (name, None)
    return row | {"image": name, "status": "missing", "truth": truth, "kernel": kernel}


def _expected(rows, benchmark, records, blurry):
    """Add the images that a run began or that wait in the blurry folder; drop names that it does not hold."""
    there = {row["image"] for row in rows if row["result"] is not None} | records.keys()
    names = set(there)
    if blurry is not None and benchmark:
        names |= set(_names(blurry, benchmark))
        rows = [row for row in rows if row["image"] in names]
    else:
        names |= {row["image"] for row in rows}
    known = {row["image"] for row in rows}
    rows = rows + [_row(benchmark, name) for name in names - known]
    return sorted(rows, key=lambda row: natural(row["image"]))


def _names(folder, benchmark):
    stems = {p.stem for p in folder.iterdir() if p.suffix.lower() in SUFFIXES}
    return [stem for stem in stems if benchmark.stem.fullmatch(stem)]


def _count(folder, benchmark):
    return len(_names(folder, benchmark))


def _common(settings):
    """The settings that all images share."""
    return {k: v for k, v in settings[0].items() if all(s.get(k) == v for s in settings)} if settings else {}


def _differs(rows, key, other):
    return any(row[key] is not None and abs(row[key] - row[other]) > 1e-9 for row in rows)


def _finite(mean):
    return {key: mean[key] for key in scoring.SCORES if mean[key] is not None and math.isfinite(mean[key])}


def _number(value):
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fine else None


def _sentence(line):
    return line[:1].upper() + line[1:] + "."


def _find(folder, stem):
    if folder is None or stem is None:
        return None
    paths = (folder / f"{stem}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _made(folder):
    folder.mkdir()
    return folder


def _read(path):
    return None if path is None else read_image(path)


def _grey(array):
    """Y over the full range, for looking at; scores have their own."""
    return array @ np.array([0.299, 0.587, 0.114]) if array.ndim == 3 else array


def _encoded(array, suffix):
    """The bytes of a picture that goes into the page; no file is written."""
    array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    array = array[:, :, ::-1] if array.ndim == 3 else array
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    return cv2.imencode(suffix, array, quality)[1].tobytes()


def _error_scale(rows):
    """End of the error maps' scale, one for all images of a page: about three times the usual error."""
    values = [row["psnr"] for row in rows if row["psnr"] is not None]
    usual = 10 ** (-np.median(values) / 20) if values else 0
    return next(scale for scale in ERROR_SCALES if scale >= min(3 * usual, 1))


def _heat_table():
    """ERROR_LEVELS colours from black to pale yellow whose lightness rises evenly, (N, 3), range 0 to 1."""
    levels = np.rint(np.linspace(0, 255, ERROR_LEVELS)).astype(np.uint8)
    return cv2.applyColorMap(levels[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1] / 255


def _heat(value):
    return _heat_table()[np.rint(np.clip(value, 0, 1) * (ERROR_LEVELS - 1)).astype(int)]


def _heat_colours():
    return ["#" + "".join(f"{round(255 * c):02x}" for c in colour) for colour in _heat_table()]


def _json(data):
    """JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(_plain(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value):
    """The same with what JSON has no word for turned into text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
