"""``selfdeblur PHOTO...``: any picture, one command, the same kind of file out."""

import contextlib
import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from selfdeblur import __version__
from selfdeblur.api import choose_device
from selfdeblur.checks import check_kernel_size
from selfdeblur.errors import OutputError, UserError
from selfdeblur.files import names
from selfdeblur.files.atomic import write_bytes, write_text
from selfdeblur.files.images import MAX_BYTES, list_files, write_image
from selfdeblur.files.kernels import read_kernel
from selfdeblur.files.locks import take_lock
from selfdeblur.files.picture import FORMATS, encode_picture, read_picture
from selfdeblur.graphs import out_of_memory
from selfdeblur.restore import restore
from selfdeblur.runs import cluster
from selfdeblur.runs.memory import keep_freed_memory
from selfdeblur.settings import QUICK

IMPROVED, FAILED, DOUBTFUL, INTERRUPTED = 0, 1, 3, 130
STANDARD = "-"
# Names of results, which are no photographs when a folder is searched.
RESULT, KERNEL = "_deblurred", "_kernel"
# What a reason, see `selfdeblur.classical.quality.assess`, calls for.
ADVICE = (
    ("edges of the picture are sharp", "if it is blurred all the same, name a --kernel_size"),
    ("touches its border", "a larger --kernel_size may help"),
    ("next to a single point", "if it is blurred, a --kernel_size of about the length of the blur in pixels may help"),
    ("spread over", "a smaller --kernel_size may help"),
    ("rings", "--preset best or another --kernel_size may help; blur that varies over the picture is not taken out"),
    ("do not explain", "blur that varies over the picture and moving objects are not taken out; a part of it may work"),
    ("disagree", "--preset best or another --kernel_size may help"),
    ("ended early", "more time may help"),
)


@dataclass
class Job:
    """One file to read and one to write; `STANDARD` for standard input and output."""

    source: str | Path
    output: str | Path
    found: bool = False  # in a folder, and not named by the user
    done: bool = False  # by an earlier call

    @property
    def kernel(self):
        """The file of the kernel without its suffix; None where there is no place for it."""
        if self.output == STANDARD:
            return None
        return self.output.with_name(self.output.stem.removesuffix(RESULT) + KERNEL)


def main(args):
    """Deblur pictures as the options say, see `photo_options.parser`; returns the exit status.

    SIGTERM ends a picture as Ctrl-C does, with the best so far, but where the
    caller has a handler of its own for it.
    """
    cluster.check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    jobs = plan(args)
    options = {
        "kernel_size": check_kernel_size(args.kernel_size) if args.kernel_size else None,
        "kernel": read_kernel(args.kernel) if args.kernel else None,
        "noise": args.noise,
        "preset": args.preset,
        "colour": args.colour,
        "device": None if args.cluster else choose_device(args.device),
        "seed": args.seed,
    }
    kernel, size = options["kernel"], options["kernel_size"]
    if kernel is not None and size is not None and kernel.shape != size:
        raise UserError(f"--kernel_size: {size[0]} x {size[1]}, but {args.kernel} holds {kernel.shape} numbers")
    if args.cluster:
        return cluster.submit(_shard_of_folder, args, images=len(jobs), folder=_folder_of_results(args))
    if not jobs:
        return IMPROVED
    keep_freed_memory(large=False)
    with contextlib.ExitStack() as stack:
        if hasattr(signal, "SIGTERM") and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
            stack.callback(signal.signal, signal.SIGTERM, previous)
        return _Photos(args, jobs, options).do()


def _folder_of_results(args):
    """The folder OUT of the call IN OUT, the only one that a cluster takes."""
    photos, output = list(args.photos), args.output
    if output is None and len(photos) == 2:
        output = photos.pop()
    if len(photos) != 1 or not Path(photos[0]).is_dir() or output is None:
        raise UserError(
            "--cluster: takes a folder of pictures and one for the results: selfdeblur IN OUT --cluster ..."
        )
    if args.report:
        raise UserError("--report: no task of a cluster has all pictures; leave it out")
    return Path(output)


