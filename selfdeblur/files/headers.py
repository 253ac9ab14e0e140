"""What an image file says of itself, read before its pixels are decoded.

A decoder takes a file's word for its size, and some decoders return a picture
that is half grey for a file that was cut off. Pillow and tifffile tell size,
kind, number of pictures and orientation. Here is what they leave open: the
limits, the check that all bytes are there where only their decoders make it,
what has to be taken out before OpenCV decodes, and PGM and PPM, whose values
no library gives as they are where the largest is neither 255 nor 65535.
"""

import contextlib
import io
import logging
import re
import struct
import threading
import warnings
from dataclasses import dataclass, replace

import numpy as np
import tifffile
from PIL import ExifTags, Image, WebPImagePlugin  # noqa: F401 (Pillow knows WebP once its plug-in is imported)

# The largest picture that is read: 16 bytes a pixel, in the worst case, have to fit into a computer's memory.
MAX_PIXELS = 1 << 26
# A decoder works through each of these in full, however short it is in the file.
_MAX_SCANS = 100
_MAX_PAGES = 100
_MAX_PAGES_WANTED = 1000
# Reads of a file in pieces (chunks, segments), each of which costs a turn of a loop in Python.
_MAX_READS = 1 << 18
# Numbers written as text take some 40 bytes of memory each while they are read.
_MAX_WORDS = 1 << 24

_DAMAGED = "the file is truncated, damaged or of a kind that is not read; convert it to PNG"


