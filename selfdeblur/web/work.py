"""What is done in processes of their own: pictures are read, deblurred and written here, and nowhere else.

A process for each picture can be ended at any moment, gives all its memory
back, and takes nothing with it where it fails. Each function here gets ``tell``,
which sends what it is given to the page's process, see `selfdeblur.web.visits.Work`.
"""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np

from selfdeblur.api import choose_device
from selfdeblur.checks import check_kernel_size
from selfdeblur.data.sample import write_sample
from selfdeblur.errors import UserError
from selfdeblur.files.atomic import write_bytes
from selfdeblur.files.images import reduced, write_image
from selfdeblur.files.picture import FORMATS, read_picture
from selfdeblur.runs.memory import keep_freed_memory
from selfdeblur.runs.photo import RESULT, encode_results, failure, restore_page, sentence, verdict

# Pixels of the longer side of what is shown, and those that a kernel is enlarged to.
SHOWN, KERNEL_SHOWN = 1400, 192
# Seconds between two messages, and between two pictures of what there is so far.
PAUSE, PREVIEW_PAUSE = 0.2, 2.0


def run(connection, function, arguments):
    """What a process does: call a function, send its messages, and at last ("done", what it returns) or an error.

    A message from the page's process asks for the best so far; the end of that process ends this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the page's process decides
    stop = threading.Event()
    threading.Thread(target=_listen, args=(connection, stop), daemon=True).start()
    keep_freed_memory(large=False)

    def tell(**news):
        connection.send(("told", news))
        return stop.is_set()

    try:
        last = "done", function(tell, *arguments)
    except UserError as error:
        last = "error", str(error)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        last = "error", "there is a fault in the program; the terminal of selfdeblur serve says more"
    connection.send(last)


def _listen(connection, stop):
    try:
        while True:
            connection.recv()
            stop.set()
    except (EOFError, OSError):
        os._exit(1)


def prepare(_, folder, device):
    """Check a device and write the samples; returns the device's kind and the paths of the samples."""
    return choose_device(device).type, [str(path) for path in write_sample(folder)]


def look(_, path, pixels, preview):
    """Read a picture, write what is shown of it, and return what can be said of it.

    Raises
    ------
    UserError
        If it cannot be read, or has more than so many pixels in all of its pages.
    """
    path = Path(path)
    picture = _guarded(path, lambda: read_picture(path))
    pages = picture.pages
    total = sum(page.shape[0] * page.shape[1] for page in pages)
    if total > pixels:
        raise UserError(
            f"{path.name}: {total / 1e6:.2f} megapixels are too many here, where {pixels / 1e6:g} is the most; "
            "take a part of it, or start with more --max_megapixels"
        )
    write_image(preview, reduced(picture.unit(0), SHOWN))
    dtype = pages[0].dtype
    bits = "floating point" if dtype.kind == "f" else f"{8 * dtype.itemsize} bits"
    facts = [f"{pages[0].shape[1]} x {pages[0].shape[0]} pixels", picture.format, bits]
    facts += [f"{len(pages)} pages"] if len(pages) > 1 else []
    return {"name": path.name, "facts": ", ".join(facts), "pixels": total}


def deblur(tell, path, folder, preset, kernel_size, device):
    """Deblur a picture and write the result, before, after and kernel to a folder.

    Parameters
    ----------
    tell : callable
        Is told ``page``, ``pages`` and what `restore` says of its steps, but images as the paths ``after`` and
        ``kernel``; returns whether the best so far is wanted.
    path, folder : str
    preset, device : str
    kernel_size : int or None

    Returns
    -------
    dict
        Paths ``result``, ``before``, ``after`` and ``kernel`` (or None), ``status``, ``sentence`` and ``notes``.
    """
    path, folder = Path(path), Path(folder)
    folder.mkdir()
    size = None if kernel_size is None else check_kernel_size(kernel_size)
    picture = _guarded(path, lambda: read_picture(path))
    show = _Shown(folder)
    results = []
    for number in range(len(picture.pages)):
        progress = _Progress(tell, show, number, len(picture.pages))
        options = {"preset": preset, "kernel_size": size, "device": device, "callback": progress}
        results.append(_guarded(path, lambda n=number, o=options: restore_page(picture, n, **o)))
        if results[-1].stopped:
            break
    if len(results) < len(picture.pages):
        picture.notes.append(f"{len(picture.pages) - len(results)} pages are as they were")
    status, reasons, notes = verdict(results)
    suffix = path.suffix if FORMATS.get(path.suffix.lower()) == picture.format else picture.suffix
    result = folder / f"{path.stem}{RESULT}{suffix}"
    content, more = _guarded(path, lambda: encode_results(picture, results, suffix=suffix.lower(), name=result.name))
    write_bytes(result, content)
    kernel = results[0].kernel
    return {
        "result": str(result),
        "before": show.image("before", picture.unit(0)),
        "after": show.image("after", results[0].image),
        "kernel": None if kernel is None else show.kernel("kernel", kernel),
        "kernel_size": results[0].kernel_size,
        "status": status,
        "sentence": sentence(reasons, options=False) if reasons else "",
        "notes": [*picture.notes, *notes, *more],
    }


class _Progress:
    """The callback of `restore`: passes on some steps, and now and then what there is so far."""

    def __init__(self, tell, show, number, pages):
        self.tell, self.show, self.pages = tell, show, {"page": number + 1, "pages": pages}
        self.told = self.shown = time.monotonic()
        self.stage, self.stop = None, False

    def __call__(self, told):
        now = time.monotonic()
        if now < self.told + PAUSE and told["stage"] == self.stage and told["step"] < told["steps"]:
            return self.stop
        self.told, self.stage = now, told["stage"]
        so_far = told.pop("so_far", None)
        if so_far and told["loss"] is not None and now > self.shown + PREVIEW_PAUSE:
            image, kernel = so_far()
            told["after"] = self.show.image(f"step_{told['step']}", image)
            told["kernel"] = self.show.kernel(f"kernel_{told['step']}", kernel)
            self.shown = now
        self.stop = self.tell(**told, **self.pages, fitted=so_far is not None)
        return self.stop


class _Shown:
    """Pictures for the page, in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def image(self, name, image):
        path = self.folder / f"{name}.png"
        write_image(path, reduced(np.clip(image, 0, 1), SHOWN))
        return str(path)

    def kernel(self, name, kernel):
        path = self.folder / f"{name}.png"
        times = max(KERNEL_SHOWN // max(kernel.shape), 1)
        write_image(path, np.kron(kernel / max(kernel.max(), 1e-12), np.ones((times, times))))
        return str(path)


def _guarded(path, call):
    """What a call returns; what goes wrong names the file as the user knows it."""
    try:
        return call()
    except (UserError, RuntimeError, MemoryError) as error:
        raise UserError(failure(error, str(path)).replace(str(path), path.name)) from error
