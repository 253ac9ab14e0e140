"""TIFF files of one or several pages, with what stands around the pixels, to arrays and back.

A page comes out with the compression and the tags that it had. The tags that
say how the pixels are stored are written anew; the others are copied, those of
EXIF and GPS as well.
"""

import io
import logging
import re
import warnings
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from selfdeblur.files.headers import HeaderError, read_tiff_pages
from selfdeblur.files.images import decode_or_refuse

NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
# By tifffile alone; a strip of PackBits is at most 64 times what it is in the file, one of Deflate is measured first.
_BY_TIFFFILE = (NONE, DEFLATE, 32946, PACKBITS)
_BY_PILLOW = {LZW: "tiff_lzw", PACKBITS: "packbits"}

# Written anew: the layout of the pixels, orientation, resolution, previews; and those that are places in the file.
_OURS = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284),
    *(288, 289, 296, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 338, 339, 340, 341, 347),
    *(512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532, 34665, 34853, 40965),
}
EXIF, GPS = 34665, 34853
# Pages of a camera's raw file: the colours of a sensor, or the version of DNG.
_RAW = {32803, 34892}
_DNG_VERSION = 50706

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would say of damaged files is said by their refusal


@dataclass
class TiffPage:
    """What a page is besides its pixels; ``tags`` are (code, type, count, value)."""

    tags: list
    directories: dict
    compression: int
    predictor: int
    rows: int | None
    separate: bool
    white_is_zero: bool
    alpha: int | None
    resolution: tuple | None
    unit: int


