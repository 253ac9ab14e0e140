"""Image files to arrays and back; no other module reads or writes images."""

from pathlib import Path

import cv2
import numpy as np

from selfdeblur.errors import UserError
from selfdeblur.files import write_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".webp")


def read_image(path):
    """Read an image file.

    Alpha is dropped, palettes are expanded and the orientation noted in EXIF
    is applied. Integers are divided by the largest value of their type.

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
        If the file is missing, unreadable or not an image.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        array = None
    if array is None:
        raise UserError(f"{path}: not a readable image (empty, truncated or of an unknown format)")
    if np.issubdtype(array.dtype, np.integer):
        array = array / np.iinfo(array.dtype).max
    array = np.asarray(array, dtype=np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: holds values that are not finite")
    if array.ndim == 3:
        array = array[:, :, 0] if array.shape[2] == 1 else array[:, :, ::-1]
    return np.ascontiguousarray(array)


def write_image(path, array):
    """Write an array as an 8-bit image file, rounded to the nearest value.

    Parameters
    ----------
    path : str or Path
        The suffix gives the format.
    array : ndarray
        (H, W) or (H, W, 3) red, green, blue; range 0 to 1, clipped.
    """
    array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    if array.ndim == 3:
        array = array[:, :, ::-1]
    ok, content = cv2.imencode(Path(path).suffix, array)
    if not ok:
        raise UserError(f"{path}: no image format is known by this suffix")
    write_bytes(path, content.tobytes())


def find_images(folder, pattern="*"):
    """List the image files of ``folder`` whose name, with or without suffix, matches ``pattern``.

    Returns
    -------
    list of Path
        Sorted by name.

    Raises
    ------
    UserError
        If the folder does not exist or no image in it matches.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    images = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()]
    found = [p for p in images if p.match(pattern) or Path(p.stem).match(pattern)]
    if not found:
        which = f"matches {pattern!r}" if images else f"has one of the suffixes {', '.join(SUFFIXES)}"
        raise UserError(f"{folder}: no image in it {which}")
    return found
