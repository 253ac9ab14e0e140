"""Pictures as people bring them: what goes in comes out, but for the pixels.

`read_picture` keeps what a file says besides its pixels, and `write_picture`
writes new pixels with all of it: format, bit depth, channels, value range,
alpha, EXIF, colour profile, resolution, compression. Pixels stay in the units
of the file; `Picture.unit` and `Picture.in_units` lead to the range 0 to 1 and
back.
"""

import io
import os
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin

from selfdeblur.errors import UserError
from selfdeblur.files.atomic import write_bytes
from selfdeblur.files.headers import HeaderError, read_header, upright_exif
from selfdeblur.files.images import UPRIGHT, decode_or_refuse, read_content
from selfdeblur.files.tiffs import DEFLATE, NONE, TiffPage, read_tiff, write_tiff
from selfdeblur.values import from_unit, to_unit, value_range

# Suffix -> format. The first suffix of a format is that of a picture from standard input.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".btf": "TIFF",
    ".webp": "WebP",
    ".bmp": "BMP",
    ".pgm": "PNM",
    ".ppm": "PNM",
}
_RAW = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef"),
    *(".srw", ".3fr", ".iiq", ".x3f", ".erf", ".mef", ".mos", ".kdc", ".dcr"),
)
_RAW_CONTENT = rb"II\x2a\0........CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|....ftypcrx"
_HINTS = (
    (
        _RAW_CONTENT,
        "a raw file of a camera; develop it to a 16-bit TIFF first (darktable, RawTherapee, the camera's program)",
    ),
    (rb"GIF8", "a GIF, of 256 colours and often an animation; save the picture to use as PNG"),
    (
        rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1|avif|avis)",
        "a HEIC or AVIF file; save it as JPEG or PNG, or let the phone take pictures in its most compatible format",
    ),
)
# Where a quality has to be chosen: of WebP with loss nothing can be read back, other formats had none.
_QUALITY = 95
# What of a JPEG is kept as it is: densities, EXIF and XMP, the colour profile, IPTC, comments. APP14 describes the
# colours of the old encoding, and the MPF of APP2 has places of other pictures in the old file.
_SEGMENTS = re.compile(rb"\xe0JFIF\0|\xe1|\xe2ICC_PROFILE\0|\xed|\xfe", re.DOTALL)


@dataclass
class Picture:
    """One picture, or pages, and what has to come out with it.

    Attributes
    ----------
    pages : list of ndarray
        (H, W) or (H, W, 3) red, green, blue, upright, in the type and units of the file.
    alphas : list of (ndarray or None)
        Opacity (H, W) of each page, as in the file.
    format : str
        PNG, JPEG, TIFF, WebP, BMP or PNM.
    white : int or None
        The value of white, where integers declare one: the largest of their type. None: floating point.
    notes : list of str
        What does not come out as it went in.
    content : bytes
        The file.
    exif, icc, xmp : bytes or None
        As any format may hold them, EXIF from its byte order mark on and with the orientation reset.
    resolution : (float, float) or None
        Dots per inch, horizontally and vertically.
    """

    pages: list
    alphas: list
    format: str
    white: int | None
    content: bytes = field(repr=False)
    notes: list = field(default_factory=list)
    exif: bytes | None = field(default=None, repr=False)
    icc: bytes | None = field(default=None, repr=False)
    xmp: bytes | None = field(default=None, repr=False)
    resolution: tuple | None = None
    kept: list = field(default_factory=list, repr=False)
    ranges: dict = field(default_factory=dict, repr=False)

    @property
    def suffix(self):
        """Suffix of a file of this format, with its dot."""
        if self.format == "PNM":
            return ".pgm" if self.pages[0].ndim == 2 else ".ppm"
        return next(suffix for suffix, name in FORMATS.items() if name == self.format)

    def range(self, number=0):
        """Values that stand for 0 and 1 in `unit` of a page: see `value_range`."""
        if number not in self.ranges:
            self.ranges[number] = value_range(self.pages[number], self.white)
        return self.ranges[number]

    def unit(self, number=0):
        """A page as float32 within 0 to 1."""
        return to_unit(self.pages[number], self.range(number))

    def in_units(self, image, number=0):
        """An image (H, W) or (H, W, 3), in terms of `unit` and maybe beyond 1, as a page of the file's type.

        It is limited to what the type holds, not to what the page held; of
        floating point nothing falls below the lowest value that `unit` knows.
        """
        return from_unit(image, self.range(number), self.pages[number].dtype, self.white)