def _shard_of_folder(args):
    """What a task of a cluster does: its pictures, with a line for each in the folder of the cluster."""
    part, parts = args.shard
    name = names.PHOTOS.replace("*", f"{part}_of_{parts}")
    args.record = _folder_of_results(args) / names.CLUSTER / name
    return main(args)


def plan(args):
    """The files to read and to write, checked as far as can be before anything is computed.

    Returns
    -------
    list of Job

    Raises
    ------
    UserError
        If a file is missing, a result would overwrite anything without --overwrite, or two would write one file.
    """
    sources, output = list(args.photos), args.output
    if output is None and len(sources) == 2 and _is_output(*sources):
        sources, output = sources[:1], sources[1]
    jobs, skipped = [], 0
    for source in sources:
        if source == STANDARD:
            jobs.append(Job(STANDARD, _place(output, None, None, len(sources))))
            continue
        path = Path(source)
        if path.is_dir():
            jobs += _in_folder(path, output, args.recursive)
        elif path.exists():
            jobs.append(Job(path, _place(output, path, path.parent, len(sources))))
        else:
            raise UserError(f"{path}: no such file or folder")
    if sum(job.source == STANDARD for job in jobs) > 1 or sum(job.output == STANDARD for job in jobs) > 1:
        raise UserError("-: standard input and output hold one picture")
    if any(job.output == STANDARD for job in jobs) and sys.stdout.isatty():
        raise UserError("-: the picture would go to the terminal; give -o FILE, or lead the output into a file")
    written, found = {}, bool(jobs)
    part, parts = args.shard
    jobs = jobs[part - 1 :: parts]  # before those that are done are left out: so shards are the same at any time
    for job in jobs:
        if job.output == STANDARD:
            continue
        for path in (job.output, job.kernel):
            key = path.resolve()
            if key in written:
                raise UserError(f"{job.source} and {written[key]} would both write {path}; deblur them one by one")
            written[key] = job.source
        if not args.overwrite and job.output.exists():
            if not job.found:
                raise UserError(f"{job.output}: is there already; --overwrite replaces it, -o takes another name")
            job.done = True
            skipped += 1
    if skipped and not args.quiet:
        print(f"{skipped} were deblurred before and are left; --overwrite does them again", file=sys.stderr)
    if not found:
        raise UserError(f"{sources[0]}: no picture in it; known are {', '.join(FORMATS)}")
    return jobs


def _is_output(first, second):
    """Whether the second of two arguments says where to write: a folder after a folder, or what is not there yet."""
    if STANDARD in (first, second):
        return first == STANDARD or second == STANDARD
    if not Path(first).exists():
        return False
    return Path(second).is_dir() if Path(second).exists() and Path(first).is_dir() else not Path(second).exists()


def _place(output, source, folder, number):
    """Where the result of one file goes."""
    if output == STANDARD or (output is None and source is None):
        return STANDARD
    default = None if source is None else f"{source.stem}{RESULT}{source.suffix}"
    if output is None:
        return folder / default
    output = Path(output)
    is_folder = output.is_dir() or (not output.suffix and not output.exists())
    if not is_folder and number > 1:
        raise UserError(f"{output}: is one file for {number} pictures; name a folder")
    if not is_folder:
        if output.suffix.lower() not in FORMATS:
            raise UserError(f"{output}: no picture is written with this suffix; take one of {', '.join(FORMATS)}")
        return output
    if default is None:
        raise UserError(f"{output}: is a folder; name a file for what comes from standard input")
    return output / default


