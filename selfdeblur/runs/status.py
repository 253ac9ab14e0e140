"""``selfdeblur status FOLDER``: what is done, running and failed in a folder of results, told by its files alone."""

import json
import os
import statistics
from pathlib import Path

from selfdeblur.errors import UserError
from selfdeblur.files import names
from selfdeblur.files.locks import is_locked
from selfdeblur.files.names import natural
from selfdeblur.files.records import read_failures, read_json

# How many names or reasons the table shows; --json has all.
SHOWN = 10
DONE = ("improved", "doubtful", "unchanged", BEFORE := "done before")


def add_arguments(parser):
    """Add what the command takes to its parser."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of results, of either program")
    parser.add_argument("--json", action="store_true", help="one object of JSON instead of the table")


def main(args):
    """Print the table; returns the exit status."""
    found = read_status(args.folder)
    print(json.dumps(found) if args.json else table(found))
    return 0


def read_status(folder):
    """What became of the images of a folder of results.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict
        "folder"; "images", how many there are, None where nothing tells;
        "tasks" and "jobs" of the last submission to a cluster; "done" and
        "doubtful", numbers; "seconds", the median of an image that is done,
        None where there is none; "running" and "interrupted", the step by the
        name of the image, None where no file tells; "failed", the reason by
        the name; "waiting", a number or None. A run whose process is on
        another machine counts as interrupted where the file system keeps the
        locks of a machine from the others.

    Raises
    ------
    UserError
        If there is no such folder or it cannot be read.
    """
    try:
        files = {entry.name for entry in os.scandir(folder)}
        logs = sorted((folder / names.CLUSTER).glob(names.PHOTOS))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    try:
        told = read_json(folder / names.CLUSTER / names.TASKS) or {}
    except UserError:
        told = {}
    found = _Found()
    _of_records(folder, files, found)
    for log in logs:
        _of_photographs(log, found)
    # What is done or in work did not fail, whatever an older list says.
    found.failed = {n: r for n, r in found.failed.items() if n not in found.done and n not in found.running}
    settled = {*found.done, *found.running, *found.failed}
    interrupted = {name: step for name, step in found.interrupted.items() if name not in settled}
    images = told.get("images") if isinstance(told.get("images"), int) else None
    return {
        "folder": str(folder),
        "images": images,
        "tasks": told.get("tasks"),
        "jobs": told.get("jobs"),
        "done": len(found.done),
        "doubtful": found.doubtful,
        "seconds": round(statistics.median(found.seconds), 2) if found.seconds else None,
        "running": found.running,
        "interrupted": interrupted,
        "failed": found.failed,
        "waiting": None if images is None else max(images - len(settled) - len(interrupted), 0),
    }


class _Found:
    """What the files tell, image by image."""

    def __init__(self):
        self.done, self.doubtful, self.seconds = set(), 0, []
        self.running, self.interrupted, self.failed = {}, {}, {}

    def finish(self, name, seconds, doubtful):
        if name not in self.done:
            self.done.add(name)
            self.doubtful += bool(doubtful)
            if isinstance(seconds, int | float):
                self.seconds.append(seconds)


def _of_records(folder, files, found):
    """Records, checkpoints and locks of the scripts."""
    found.failed |= read_failures(folder / names.FAILURES)
    steps = {}
    for file in files:
        if file.startswith(".") or not file.endswith(names.RECORD) or file == names.CONFIG:
            continue
        name = file.removesuffix(names.RECORD)
        try:
            record = read_json(folder / file) or {}
        except UserError as error:
            found.failed[name] = str(error)
            continue
        if "image" not in record:
            continue
        if record.get("finished") is True:
            quality = record.get("quality")
            found.finish(name, record.get("seconds"), isinstance(quality, dict) and quality.get("doubtful"))
        else:
            steps[name] = record.get("steps")
    begun = {file.removesuffix(names.CHECKPOINT) for file in files if file.endswith(names.CHECKPOINT)} | set(steps)
    locks = {file[1:].removesuffix(names.LOCK) for file in files if file.startswith(".") and file.endswith(names.LOCK)}
    for name in sorted((begun | locks) - {names.FAILURES}, key=natural):
        running = name in locks and is_locked(folder / f".{name}{names.LOCK}")
        if running:
            found.running[name] = steps.get(name)
        elif name in begun:
            found.interrupted[name] = steps.get(name)
    found.running = {name: step for name, step in found.running.items() if name not in found.done}


def _of_photographs(log, found):
    """The lines that tasks of the photo command leave; the last line of a picture counts, a cut one does not."""
    last = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            told = json.loads(line)
            if told.get("status") != BEFORE or last.get(told["input"], {}).get("status") not in DONE:
                last[told["input"]] = told
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    alive = is_locked(log)
    for name, told in last.items():
        if told.get("status") in DONE:
            found.finish(name, told.get("seconds"), told["status"] == "doubtful")
        elif told.get("status") == "failed":
            found.failed[name] = str(told.get("error"))
        else:
            (found.running if alive else found.interrupted)[name] = None


def table(found):
    """What `read_status` gives, as lines of text."""
    images, tasks = found["images"], found["tasks"]
    title = str(found["folder"])
    if images is not None:
        jobs = found["jobs"] if isinstance(found["jobs"], list) else []
        of = f", job {str(jobs[0]).partition('_')[0]}" if jobs else ""
        title += f": {images} images, {tasks} tasks{of}"
    notes = [f"{found['doubtful']} doubtful"] if found["doubtful"] else []
    if found["seconds"] is not None:
        notes.append(f"{found['seconds']:g} s each in the median")
    rows = [("done", found["done"], ", ".join(notes))]
    for state in ("running", "interrupted", "failed"):
        rows.append((state, len(found[state]), _shown(found[state]) if state != "failed" else ""))
    rows.append(("waiting", "-" if found["waiting"] is None else found["waiting"], ""))
    lines = [title, *(f"  {state:<12}{number:>8}  {note}".rstrip() for state, number, note in rows)]
    failed = list(found["failed"].items())
    lines += [f"failed: {name}: {reason}" for name, reason in failed[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"failed: {len(failed) - SHOWN} more, see {names.FAILURES} or --json")
    return "\n".join(lines)


def _shown(steps):
    shown = [name if step is None else f"{name} (step {step})" for name, step in list(steps.items())[:SHOWN]]
    return ", ".join(shown + (["..."] if len(steps) > SHOWN else []))