def read_picture(source, pages="each"):
    """Read a picture with all that is said of it.

    Parameters
    ----------
    source : str, Path or bytes
        A file: PNG, JPEG, TIFF, WebP, BMP, PGM or PPM, told apart by content; or what is in one.
    pages : {"each", "first"}
        Whether all pages of a TIFF are wanted.

    Returns
    -------
    Picture

    Raises
    ------
    UserError
        If the file is missing, unreadable, cut off, damaged, no picture, of a
        kind that is not read (an animation, a raw file, HEIC, a stack in z,
        CMYK), larger than 2**26 pixels, or holds values that are not finite.
    """
    name = "standard input" if isinstance(source, bytes) else source
    try:
        if not isinstance(source, bytes) and Path(source).suffix.lower() in _RAW:
            _refuse_by_name(source)
        content = source if isinstance(source, bytes) else read_content(source)
        for magic, hint in _HINTS:
            if re.match(magic, content, re.DOTALL):
                raise HeaderError(hint)
        tiff = re.match(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", content)
        picture = _read_tiff(content, pages) if tiff else _read_single(content)
        for page in picture.pages:
            if not np.isfinite(page).all():
                raise HeaderError("holds values that are not finite")
    except HeaderError as error:
        raise UserError(f"{name}: {error}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise UserError(f"{name}: the memory does not suffice for this picture") from error
    return picture


def _refuse_by_name(path):
    os.stat(path)
    raise HeaderError(_HINTS[0][1])


def _read_tiff(content, wanted):
    arrays, orientations, kept, notes = read_tiff(content)
    if wanted == "first":
        if len(arrays) > 1:
            notes.append(f"{len(arrays) - 1} further pages are left out")
        arrays, orientations, kept = arrays[:1], orientations[:1], kept[:1]
    if len({array.dtype for array in arrays}) > 1:
        raise HeaderError("its pages are of different kinds; save them as files of their own")
    split = [_split(array, orientation) for array, orientation in zip(arrays, orientations, strict=True)]
    dtype = arrays[0].dtype
    white = None if dtype.kind == "f" else int(np.iinfo(dtype).max)
    picture = Picture([p for p, _ in split], [a for _, a in split], "TIFF", white, content, notes, kept=kept)
    _neutral(picture)
    return picture


def _read_single(content):
    header = read_header(content)
    kind = _format(content)
    notes, kept = [], []
    if kind == "PNM":
        white = int(re.match(rb"P\d(?:(?:\s|#[^\r\n]*[\r\n])+(\d+)){3}", content)[1])
        dtype = np.uint8 if white < 256 else np.uint16
        array = np.rint(header.array * white).astype(dtype)
    else:
        data = np.frombuffer(header.content, np.uint8)
        array = decode_or_refuse(lambda: cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
        if array.shape[:2] != (header.height, header.width):
            raise HeaderError("the image in it is damaged or of a kind that is not read")
        if array.ndim == 3:
            array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
        white = int(np.iinfo(array.dtype).max)
    if kind == "PNG":
        array, kept, notes = _read_png(content, array, header.orientation > 4)
    elif kind == "JPEG":
        kept = _jpeg_segments(content)
    elif kind == "BMP" and int.from_bytes(content[28:30], "little") < 16 and array.ndim == 3:
        notes.append("the palette becomes RGB")
    elif kind == "WebP" and not _lossless_webp(content):
        notes.append(f"WebP with loss does not tell its quality; it is written with {_QUALITY} of 100")
    page, alpha = _split(array, header.orientation)
    picture = Picture([page], [alpha], kind, white, content, notes, kept=kept)
    _neutral(picture)
    return picture


def _format(content):
    for magic, name in ((b"\x89PNG", "PNG"), (b"\xff\xd8", "JPEG"), (b"BM", "BMP"), (b"RIFF", "WebP")):
        if content.startswith(magic):
            return name
    return "PNM"


def _split(array, orientation):
    """Colours and opacity of an array (H, W[, channels]), upright."""
    array = UPRIGHT[orientation](array)
    if array.ndim == 2:
        return np.ascontiguousarray(array), None
    channels = array.shape[2]
    colours = array[:, :, 0] if channels <= 2 else array[:, :, :3]
    alpha = np.ascontiguousarray(array[:, :, -1]) if channels in (2, 4) else None
    return np.ascontiguousarray(colours), alpha


def _neutral(picture):
    """What Pillow knows of EXIF, profile, XMP and resolution; only needed where a picture changes its format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            info, exif = _asked_of_pillow(picture)
    except Exception:  # the pixels were read already, and what is wrong here does not concern them
        return
    if exif:
        picture.exif = upright_exif(exif.removeprefix(b"Exif\0\0"))
    picture.icc, xmp = info.get("icc_profile") or None, info.get("xmp")
    picture.xmp = _upright_xmp(xmp) if isinstance(xmp, bytes) else None
    resolution = info.get("dpi")
    if resolution and all(float(n) > 0 for n in resolution):
        picture.resolution = tuple(float(n) for n in resolution)


def _asked_of_pillow(picture):
    with Image.open(io.BytesIO(picture.content)) as image:
        exif = image.info.get("exif")
        if picture.format == "TIFF":
            tags = image.getexif()
            for tag in (273, 279, 324, 325, 330, 700, 34675):
                tags.pop(tag, None)
            exif = tags.tobytes()
        return image.info, exif


def _upright_xmp(xmp):
    xmp = re.sub(rb'(tiff:Orientation=["\'])[2-8](["\'])', rb"\g<1>1\2", xmp)
    return re.sub(rb"(<tiff:Orientation>)[2-8](</)", rb"\g<1>1\2", xmp)


def write_picture(path, picture, pages=None):
    """Write a picture with new pages, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The suffix gives the format; where it is that of the picture, all is kept.
    picture : Picture
    pages : list of ndarray, optional
        New pages, see `Picture.in_units`; by default those of the picture.

    Returns
    -------
    list of str
        What did not come out as it went in, besides ``picture.notes``.

    Raises
    ------
    UserError
        If no format has this suffix or it cannot hold the picture.
    OutputError
        If the file cannot be written.
    """
    content, notes = encode_picture(picture, pages, suffix=Path(path).suffix, name=str(path))
    write_bytes(path, content)
    return notes


def encode_picture(picture, pages=None, *, suffix=None, name="the picture"):
    """The content of a file, and notes, see `write_picture`; without a suffix in the format of the picture."""
    suffix = (suffix or picture.suffix).lower()
    if suffix not in FORMATS:
        raise UserError(f"{name}: no picture is written with this suffix; take one of {', '.join(FORMATS)}")
    kind, pages = FORMATS[suffix], picture.pages if pages is None else pages
    notes = []
    if kind != "TIFF":
        if len(pages) > 1:
            raise UserError(f"{name}: {kind} holds one picture, but there are {len(pages)} pages; take .tif")
        page, alpha = _fitted(picture, pages[0], kind, suffix, notes)
    try:
        if kind == "TIFF":
            arrays = [_joined(page, alpha) for page, alpha in zip(pages, picture.alphas, strict=True)]
            kept = picture.kept if picture.format == "TIFF" else [_tiff_page(picture, arrays[0], notes)]
            content = _tiff(arrays, kept, Path(name).name, notes)
        elif kind == "PNG":
            content = _encode_png(_joined(page, alpha), _png_chunks(picture))
        elif kind == "JPEG":
            content = _encode_jpeg(page, picture)
        elif kind == "PNM":
            white = picture.white if picture.format == "PNM" else np.iinfo(page.dtype).max
            data = page.astype(">u2") if white > 255 else page.astype(np.uint8)
            head = f"P{5 if page.ndim == 2 else 6}\n{page.shape[1]} {page.shape[0]}\n{white}\n"
            content = head.encode() + data.tobytes()
        else:
            content = _encode_other(kind, _joined(page, alpha), picture)
    except (cv2.error, OSError, ValueError) as error:
        size = f"{pages[0].shape[1]} x {pages[0].shape[0]}"
        raise UserError(f"{name}: {kind} cannot hold this picture of {size} ({error})") from error
    return content, notes


def _tiff(arrays, kept, name, notes):
    try:
        return write_tiff(arrays, kept, name)
    except Exception:  # tags of a damaged file, of any kind; the pixels were computed and must not be lost
        notes.append("its tags cannot be written again and are left out")
        bare = [replace(page, tags=[], directories={}, resolution=None) for page in kept]
        return write_tiff(arrays, bare, name)


def _fitted(picture, page, kind, suffix, notes):
    """A page and its opacity as a format can hold them."""
    alpha = picture.alphas[0]
    if page.dtype.kind == "f" or page.dtype.itemsize > 2:
        low, high = picture.range(0)
        high = max(high, float(page.max()))
        page = np.rint((page.astype(np.float64) - low) / (high - low) * 65535).astype(np.uint16)
        notes.append(f"values from {low:.6g} to {high:.6g} became integers from 0 to 65535")
        if alpha is not None:
            full = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
            alpha = np.rint(np.clip(alpha / full, 0, 1) * 65535).astype(np.uint16)
    if page.dtype == np.uint16 and kind not in ("PNG", "PNM"):
        notes.append(f"16 bits a value become 8, {kind} has no more")
        page = np.rint(page / 257).astype(np.uint8)
        alpha = alpha if alpha is None else np.rint(alpha / 257).astype(np.uint8)
    if picture.format == "PNM" and kind != "PNM" and picture.white not in (255, 65535):
        full = np.iinfo(page.dtype).max
        page = np.rint(page * (full / picture.white)).astype(page.dtype)
    if alpha is not None and kind in ("JPEG", "PNM"):
        notes.append(f"{kind} has no alpha, it is left out")
        alpha = None
    if suffix == ".pgm" and page.ndim == 3:
        raise UserError("a .pgm file holds no colours; take .ppm or .png")
    if suffix == ".ppm" and page.ndim == 2:
        page = np.repeat(page[:, :, None], 3, axis=2)
    return page, alpha


def _joined(page, alpha):
    return page if alpha is None else np.dstack([page, alpha])


# PNG


def _chunks(content):
    """Pairs (kind, data) of a PNG that `read_header` has found whole."""
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">L", content, at)
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length


def _read_png(content, array, turned):
    """The array with the opacity that a palette or a transparent colour gives, the chunks to keep, and notes."""
    chunks = list(_chunks(content))
    depth, colour = chunks[0][1][8:10]
    transparent = next((data for kind, data in chunks if kind == b"tRNS"), None)
    dropped = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"hIST", b"acTL", b"fcTL", b"fdAT"}
    notes = []
    if colour == 3:
        notes.append("the palette becomes RGB")
        array = array[:, :, :3] if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)
    elif depth < 8:
        notes.append(f"{depth} bits a value become 8")
    if colour == 4:
        array = array if array.ndim == 2 else array[:, :, [0, -1]]
    if colour == 3 or depth < 8:
        dropped |= {b"bKGD", b"sBIT"}
    if transparent:
        if colour == 3:
            with Image.open(io.BytesIO(content)) as image:
                alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
        else:
            key = np.array(struct.unpack(f">{len(transparent) // 2}H", transparent[: len(transparent) // 2 * 2]))
            key = key * (255 // ((1 << depth) - 1)) if depth < 8 else key
            same = (array if array.ndim == 3 else array[:, :, None]) == key
            alpha = np.where(same.all(axis=2), 0, np.iinfo(array.dtype).max).astype(array.dtype)
        array = _joined(array, alpha)
        notes.append("the transparent colour becomes alpha")
    kept = []
    for kind, data in chunks:
        if kind == b"eXIf":
            data = upright_exif(data)
        elif kind == b"iTXt":
            data = _upright_xmp(data)
        elif kind == b"pHYs" and turned and len(data) == 9:
            data = data[4:8] + data[:4] + data[8:]
        if kind not in dropped:
            kept.append((kind, data))
    return array, kept, notes


def _png_chunks(picture):
    if picture.format == "PNG":
        return picture.kept
    chunks = []
    if picture.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
    if picture.resolution:
        chunks.append((b"pHYs", struct.pack(">LLB", *(round(n / 0.0254) for n in picture.resolution), 1)))
    if picture.exif:
        chunks.append((b"eXIf", picture.exif))
    if picture.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp))
    return chunks


def _encode_png(array, chunks):
    """A PNG of 8 or 16 bits with further chunks: Pillow has no colours of 16 bits, OpenCV no chunks."""
    if array.ndim == 3 and array.shape[2] == 2:
        content = _encode_grey_alpha(array)
    else:
        stored = array if array.ndim == 2 else array[:, :, [2, 1, 0, 3][: array.shape[2]]]
        ok, encoded = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 6])
        if not ok:
            raise ValueError("it cannot be encoded")
        content = encoded.tobytes()
    after_header = 8 + 25
    return content[:after_header] + b"".join(_chunk(*chunk) for chunk in chunks) + content[after_header:]


def _encode_grey_alpha(array):
    """A PNG of grey and alpha, of which no library at hand writes 16 bits; each row is stored as it is."""
    height, width, _ = array.shape
    rows = array.astype(">u2" if array.dtype == np.uint16 else np.uint8).reshape(height, -1).view(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    header = struct.pack(">LLBBBBB", width, height, 8 * array.itemsize, 4, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind, data):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


# JPEG


def _jpeg_segments(content):
    """Marker segments to keep, with their markers, EXIF and XMP upright."""
    at, kept = 2, []
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xDA:
            break
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        data = content[at + 4 : at + 2 + length]
        if _SEGMENTS.match(bytes([marker]) + data):
            if data.startswith(b"Exif\0\0"):
                data = data[:6] + upright_exif(data[6:])
            elif marker == 0xE1:
                data = _upright_xmp(data)
            kept.append(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data)
        at += 2 + length
    return kept


def _encode_jpeg(page, picture):
    options = {"quality": _QUALITY, "subsampling": 0}
    if picture.format == "JPEG":
        with Image.open(io.BytesIO(picture.content)) as image:
            sampling = JpegImagePlugin.get_sampling(image)
            options = {
                "qtables": image.quantization,
                "subsampling": sampling if sampling >= 0 else 0,
                "progressive": bool(image.info.get("progressive")),
            }
    else:
        exif = {"exif": b"Exif\0\0" + picture.exif} if picture.exif and len(picture.exif) < 65000 else {}
        dpi = {"dpi": tuple(round(n) for n in picture.resolution)} if picture.resolution else {}
        xmp = {"xmp": picture.xmp} if picture.xmp and len(picture.xmp) < 65000 else {}
        options |= {"icc_profile": picture.icc, **exif, **dpi, **xmp}
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "JPEG", optimize=True, **options)
    content = buffer.getvalue()
    if picture.format != "JPEG":
        return content
    # What the encoder says of itself gives way to the segments of the file that was read.
    at = 2
    while content[at + 1] in (0xE0, 0xFE):
        at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    return content[:2] + b"".join(picture.kept) + content[at:]


# WebP, BMP and TIFF of other formats


def _lossless_webp(content):
    return b"VP8L" in content[12:] and not re.search(rb"VP8 .{4}...\x9d\x01\x2a", content[: 1 << 16], re.DOTALL)


def _encode_other(kind, array, picture):
    if kind == "BMP" and array.ndim == 3 and array.shape[2] != 3:
        grey = array.shape[2] == 2
        ok, encoded = cv2.imencode(".bmp", array[:, :, [0, 0, 0, 1]] if grey else array[:, :, [2, 1, 0, 3]])
        if not ok:
            raise ValueError("it cannot be encoded")
        return encoded.tobytes()
    options = {"dpi": picture.resolution} if picture.resolution else {}
    if kind == "WebP":
        lossless = picture.format in ("PNG", "TIFF", "BMP", "PNM") or _lossless_webp(picture.content)
        options = {"lossless": lossless, "quality": 80 if lossless else _QUALITY, "exact": True}
        options |= {"exif": b"Exif\0\0" + picture.exif} if picture.exif else {}
        options |= {"icc_profile": picture.icc} if picture.icc else {}
        options |= {"xmp": picture.xmp} if picture.xmp else {}
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def _tiff_page(picture, array, notes):
    """The description of a page for a picture of another format."""
    if picture.exif:
        notes.append("EXIF is not carried over to TIFF")
    tags = [(34675, 7, len(picture.icc), picture.icc)] if picture.icc else []
    tags += [(700, 1, len(picture.xmp), picture.xmp)] if picture.xmp else []
    resolution = picture.resolution and tuple((round(n * 1000), 1000) for n in picture.resolution)
    grey = array.ndim == 2 or array.shape[2] != 3
    return TiffPage(
        tags=tags,
        directories={},
        compression=NONE if picture.format in ("BMP", "PNM") else DEFLATE,
        predictor=2,
        rows=None,
        separate=False,
        white_is_zero=False,
        alpha=2 if grey and array.ndim == 3 else None,
        resolution=resolution,
        unit=2,
    )