def _in_folder(folder, output, recursive):
    """Jobs for the pictures in a folder, results of earlier calls left out."""
    if output == STANDARD:
        raise UserError(f"{folder}: is a folder, and standard output holds one picture")
    if output is not None and (Path(output).is_file() or Path(output).suffix.lower() in FORMATS):
        raise UserError(f"{output}: is a file for the pictures of a folder; name a folder")
    try:
        paths = list_files(folder, recursive)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    jobs = []
    for path in paths:
        ours = path.stem.endswith(RESULT) or (path.stem.endswith(KERNEL) and path.suffix == ".png")
        if path.suffix.lower() not in FORMATS or path.name.startswith(".") or ours:
            continue
        place = Path(output) / path.parent.relative_to(folder) if output is not None else path.parent
        jobs.append(Job(path, place / f"{path.stem}{RESULT}{path.suffix}", found=True))
    return jobs


class _Photos:
    """The pictures of one call."""

    def __init__(self, args, jobs, options):
        self.args, self.jobs, self.options = args, jobs, options
        # Where the picture itself goes to standard output, or JSON does, people read standard error.
        busy = args.json or any(job.output == STANDARD for job in jobs)
        self.messages = sys.stderr if busy else sys.stdout
        self.lines = sys.stderr if any(job.output == STANDARD for job in jobs) else sys.stdout
        self.report = _Report() if args.report else None

    def do(self):
        """Do all of them and return the exit status."""
        statuses = []
        try:
            with _open_record(self.args.record) as self.record:
                for job in self.jobs:
                    if job.done:
                        self._note({"input": str(job.source), "output": str(job.output), "status": "done before"})
                        continue
                    statuses.append(self._one(job))
                    if statuses[-1] == INTERRUPTED:
                        break
        except KeyboardInterrupt:
            statuses.append(INTERRUPTED)
            print("interrupted", file=sys.stderr)
        if self.report and self.report.names:
            self._say(f"report: {self.report.write([job for job in self.jobs if not job.done])}")
        return next((status for status in (INTERRUPTED, FAILED, DOUBTFUL) if status in statuses), IMPROVED)

    def _say(self, text):
        if not self.args.quiet:
            print(text, file=self.messages, flush=True)

    def _one(self, job):
        begun = time.monotonic()
        line = {"input": str(job.source), "output": None, "kernel": None, "status": "running"}
        self._note(line)
        line["status"] = "failed"
        try:
            status = self._restore(job, line)
        except OutputError:
            raise
        except (UserError, RuntimeError, MemoryError) as error:
            line["error"] = failure(error, _name(job))
        if "error" in line:
            print(f"error: {line['error']}", file=sys.stderr)
            status = FAILED
        line["seconds"] = round(time.monotonic() - begun, 2)
        if status == INTERRUPTED:
            line["status"] = "interrupted"
        self._note(line)
        if self.args.json:
            print(json.dumps(line), file=self.lines, flush=True)
        return status

    def _note(self, line):
        if self.record:
            self.record.write(json.dumps(line) + "\n")
            self.record.flush()

    def _restore(self, job, line):
        source = _standard_input() if job.source == STANDARD else job.source
        picture = read_picture(source, self.args.pages)
        results = []
        stopped = False
        for number in range(len(picture.pages)):
            if stopped:
                break
            results.append(self._page(job, picture, number, results))
            stopped = results[-1].stopped == "interrupted"
        return self._finish(job, picture, results, line, stopped)

    def _page(self, job, picture, number, before):
        options = dict(self.options)
        if self.args.kernel_from == "first" and before and before[0].kernel is not None:
            options |= {"kernel": before[0].kernel, "kernel_size": None}
        if self.args.time_limit:
            spent = sum(result.seconds for result in before)
            options["time_limit"] = max((self.args.time_limit - spent) / (len(picture.pages) - number), 0.001)
        title = _name(job) + (f" page {number + 1}" if len(picture.pages) > 1 else "")
        hidden = self.args.quiet or self.args.no_progress or not sys.stderr.isatty()
        with _Progress(title, hidden) as progress:
            return restore_page(picture, number, callback=None if hidden else progress, **options)

    def _finish(self, job, picture, results, line, stopped):
        args = self.args
        if len(results) < len(picture.pages):
            picture.notes.append(f"{len(picture.pages) - len(results)} pages are as they were")
        line |= _facts(results[0]) if len(results) == 1 else {"pages": [_facts(result) for result in results]}
        line["status"], line["reasons"], notes = verdict(results)
        improved = line["status"] == "improved"
        notes = picture.notes + notes
        if improved or not args.strict:
            notes += self._write(job, picture, results, line)
        line["notes"] = notes
        size = results[0].kernel_size
        facts = [f"kernel {size[0]} x {size[1]}"] if size else []
        facts += [f"{sum(result.seconds for result in results):.0f} s", *notes]
        where = line["output"] or "not written"
        self._say(f"{_name(job)} -> {where}: {', '.join(facts)}")
        if not improved:
            print(f"{_name(job)}: no reliable improvement. {sentence(line['reasons'])}", file=sys.stderr)
        if self.report:
            self.report.add(job, picture, results, args.preset)
        if stopped:
            print("interrupted; this is the best so far", file=sys.stderr)
            return INTERRUPTED
        return IMPROVED if improved else DOUBTFUL

    def _write(self, job, picture, results, line):
        suffix = "" if job.output == STANDARD else job.output.suffix.lower()
        name = "standard output" if job.output == STANDARD else str(job.output)
        content, notes = encode_results(picture, results, suffix=suffix, name=name, whole=self.args.pages == "each")
        if job.output == STANDARD:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            line["output"] = STANDARD
            return notes
        write_bytes(job.output, content)
        line["output"] = str(job.output)
        if self.options["kernel"] is None:
            line["kernel"] = self._write_kernels(job, results)
        return notes

    def _write_kernels(self, job, results):
        """Write the kernels that were found; returns the path of the first one, None where there is none."""
        first = None
        found = [result.kernel for result in results]
        if self.args.kernel_from == "first":
            found = found[:1]
        for number, kernel in enumerate(found):
            if kernel is None:
                continue
            stem = job.kernel if len(found) == 1 else job.kernel.with_name(f"{job.kernel.name}_{number + 1}")
            path = stem.with_name(stem.name + ".png")
            write_image(path, kernel / kernel.max())
            first = first or str(path)
            if self.args.save_kernel:
                with tempfile.SpooledTemporaryFile() as file:
                    np.save(file, kernel)
                    file.seek(0)
                    write_bytes(stem.with_name(stem.name + ".npy"), file.read())
        return first