def read_tiff(content):
    """Pages of a TIFF.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    arrays : list of ndarray
        (H, W), (H, W, 2), (H, W, 3) or (H, W, 4) as stored, alpha last; white is the largest value.
    orientations : list of int
    pages : list of TiffPage
    notes : list of str
        What will not come out as it went in.

    Raises
    ------
    HeaderError
        See `selfdeblur.files.headers.read_tiff_pages`; also for raw files, stacks in z and what cannot be decoded.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            pages = list(file.pages)
            if not pages:
                raise HeaderError("the file is truncated")
            _refuse_raw(content, pages[0])
            headers = read_tiff_pages(content)
            _refuse_stack(file)
            if missing := _missing(file):
                raise HeaderError(f"an OME-TIFF whose pages lie in other files, too ({missing}); join them first")
            full = [page for page in pages if not page.subfiletype & 1]
            if len(full) != len(headers):
                raise HeaderError("the file is damaged (its pages cannot be told apart)")
            arrays = _contiguous(file, content, full[0]) if len(full) == 1 else None
            if arrays is None:
                arrays = _decoded(content, full, headers)
            else:
                full, headers = full * len(arrays), headers * len(arrays)
            notes = _notes(full)
            described = [_describe(content, page) for page in full[: len(arrays)]]
    except HeaderError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # tifffile has no class for what it cannot read
        raise HeaderError(f"the file is damaged or of a kind that is not read ({type(error).__name__})") from error
    return arrays, [header.orientation for header in headers], described, notes


def _refuse_raw(content, page):
    if content[8:10] == b"CR" or _DNG_VERSION in page.tags or int(page.photometric) in _RAW:
        raise HeaderError("a raw file of a camera; develop it to a 16-bit TIFF first (darktable, RawTherapee)")


def _refuse_stack(file):
    depth = 0
    if file.is_imagej:
        depth = int((file.imagej_metadata or {}).get("slices", 1))
    elif file.is_ome:
        depth = max((int(n) for n in re.findall(r'\bSizeZ="(\d+)"', file.ome_metadata or "")), default=1)
    if depth > 1:
        raise HeaderError(
            f"a stack of {depth} slices in z: its blur goes through the slices, and only blur within a picture is "
            "taken out; save the slices to use as files of their own"
        )


def _missing(file):
    """Names of the other files that the pages of an OME-TIFF lie in."""
    if not file.is_ome:
        return ""
    return ", ".join(sorted(set(re.findall(r'\bFileName="([^"]*)"', file.ome_metadata or "")))[1:])


def _contiguous(file, content, page):
    """All pictures of an ImageJ file that names its first one only; None for other files."""
    count = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
    if count <= 1 or page.compression != NONE:
        return None
    dtype = np.dtype(file.byteorder + page.dtype.char)
    length = page.size * dtype.itemsize
    if page.size * count > 1 << 28 or page.dataoffsets[0] + count * length > len(content):
        raise HeaderError("the file is truncated, or of too many pages")
    data = np.frombuffer(content, dtype, page.size * count, page.dataoffsets[0])
    return list(data.reshape(count, *page.shape).astype(page.dtype))


def _decoded(content, pages, headers):
    """Arrays of all pages, by tifffile where it can and else by OpenCV."""
    if all(page.compression in _BY_TIFFFILE and page.photometric in (0, 1, 2) for page in pages):
        arrays = []
        for page in pages:
            if page.compression in (DEFLATE, 32946):
                _measure(content, page)
            array = page.asarray()
            if page.planarconfig == 2 and page.samplesperpixel > 1:
                array = np.moveaxis(array, 0, -1)
            if page.photometric == 0:
                array = np.iinfo(array.dtype).max - array
            if page.bitspersample == 1:
                array = array.astype(np.uint8) * np.uint8(255)
            arrays.append(array)
    else:
        if any(page.samplesperpixel == 2 or (page.planarconfig == 2 and page.bitspersample > 8) for page in pages):
            # OpenCV would mix up the planes.
            raise HeaderError("a TIFF of this compression is not read for this kind of picture; save it without any")
        data = np.frombuffer(headers[0].content, np.uint8)
        read, arrays = decode_or_refuse(lambda: cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED))
        if not read or len(arrays) != len(pages):
            raise HeaderError("the image in it is damaged or of a kind that is not read")
        arrays = [array if array.ndim == 2 else array[:, :, [2, 1, 0, 3][: array.shape[2]]] for array in arrays]
    for array, header in zip(arrays, headers, strict=True):
        if array.shape[:2] != (header.height, header.width):
            raise HeaderError("the image in it is damaged or of a kind that is not read")
    return arrays


def _measure(content, page):
    """Refuse a page whose strips hold more than its pixels; what inflates them has no limit of its own."""
    most = int(np.prod(page.chunks)) * page.dtype.itemsize * max(page.samplesperpixel, 1) + 64
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        inflate = zlib.decompressobj()
        if len(inflate.decompress(content[offset : offset + length], most)) >= most:
            raise HeaderError("the file is damaged (a strip holds more than its pixels)")


def _notes(pages):
    notes = []
    if any(page.photometric == 3 for page in pages):
        notes.append("the palette becomes RGB")
    if any(page.bitspersample in (1, 4) for page in pages):
        notes.append(f"{pages[0].bitspersample} bits a value become 8")
    if lost := {_name(page.compression) for page in pages if page.compression not in (*_BY_TIFFFILE, LZW)}:
        notes.append(f"the compression {', '.join(sorted(lost))} becomes Deflate, which loses nothing")
    return notes


def _name(compression):
    return getattr(compression, "name", str(compression))


def _describe(content, page):
    tags = []
    for tag in page.tags:
        if tag.code in _OURS or tag.code > 65535:
            continue
        size = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}.get(int(tag.dtype))
        if size and tag.valueoffset + size * tag.count <= len(content):
            raw = content[tag.valueoffset : tag.valueoffset + size * tag.count]
            tags.append((tag.code, int(tag.dtype), tag.count, _swapped(raw, size, int(tag.dtype), page)))
    resolution = None
    if 282 in page.tags and 283 in page.tags:
        resolution = tuple(page.tags[282].value), tuple(page.tags[283].value)
        if any(len(part) != 2 or not all(part) for part in resolution):
            resolution = None
    unit = page.tags[296].value if 296 in page.tags else 2
    alpha = page.samplesperpixel in (2, 4) or None
    compression = int(page.compression)
    return TiffPage(
        tags=tags,
        directories=_directories(content) if EXIF in page.tags or GPS in page.tags else {},
        compression=DEFLATE if compression not in (NONE, LZW, PACKBITS) else compression,
        predictor=2 if page.predictor == 2 else 1,
        rows=page.rowsperstrip if not page.is_tiled else None,
        separate=page.planarconfig == 2 and page.samplesperpixel > 1,
        white_is_zero=page.photometric == 0 and page.bitspersample > 1,
        alpha=alpha and int(page.extrasamples[0] if page.extrasamples else 2),
        resolution=resolution,
        unit=unit if unit in (1, 2, 3) else 2,
    )


def _swapped(raw, size, dtype, page):
    """Bytes of a tag in the byte order that is written, which is Intel's."""
    if page.parent.byteorder == "<":
        return raw
    width = 4 if dtype in (5, 10) else size
    return np.frombuffer(raw, f">u{width}").astype(f"<u{width}").tobytes()


