"""Image files to arrays and back; no other module reads or writes images."""

import contextlib
import fnmatch
import os
import re
import stat
import sys
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np

from selfdeblur.errors import UserError
from selfdeblur.files.atomic import write_bytes
from selfdeblur.files.headers import MAX_PIXELS, HeaderError, read_header

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".webp")

# Three channels of double precision, the largest that a picture can be without compression.
MAX_BYTES = 24 * MAX_PIXELS
# Orientation of EXIF -> how the stored array is brought upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def read_image(path):
    """Read an image file: PNG, JPEG, TIFF, BMP, PGM, PPM or WebP, told apart by content.

    Alpha is dropped, palettes are expanded and the orientation noted in EXIF
    (or in XMP, where Pillow finds it there) is applied. Integers are divided
    by the largest value of their type (of the file in PGM and PPM);
    floating-point numbers are taken as they are.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    ndarray of float64
        (H, W), or (H, W, 3) in the order red, green, blue; range 0 to 1.

    Raises
    ------
    UserError
        If the file is missing, unreadable, cut off, damaged, no image, more
        than one image (an animation, pages), larger than 2**26 pixels, or
        holds values that are not finite or not in 0 to 1.
    """
    path = Path(path)
    try:
        array = _decode(read_content(path))
    except HeaderError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise UserError(f"{path}: the memory does not suffice for this image") from error
    return np.ascontiguousarray(array)


def read_content(path):
    """Bytes of a plain file that may be an image; a `HeaderError` where it is none or too large."""
    with open(path, "rb", opener=open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise HeaderError("is not a plain file")
        if status.st_size > MAX_BYTES:
            raise HeaderError(f"{status.st_size} bytes are too many for an image")
        return file.read(status.st_size)


def open_without_waiting(path, flags):
    """Opener for `open`: opening a pipe does not wait for somebody to write to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(content):
    header = read_header(content)
    array = header.array
    if array is None:
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        with _captured_stderr() as complaints:
            try:
                array = cv2.imdecode(np.frombuffer(header.content, np.uint8), flags)
            except cv2.error:
                array = None
        # A picture in colour of which the decoder makes a grey one is of a kind that it does not know.
        wrong = array is None or array.shape[:2] != (header.height, header.width)
        if wrong or (array.ndim == 2 and header.grey is False) or _damaged(complaints[0]):
            raise HeaderError("the image in it is damaged or of a kind that is not read")
        if array.ndim == 3:
            array = array[:, :, 0] if header.grey or array.shape[2] < 3 else array[:, :, 2::-1]
        if np.issubdtype(array.dtype, np.integer):
            array = array / np.iinfo(array.dtype).max
        with np.errstate(invalid="ignore"):  # a NaN is refused below
            array = array.astype(np.float64, copy=False)
        if not np.isfinite(array).all():
            raise HeaderError("holds values that are not finite")
        low, high = array.min(), array.max()
        if low < 0 or high > 1:
            raise HeaderError(f"holds values from {low:.6g} to {high:.6g}; scale them to 0 to 1")
    return UPRIGHT[header.orientation](array)


_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _captured_stderr():
    """Keep what the decoders' C code writes to the terminal, in a list of one string.

    They have no other way to say that a JPEG or TIFF was damaged half way and
    the rest of the picture is made up.
    """
    complaints = [""]
    with _stderr_lock, contextlib.ExitStack() as stack:
        try:
            saved = os.dup(2)
        except OSError:  # no standard error at all, as in a program without a terminal
            yield complaints
            return
        stack.callback(os.close, saved)
        file = stack.enter_context(tempfile.TemporaryFile())
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield complaints
        finally:
            os.dup2(saved, 2)
            file.seek(0)
            complaints[0] = file.read(1 << 16).decode(errors="replace")


def decode_or_refuse(decode):
    """What ``decode()`` returns; a `HeaderError` where it fails or complains of damage on standard error."""
    with _captured_stderr() as complaints:
        try:
            decoded = decode()
        except cv2.error:
            decoded = None
    if decoded is None or _damaged(complaints[0]):
        raise HeaderError("the image in it is damaged or of a kind that is not read")
    return decoded


def _damaged(complaints):
    # A few bytes of padding at the end are what some cameras write.
    rest = re.sub(r"Corrupt JPEG data: (?:\d|[12]\d|3[0-2]) extraneous bytes before marker 0xd9", "", complaints)
    return re.search(r"error|corrupt|premature|discarding", rest, re.IGNORECASE) is not None


def write_image(path, array):
    """Write an array as an 8-bit image file, rounded to the nearest value.

    Parameters
    ----------
    path : str or Path
        The suffix gives the format.
    array : ndarray
        (H, W) or (H, W, 3) red, green, blue; range 0 to 1, clipped.

    Raises
    ------
    UserError
        If no format has this suffix, the format cannot hold the image (colour
        in .pgm, more than 16383 pixels a side in .webp) or the file cannot be
        written.
    ValueError
        If the array has values that are not finite.
    """
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: the image has values that are not finite")
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: no image format is known by this suffix; take one of {', '.join(SUFFIXES)}")
    array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    if array.ndim == 3:
        array = array[:, :, ::-1]
    elif suffix == ".ppm":
        array = np.repeat(array[:, :, None], 3, axis=2)
    with _captured_stderr():
        try:
            ok, content = cv2.imencode(suffix, array)
        except cv2.error:
            ok = False
    if not ok:
        kind = "colour" if array.ndim == 3 else "grey"
        raise UserError(f"{path}: a {suffix} file cannot hold this {kind} image of {array.shape[1]} x {array.shape[0]}")
    write_bytes(path, content.tobytes())


def list_files(folder, recursive=False):
    """The files of a folder, or of the folders in it as well, sorted; raises OSError where it cannot be read.

    The folder itself tells what is a file: in one of 100 000 images, on a
    shared file system, a look at each would take long, in every process.
    """
    found, waiting = [], [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_file():
                    found.append(Path(entry.path))
                elif recursive and entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return sorted(found)


def reduced(array, side):
    """An image (H, W) or (H, W, 3) whose longer side is at most ``side`` pixels, by means of areas; for looking at."""
    factor = side / max(array.shape[:2])
    if factor >= 1:
        return array
    size = [max(1, round(n * factor)) for n in array.shape[1::-1]]
    return cv2.resize(array, size, interpolation=cv2.INTER_AREA)


def find_images(folder, pattern="*"):
    """List the image files of ``folder`` whose name, with or without suffix, matches ``pattern``.

    Returns
    -------
    list of Path
        Sorted by name.

    Raises
    ------
    UserError
        If the folder does not exist, cannot be read, or no image in it matches.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    try:
        # Hidden files are left out: some systems put a "._NAME.png" that is no image beside each NAME.png.
        images = [p for p in list_files(folder) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    found = [p for p in images if fnmatch.fnmatch(p.name, pattern) or fnmatch.fnmatch(p.stem, pattern)]
    if not found:
        which = f"matches {pattern!r}" if images else f"has one of the suffixes {', '.join(SUFFIXES)}"
        raise UserError(f"{folder}: no image in it {which}")
    return found