@contextlib.contextmanager
def _open_record(path):
    """The file of --record, locked so that a look at it tells whether its writer is alive; None without a path."""
    if path is None:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        if not take_lock(file):
            raise UserError(f"{path}: another process writes it, so these pictures are in work; wait for its end")
        yield file


def _standard_input():
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"standard input: more than {MAX_BYTES} bytes are too many for a picture")
    return content


def _name(job):
    return "standard input" if job.source == STANDARD else str(job.source)


def restore_page(picture, number, **options):
    """`restore` of one page of a `Picture`."""
    alpha = picture.alphas[number]
    return restore(picture.unit(number), opaque=None if alpha is None else alpha > 0, **options)


def encode_results(picture, results, *, suffix="", name="the picture", whole=True):
    """The content of a file with the results of the first pages in their places, and notes, see `encode_picture`.

    Where no page was changed, that is the file that was read; ``whole`` says that all pages of it were.
    """
    same = not suffix or FORMATS.get(suffix) == picture.format
    if _unchanged(results) and same and whole and len(results) == len(picture.pages):
        return picture.content, []
    pages = list(picture.pages)
    for number, result in enumerate(results):
        if not result.unchanged:
            pages[number] = picture.in_units(result.image, number)
    return encode_picture(picture, pages, suffix=suffix, name=name)