def _directories(content):
    """The directories of EXIF and GPS, as Pillow reads them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                exif = image.getexif()
                return {tag: dict(exif.get_ifd(tag)) for tag in (EXIF, GPS) if exif.get_ifd(tag)}
    except Exception:  # whatever is wrong there does not concern the picture
        return {}


def write_tiff(arrays, pages, name):
    """Encode pages as a TIFF.

    Parameters
    ----------
    arrays : list of ndarray
        As of `read_tiff`.
    pages : list of TiffPage
    name : str
        Name of the new file: OME-TIFF mentions it.

    Returns
    -------
    bytes
    """
    buffer = io.BytesIO()
    large = sum(array.nbytes for array in arrays) > 3 << 30
    with tifffile.TiffWriter(buffer, bigtiff=large, byteorder="<") as file:
        for number, (array, page) in enumerate(zip(arrays, pages, strict=True)):
            _write_page(file, array, page, name, first=number == 0)
    content = bytearray(buffer.getvalue())
    _name_compressions(content, pages)
    if pages[0].directories and not large:
        _add_directories(content, pages[0].directories)
    return bytes(content)


def _write_page(file, array, page, name, *, first):
    if page.white_is_zero:
        array = np.iinfo(array.dtype).max - array
    photometric = "rgb" if array.ndim == 3 and array.shape[2] > 2 else "minisblack"
    options = {
        "photometric": "miniswhite" if page.white_is_zero else photometric,
        "extrasamples": [page.alpha or 2] if array.ndim == 3 and array.shape[2] in (2, 4) else None,
        "planarconfig": ("separate" if page.separate else "contig") if array.ndim == 3 else None,
        "metadata": None,
        "software": False,
        "extratags": [_renamed(tag, name) for tag in page.tags if first or not _of_the_file(tag)],
        "resolution": page.resolution,
        "resolutionunit": page.unit if page.resolution else None,
    }
    if page.directories and first:
        options["extratags"] += [(_PLACES[tag], 4, 1, 0, True) for tag in page.directories]
    if page.separate and array.ndim == 3:
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    rows = min(page.rows or 1 << 30, array.shape[-1 if array.ndim == 1 else (1 if page.separate else 0)])
    if page.compression not in _BY_PILLOW:
        if page.compression == DEFLATE:
            options |= {"compression": "zlib", "predictor": page.predictor == 2 and array.dtype.kind == "u"}
        file.write(array, rowsperstrip=rows, **options)
        return
    # tifffile writes strips that libtiff encoded, but not under their name, see `_name_compressions`.
    rows = max(min(rows, (1 << 16) // max(array.nbytes // array.shape[1 if page.separate else 0], 1)), 1)
    predictor = page.predictor == 2 and array.dtype.kind == "u" and page.compression == LZW
    file.write(
        _strips(array, rows, page.compression, predictor, page.separate and array.ndim == 3),
        shape=array.shape,
        dtype=array.dtype,
        compression="zlib",
        predictor=2 if predictor else None,
        rowsperstrip=rows,
        **options,
    )


def _strips(array, rows, compression, predictor, separate):
    """Encoded strips of an array, in order."""
    for plane in array if separate else (array,):
        if predictor:
            plane = np.concatenate([plane[:, :1], plane[:, 1:] - plane[:, :-1]], axis=1)
        plane = np.ascontiguousarray(plane)
        for top in range(0, len(plane), rows):
            part = plane[top : top + rows]
            file = io.BytesIO()
            Image.fromarray(part.reshape(len(part), -1).view(np.uint8)).save(
                file, "TIFF", compression=_BY_PILLOW[compression], tiffinfo={278: len(part)}
            )
            file.seek(0)
            with tifffile.TiffFile(file) as strip:
                (page,) = strip.pages
                ((offset, length),) = zip(page.dataoffsets, page.databytecounts, strict=True)
            yield file.getvalue()[offset : offset + length]


def _name_compressions(content, pages):
    """Put in the compression of each page for which tifffile has no encoder, and so no name to write."""
    if not any(page.compression in _BY_PILLOW for page in pages):
        return
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for written, page in zip(file.pages, pages, strict=True):
            if page.compression in _BY_PILLOW:
                place = written.tags[259].valueoffset
                content[place : place + 2] = page.compression.to_bytes(2, "little")


# Tags of EXIF and GPS cannot be given to tifffile: these, of nobody, hold their places until they are put in.
_PLACES = {EXIF: 65534, GPS: 65535}


def _add_directories(content, directories):
    """Add directories at the end of a TIFF, and the tags that name them."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = {tag: file.pages[0].tags[place] for tag, place in _PLACES.items() if tag in directories}
    at = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[at : at + 2], "little")
    for tag, values in directories.items():
        content += b"\0" * (len(content) % 2)
        place = len(content)
        directory = ImageFileDirectory_v2(b"II\x2a\0\x08\0\0\0")
        for key, value in values.items():
            if not isinstance(value, dict):
                directory[key] = value
        content += directory.tobytes(place)
        entry = tags[tag].offset
        content[entry : entry + 2] = tag.to_bytes(2, "little")
        content[entry + 8 : entry + 12] = place.to_bytes(4, "little")
    entries = sorted(bytes(content[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count))
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))  # readers expect them in order
    content[at + 2 : at + 2 + 12 * count] = b"".join(entries)


def _of_the_file(tag):
    """Whether a tag stands on the first page for all: the descriptions of OME-TIFF and ImageJ."""
    return tag[0] in (50838, 50839)


def _renamed(tag, name):
    """A tag to write; that of OME-TIFF names its own file, where readers look for the pages."""
    code, dtype, count, raw = tag
    if code == 270 and b"<OME" in raw[:4096]:
        raw = re.sub(rb'\bFileName="[^"]*"', lambda _: b'FileName="' + _escaped(name) + b'"', raw)
        count = len(raw)
    return code, dtype, count, raw, False


def _escaped(name):
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), ('"', "&quot;")):
        name = name.replace(char, entity)
    return name.encode("ascii", "xmlcharrefreplace")