class HeaderError(ValueError):
    """The file cannot be read as one picture; the message says why and does not name the file."""


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    ``orientation`` is the number that EXIF gives the eight positions of a
    camera, ``grey`` tells whether there is one value a pixel (None: that
    depends on the palette), ``content`` what the decoder gets. ``array`` is the picture where
    no decoder is needed.
    """

    height: int
    width: int
    grey: bool | None
    content: bytes
    orientation: int = 1
    array: np.ndarray | None = None


def read_header(content):
    """Read what an image file says of itself and check that all of it is there.

    Parameters
    ----------
    content : bytes
        The whole file: PNG, JPEG, TIFF, BMP, PGM/PPM or WebP.

    Returns
    -------
    Header

    Raises
    ------
    HeaderError
        If the file is of another format, cut off, damaged, an animation, of no
        pixels or of more than `MAX_PIXELS`, or of a kind that would be decoded
        wrongly.
    """
    _require(content, "the file is empty")
    for magic, reader in _FORMATS:
        if re.match(magic, content, re.DOTALL):
            return _told(reader, content)
    for magic, name in _OTHERS:
        if re.match(magic, content, re.DOTALL):
            raise HeaderError(f"{name} files are not read; convert it to PNG")
    raise HeaderError("not an image, or of an unknown format (known: PNG, JPEG, TIFF, BMP, PGM, PPM, WebP)")


def _told(reader, *arguments):
    """What a reader returns; whatever it raises becomes a `HeaderError`."""
    try:
        return reader(*arguments)
    except (HeaderError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise HeaderError(f"too many pixels (at most {MAX_PIXELS}); scale it down or cut it") from error
    except Exception as error:
        # A damaged file can break off the libraries' reading in any way.
        raise HeaderError(_DAMAGED) from error


def _require(condition, reason):
    if not condition:
        raise HeaderError(reason)


def _check_size(width, height):
    _require(width > 0 and height > 0, f"the image has no pixels ({width} x {height})")
    _require(
        width * height <= MAX_PIXELS,
        f"{width} x {height} pixels are too many (at most {MAX_PIXELS}); scale it down or cut it",
    )


def _check_number(number, kind):
    _require(number == 1, f"{kind} of {number} pictures; save the one to use as a file of its own")


def _known(orientation):
    """The orientation, or 1 where there is none that makes sense."""
    return orientation if orientation in range(1, 9) else 1


_lock = threading.Lock()


@contextlib.contextmanager
def _quiet():
    """Keep the warnings and the log of Pillow and tifffile from the terminal."""
    logger = logging.getLogger("tifffile")
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Of an animation that makes no sense Pillow would go on to read the first picture.
        warnings.filterwarnings("error", "Invalid APNG")
        logger.addFilter(_nothing)
        try:
            yield
        finally:
            logger.removeFilter(_nothing)


def _nothing(record):
    return False


def upright_exif(data):
    """EXIF, or a TIFF, whose first directory says that the picture is upright and names no preview; else as it was.

    What a program that turns the picture itself has to write back. The preview would show the picture as it was.

    Parameters
    ----------
    data : bytes
        EXIF from its byte order mark on, without the ``Exif`` before it in some formats.

    Returns
    -------
    bytes
        Of the same length; unchanged where it is no EXIF that can be read.
    """
    file = _File(data)
    try:
        with _quiet(), tifffile.TiffFile(file) as tiff:
            page, form = tiff.pages.first, tiff.tiff
            turned = page.tags.valueof(274, 1) > 4
            if 274 in page.tags:
                page.tags[274].overwrite(1)
            if turned and 34665 in page.tags:  # sizes, which programs show, change places
                tiff.filehandle.seek(page.tags[34665].valueoffset)
                sizes = tifffile.TiffPage(tiff, index=1).tags
                width, height = sizes.valueof(40962), sizes.valueof(40963)
                if width and height:
                    sizes[40962].overwrite(height)
                    sizes[40963].overwrite(width)
            tiff.filehandle.seek(page.offset + form.tagnosize + len(page.tags) * form.tagsize)
            tiff.filehandle.write(bytes(form.offsetsize))
    except Exception:
        return data
    return file.getvalue()


# PNG, JPEG, BMP, WebP


class _File(io.BytesIO):
    """A file that ends the reading of a header of endlessly many pieces."""

    reads = 0

    def read(self, size=-1):
        self.reads += 1
        _require(self.reads <= _MAX_READS, "the file is damaged (of too many pieces)")
        return super().read(size)


def _pillow(content):
    with _quiet():
        file = _File(content)
        image = Image.open(file, formats=("PNG", "JPEG", "BMP", "WEBP"))
        _check_size(*image.size)
        if image.format == "PNG":
            _check_number(image.n_frames, "an animation")
            image.verify()  # all checksums
            image = Image.open(_File(content), formats=("PNG",))
        elif image.format == "WEBP":
            # The mark of an animation; of a damaged one the library may find one picture.
            animated = content[12:16] == b"VP8X" and content[20] & 2
            _require(not animated, "an animation; save the picture to use as a file of its own")
        elif image.format == "BMP":
            _require(content[26:28] == b"\1\0", "a BMP of an unusual kind; convert it to PNG")  # one plane of colour
            for codec, _, offset, arguments in image.tile:
                rows = arguments[1] * image.height if codec == "raw" else 0
                _require(offset + rows <= len(content), "the file is truncated")
        else:
            # JPEG, and MPO: a JPEG with more pictures, such as previews, behind the one that all programs show.
            _require(image.mode != "CMYK", "a JPEG in CMYK, the colours of a printer; convert it to RGB")
            _require(content.count(b"\xff\xda") <= _MAX_SCANS, "the file is damaged (too many scans)")
            # Pillow has read up to the first scan. Within the scans the end mark is never a value.
            _require(content.find(b"\xff\xd9", file.tell()) >= 0, "the file is truncated")
        try:
            orientation = _known(image.getexif().get(ExifTags.Base.Orientation, 1))
        except MemoryError:
            raise
        except Exception:
            orientation = 1  # EXIF of no sense is like none
    grey = {"1": True, "L": True, "P": None}.get(image.mode, False)
    if image.format == "PNG":
        grey = content[25] in (0, 4)  # its kind of colour; Pillow calls grey with alpha of 16 bits RGBA
        content = _bare_png(content)
    return Header(image.height, image.width, grey, content, orientation)


def _bare_png(content):
    """The chunks that hold the picture: what others say of transparency or gamma must not change its values."""
    kept, at = [content[:8]], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


# TIFF

# None, LZW, JPEG, Deflate (two numbers), PackBits. Of others some decoders make noise without a word.
_TIFF_COMPRESSIONS = (1, 5, 7, 8, 32946, 32773)
_TIFF_TYPES = (3, 4, 16)  # integers of 16, 32 and 64 bits, without a sign
_TIFF_KINDS = {0: "a grey image", 1: "a grey image", 2: "an RGB image", 3: "a palette image", 6: "a YCbCr image"}
# White as 0 in more than 8 bits is what the decoder forgets to turn round.
_TIFF_BITS = {0: {1, 8}, 1: {1, 8, 16, 32}, 2: {8, 16, 32}, 3: {1, 4, 8}, 6: {8}}
_TIFF_FLOAT_BITS = {1: {32, 64}, 2: {32, 64}}


def read_tiff_pages(content):
    """Read what a TIFF of one or several pages says of them, previews left out.

    Parameters
    ----------
    content : bytes
        The whole file.

    Returns
    -------
    list of Header
        One for each page. The content of each is that of all pages, patched for the decoder.

    Raises
    ------
    HeaderError
        As in `read_header`; all pages together must not have more than `MAX_PIXELS` pixels.
    """
    headers = _told(_tiff_pages, content, _MAX_PAGES_WANTED)
    total = sum(header.height * header.width for header in headers)
    _require(
        total <= MAX_PIXELS,
        f"{len(headers)} pages of {total} pixels are too many (at most {MAX_PIXELS}); split the file",
    )
    return headers


def _tiff(content):
    return _tiff_pages(content, _MAX_PAGES, one=True)[0]


def _tiff_pages(content, most, *, one=False):
    file = _File(content)
    with _quiet(), tifffile.TiffFile(file) as tiff:
        _require(0 < len(tiff.pages) <= most, "the file is damaged (its list of pages)")
        # tifffile passes over what it cannot read, pages after a broken one and single tags, without an error.
        end = tiff.pages.next_page_offset
        _require(_number(tiff, end, tiff.tiff.offsetformat) == 0, "the file is damaged (its list of pages)")
        for page in tiff.pages:
            number = _number(tiff, page.offset, tiff.tiff.tagnoformat)
            _require(number == len(page.tags), "the file is damaged (its list of tags)")
        # A reduced version of another page is what cameras add for a preview.
        pages = [page for i, page in enumerate(tiff.pages) if (one and i == 0) or not page.is_reduced]
        _require(pages, "the file has no page of full size")
        if one:
            _check_number(len(pages), "a TIFF")
            separate = pages[0].tags.valueof(284) == 2 and pages[0].tags.valueof(277, 1) > 1
            # The decoder would mix up the planes, without a word.
            _require(
                not separate or set(np.atleast_1d(pages[0].tags.valueof(258))) == {8},
                "a TIFF of separate colour planes; save it with interleaved colours",
            )
        headers = [_tiff_page(page.tags, content) for page in pages]
        # The decoder would multiply the colours with alpha unless they are declared to be so already ...
        # ... and some versions of it turn the image and some do not.
        for tags in (page.tags for page in pages):
            for tag in (338, 274):
                if tag in tags:
                    tags[tag].overwrite([1] * tags[tag].count)
    return [replace(header, content=file.getvalue()) for header in headers]


def _number(tiff, place, kind):
    """The number of a kind of `struct` at a place of the file."""
    tiff.filehandle.seek(place)
    return struct.unpack(kind, tiff.filehandle.read(struct.calcsize(kind)))[0]


def _tiff_page(tags, content):
    def values(tag, default=()):
        # Numbers of other types the decoder might understand in another way.
        _require(tag not in tags or tags[tag].dtype in _TIFF_TYPES, _DAMAGED)
        return np.atleast_1d(tags.valueof(tag, default))

    def value(tag, default):
        return int(next(iter(values(tag)), default))

    width, height = value(256, 0), value(257, 0)
    _check_size(width, height)
    bits, formats = set(values(258, 1).tolist()), set(values(339, 1).tolist())
    compression, photometric, channels = value(259, 1), value(262, -1), value(277, 1)
    _require(photometric in _TIFF_KINDS, "a TIFF in CMYK, Lab or other unusual colours; convert it to RGB")
    kind = _TIFF_KINDS[photometric]
    _require(formats in ({1}, {3}), "a TIFF of signed or complex numbers; convert it to 8 or 16 bits")
    allowed = (_TIFF_BITS if formats == {1} else _TIFF_FLOAT_BITS).get(photometric, set())
    _require(
        len(bits) == 1 and bits <= allowed,
        f"a TIFF of {'/'.join(map(str, sorted(bits)))} bits a value is not read as {kind}; convert it to 8 or 16 bits",
    )
    _require(compression in _TIFF_COMPRESSIONS, "a TIFF of an unusual compression; convert it to PNG")
    _require(
        channels in ((3, 4) if photometric in (2, 6) else (1, 2)),
        f"a TIFF of {channels} channels is not read as {kind}",
    )

    tiled = 324 in tags
    offsets, lengths = (values(324), values(325)) if tiled else (values(273), values(279))
    rows, columns = (value(323, 0), value(322, 0)) if tiled else (min(value(278, height), height), width)
    _require(0 < rows * columns <= MAX_PIXELS, "the file is damaged (its strips or tiles have no sensible size)")
    parts = -(-height // rows) * -(-width // columns) * (channels if value(284, 1) == 2 else 1)
    _require(len(offsets) == len(lengths) >= parts, "the file is damaged (strips or tiles are missing)")
    ends = [offset + length for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True)]
    _require(lengths.min() > 0 and max(ends) <= len(content), "the file is truncated")
    if compression == 1 and photometric != 6:
        _require(sum(lengths.tolist()) * 8 >= height * width * channels * max(bits), "the file is truncated")
    grey = {0: True, 1: True, 3: None}.get(photometric, False)
    return Header(height, width, grey, content, _known(value(274, 1)))


# PGM and PPM


def _pnm(content):
    field = rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})(?=[\s#])"
    match = re.match(rb"P[2356]" + 3 * field, content)
    _require(match, "the file is truncated or its PGM/PPM header is damaged")
    width, height, largest = map(int, match.groups())
    _check_size(width, height)
    _require(0 < largest < 65536, "the file is damaged (largest value not in 1 to 65535)")
    grey = content[1:2] in b"25"
    shape = (height, width) if grey else (height, width, 3)
    number = np.prod(shape, dtype=int)
    if content[1:2] in b"56":
        dtype = np.dtype("u1" if largest < 256 else ">u2")
        _require(match.end() + 1 + number * dtype.itemsize <= len(content), "the file is truncated")
        values = np.frombuffer(content, dtype, number, match.end() + 1)
    else:
        _require(number <= _MAX_WORDS, "too large for a PGM/PPM file in text form; convert it to PNG")
        words = re.sub(rb"#[^\r\n]*", b"", content[match.end() :]).split(maxsplit=number)[:number]
        _require(len(words) == number, "the file is truncated")
        _require(all(w.isdigit() and len(w) < 6 for w in words), "the file is damaged (not a number)")
        values = np.array(words).astype(np.int64)
    _require(values.max() <= largest, "the file is damaged (a value is larger than the largest one declared)")
    return Header(height, width, grey, content, array=(values / largest).reshape(shape))


_FORMATS = (
    (rb"\x89PNG\r\n\x1a\n|\xff\xd8|BM|RIFF....WEBP", _pillow),
    (rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", _tiff),
    (rb"P[2356][\s#]", _pnm),
)
_OTHERS = (
    (rb"GIF8", "GIF"),
    (rb"P[14]\s", "black-and-white PBM"),
    (rb"P[7fF]\s", "PAM and PFM"),
    (rb"....ftyp", "HEIC, AVIF and video"),
    (rb"\0\0\0\x0cjP|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL", "JPEG XL"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?", "Radiance HDR"),
    (rb"8BPS", "Photoshop"),
    (rb"%PDF", "PDF"),
    (rb"PK", "zip"),
)