def verdict(results):
    """Of the results of a picture's pages "improved", "unchanged" or "doubtful"; the reasons for doubt; the notes."""
    improved = all(result.improved for result in results)
    status = "improved" if improved else "unchanged" if _unchanged(results) else "doubtful"
    reasons = list(dict.fromkeys(reason for result in results for reason in result.quality["reasons"]))
    return status, reasons, list(dict.fromkeys(note for result in results for note in result.notes))


def failure(error, name):
    """The line that says why a picture of this name has no result; what is a fault of the program is raised again."""
    if isinstance(error, UserError):
        text = str(error)
        return text if name in text else f"{name}: {text}"
    if out_of_memory(error):
        return f"{name}: the memory does not suffice; try --preset {QUICK}, or --device cpu"
    raise error


def _unchanged(results):
    return all(result.unchanged for result in results)


def _facts(result):
    """What is told of one page as JSON."""
    return {
        "kernel_size": None if result.kernel_size is None else list(result.kernel_size),
        "noise": round(float(result.noise), 5),
        "quality": {key: value for key, value in result.quality.items() if key != "reasons"},
        "reasons": result.quality["reasons"],
        "stopped": result.stopped or None,
    }


def sentence(reasons, options=True):
    """The reasons for doubt and what to do about them; without ``options`` no option for what a reason says itself."""
    advised = [reason for reason in reasons if options or "try" not in reason]
    advice = list(dict.fromkeys(text for reason in advised for word, text in ADVICE if word in reason))
    return ". ".join(text[0].upper() + text[1:] for text in ["; ".join(reasons), *advice[:2]])


class _Progress:
    """A bar on standard error: stage, loss, time left."""

    def __init__(self, title, hidden):
        self.bar = tqdm(desc=title, unit="step", disable=hidden, leave=False)
        self.stage = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def __call__(self, told):
        self.bar.total = told["steps"]
        self.bar.n = told["step"]
        facts = {"stage": told["stage"]}
        if told["loss"] is not None:
            facts["loss"] = f"{told['loss']:.2e}"
        self.bar.set_postfix(facts, refresh=False)
        self.bar.refresh() if told["stage"] != self.stage else self.bar.update(0)
        self.stage = told["stage"]


class _Report:
    """Before and after of all pictures, for the page that compares them."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="selfdeblur")
        self.path, self.names = Path(self.folder.name), []

    def add(self, job, picture, results, preset):
        for number, result in enumerate(results):
            name = "picture" if job.source == STANDARD else Path(job.source).stem
            name += f"_page_{number + 1}" if len(results) > 1 else ""
            while name in self.names:
                name += "_"
            self.names.append(name)
            blurry = picture.unit(number)
            write_image(self.path / "blurry" / f"{name}.png", blurry)
            write_image(self.path / "results" / f"{name}_x.png", np.clip(result.image, 0, 1))
            if result.kernel is not None:
                write_image(self.path / "results" / f"{name}_k.png", result.kernel / result.kernel.max())
            record = {
                "image": name,
                "blurry": str(job.source),
                "image_size": list(blurry.shape[:2]),
                "kernel_size": list(result.kernel_size or (0, 0)),
                "settings": {"preset": preset},
                "finished": True,
                "seconds": round(result.seconds, 2),
                "quality": result.quality,
                "version": __version__,
            }
            write_text(self.path / "results" / f"{name}.json", json.dumps(record))

    def write(self, jobs):
        """Write the page beside the results; returns its path."""
        from selfdeblur.scores import report  # drawing tables and curves is needed here alone

        place = next((job.output for job in jobs if job.output != STANDARD), None)
        folder = Path() if place is None else place.parent
        path = folder / (f"{place.stem}.html" if place is not None and len(jobs) == 1 else "deblurred.html")
        write_text(path, report.render(self.path / "results", data_path=self.path / "blurry", max_side=1600))
        self.folder.cleanup()
        return path
