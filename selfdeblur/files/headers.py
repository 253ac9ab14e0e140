"""What an image file says of itself, read before anything is decoded.

A decoder takes a file's word for its size, and some decoders return a picture
that is half grey for a file that was cut off. So the structure of each format
is walked through here first: is it one picture, of a bearable size, and are
all its bytes there?
"""

import re
import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

# The largest picture that is read: 16 bytes a pixel, in the worst case, have to fit into a computer's memory.
MAX_PIXELS = 1 << 26
# A decoder works through each of these in full, however short it is in the file.
_MAX_SCANS = 100
_MAX_PAGES = 100
_MAX_PAGES_WANTED = 1000
_MAX_SEGMENTS = 1 << 18
# Numbers written as text take some 40 bytes of memory each while they are read.
_MAX_WORDS = 1 << 24


class HeaderError(ValueError):
    """The file cannot be read as one picture; the message says why and does not name the file."""


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    ``orientation`` is the number that EXIF gives the eight positions of a
    camera, ``grey`` tells that there is one value a pixel, ``content`` what the
    decoder gets. ``array`` is the picture where no decoder is needed.
    """

    height: int
    width: int
    grey: bool
    content: bytes
    orientation: int = 1
    array: np.ndarray | None = None


def read_header(content):
    """Walk through the structure of an image file.

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
    if not content:
        raise HeaderError("the file is empty")
    for magic, reader in _FORMATS:
        if re.match(magic, content, re.DOTALL):
            try:
                return reader(content)
            except (struct.error, IndexError) as error:
                raise HeaderError("the file is truncated") from error
    for magic, name in _OTHERS:
        if re.match(magic, content, re.DOTALL):
            raise HeaderError(f"{name} files are not read; convert it to PNG")
    raise HeaderError("not an image, or of an unknown format (known: PNG, JPEG, TIFF, BMP, PGM, PPM, WebP)")


def _header(height, width, *, grey, content, **more):
    if height < 1 or width < 1:
        raise HeaderError(f"the image has no pixels ({width} x {height})")
    if height * width > MAX_PIXELS:
        raise HeaderError(f"{width} x {height} pixels are too many (at most {MAX_PIXELS}); scale it down or cut it")
    return Header(height, width, grey, content, **more)


def _require(condition, reason):
    if not condition:
        raise HeaderError(reason)


def _several(count, kind):
    _require(count == 1, f"{kind} of {count} pictures; save the one to use as a file of its own")


# PNG


def _png(content):
    kept, at, kinds, orientation = [content[:8]], 8, [], 1
    while b"IEND" not in kinds[-1:]:
        _require(len(kinds) < _MAX_SEGMENTS, "the file is damaged (too many chunks)")
        length, kind = struct.unpack_from(">L4s", content, at)
        end = at + 12 + length
        _require(end <= len(content), "the file is truncated")
        data = content[at + 8 : end - 4]
        checksum = struct.unpack_from(">L", content, end - 4)[0]
        _require(zlib.crc32(content[at + 4 : end - 4]) == checksum, "the file is damaged (a checksum does not match)")
        if not kinds:
            _require(kind == b"IHDR" and length == 13, "the file is damaged (no PNG header)")
            width, height, depth, colour = struct.unpack_from(">LLBB", data)
        if kind == b"acTL" and length >= 4:
            _several(struct.unpack_from(">L", data)[0], "an animation")
        if kind == b"eXIf":
            orientation = _exif_orientation(data)
        # All else is dropped: what it says of transparency, gamma and profiles must not change the values.
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(content[at:end])
        kinds.append(kind)
        at = end
    _require(b"IDAT" in kinds, "the file is damaged (no image data)")
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    _require(depth in depths.get(colour, ()), "the file is damaged (no such kind of PNG)")
    return _header(height, width, grey=colour in (0, 4), content=b"".join(kept), orientation=orientation)


# JPEG

# Markers that stand alone, and FF 00, which is a value and no marker, are passed over.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


def _jpeg(content):
    at, size, segments, scans, orientation = 2, None, 0, 0, 1
    while True:
        match = _MARKER.search(content, at)
        _require(match, "the file is truncated")
        marker, at = match[1][0], match.end()
        if marker == 0xD9:
            break
        segments += 1
        _require(segments <= _MAX_SEGMENTS, "the file is damaged (too many segments)")
        (length,) = struct.unpack_from(">H", content, at)
        data = content[at + 2 : at + length]
        _require(length >= 2 and at + length <= len(content), "the file is truncated")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _require(size is None, "the file is damaged (two headers)")
            depth, *size, channels = struct.unpack_from(">BHHB", data)
            _require(depth == 8, f"a JPEG of {depth} bits a value is not read; convert it to PNG")
            _require(channels != 4, "a JPEG in CMYK, the colours of a printer; convert it to RGB")
            _require(channels in (1, 3), f"a JPEG of {channels} channels is not read; convert it to PNG")
        if marker == 0xE1 and data.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(data[6:])
        if marker == 0xDA:
            scans += 1
            _require(scans <= _MAX_SCANS, "the file is damaged (too many scans)")
        at += length
    _require(size is not None and scans > 0, "the file is truncated")
    return _header(*size, grey=channels == 1, content=content, orientation=orientation)


# TIFF, and EXIF, which is a TIFF without a picture


class _Ifd:
    """The entries of one image file directory."""

    _types = {1: "B", 3: "H", 4: "L", 16: "Q"}  # noqa: RUF012

    def __init__(self, content, at):
        self.content = content
        self.order = {b"II": "<", b"MM": ">"}[bytes(content[:2])]
        big = struct.unpack_from(self.order + "H", content, 2)[0] == 43
        count = struct.unpack_from(self.order + ("Q" if big else "H"), content, at)[0]
        at += 8 if big else 2
        _require(count <= 4096, "the file is damaged (too many entries)")
        self.places = {}
        for _ in range(count):
            tag, kind, number = struct.unpack_from(self.order + ("HHQ" if big else "HHL"), content, at)
            place = at + (12 if big else 8)
            if kind in self._types:
                if number * struct.calcsize("=" + self._types[kind]) > (8 if big else 4):
                    place = struct.unpack_from(self.order + ("Q" if big else "L"), content, place)[0]
                # libtiff, too, takes the first of two entries of one tag.
                self.places.setdefault(tag, (self._types[kind], number, place))
            at += 20 if big else 12
        self.next_place = at
        self.next = struct.unpack_from(self.order + ("Q" if big else "L"), content, at)[0]

    def get(self, tag, default=()):
        """Values of a tag, an array of int64, or ``default``."""
        if tag not in self.places:
            return np.array(default, np.int64)
        kind, number, place = self.places[tag]
        dtype = np.dtype(self.order + {"B": "u1", "H": "u2", "L": "u4", "Q": "u8"}[kind])
        _require(place + number * dtype.itemsize <= len(self.content), "the file is truncated")
        values = np.frombuffer(self.content, dtype, number, place)
        _require(number == 0 or values.max() < 1 << 62, "the file is damaged (a number is too large)")
        return values.astype(np.int64)

    def one(self, tag, default):
        values = self.get(tag)
        return int(values[0]) if len(values) else default


def _first_ifd(content):
    order = {b"II": "<", b"MM": ">"}[bytes(content[:2])]
    if struct.unpack_from(order + "H", content, 2)[0] == 43:
        return struct.unpack_from(order + "Q", content, 8)[0]
    return struct.unpack_from(order + "L", content, 4)[0]


def _exif_orientation(data):
    """Orientation noted in a block of EXIF, 1 if there is none that makes sense."""
    try:
        orientation = _Ifd(data, _first_ifd(data)).one(274, 1)
    except (struct.error, HeaderError, KeyError):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


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
    try:
        first = _Ifd(data, _first_ifd(data))
        patched = bytearray(data)
        turned = first.one(274, 1) > 4
        _patch(patched, first, 274, 1)
        if turned and (at := first.one(34665, 0)):  # sizes, which programs show, change places
            sizes = _Ifd(data, at)
            width, height = sizes.one(40962, 0), sizes.one(40963, 0)
            if width and height:
                _patch(patched, sizes, 40962, height)
                _patch(patched, sizes, 40963, width)
        struct.pack_into(first.order + "L", patched, first.next_place, 0)
    except (struct.error, HeaderError, KeyError, IndexError):
        return data
    return bytes(patched)


# None, LZW, JPEG, Deflate (two numbers), PackBits. Of others some decoders make noise without a word.
_TIFF_COMPRESSIONS = (1, 5, 7, 8, 32946, 32773)


def read_tiff_pages(content):
    """Walk through the structure of a TIFF of one or several pages, previews left out.

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
    try:
        pages = [page for page in _tiff_directories(content, _MAX_PAGES_WANTED) if not page.one(254, 0) & 1]
        _require(pages, "the file has no page of full size")
        headers = [_tiff_page(content, page) for page in pages]
    except (struct.error, IndexError) as error:
        raise HeaderError("the file is truncated") from error
    total = sum(header.height * header.width for header in headers)
    if total > MAX_PIXELS:
        raise HeaderError(f"{len(headers)} pages of {total} pixels are too many (at most {MAX_PIXELS}); split the file")
    patched = bytearray(content)
    for page in pages:
        _patch_tiff(patched, page)
    patched = bytes(patched)
    return [replace(header, content=patched) for header in headers]


def _tiff_directories(content, most=_MAX_PAGES):
    at, pages, seen = _first_ifd(content), [], set()
    while at:
        _require(at not in seen and len(seen) < most, "the file is damaged (too many pages)")
        _require(at < len(content), "the file is truncated")
        seen.add(at)
        pages.append(_Ifd(content, at))
        at = pages[-1].next
    _require(pages, "the file is truncated")
    return pages


def _tiff(content):
    pages = _tiff_directories(content)
    # Bit 0: a smaller version of another page, as cameras add for a preview.
    _several(1 + sum(not page.one(254, 0) & 1 for page in pages[1:]), "a TIFF")
    page = pages[0]
    separate = page.one(284, 1) == 2 and page.one(277, 1) > 1
    # The decoder would mix up the planes, without a word.
    _require(
        not separate or page.one(258, 1) == 8, "a TIFF of separate colour planes; save it with interleaved colours"
    )
    patched = bytearray(content)
    _patch_tiff(patched, page)
    return replace(_tiff_page(content, page), content=bytes(patched))


def _tiff_page(content, page):
    width, height = page.one(256, 0), page.one(257, 0)
    header = _header(height, width, grey=False, content=content)  # checks the size before anything depends on it

    bits, formats = set(page.get(258, [1]).tolist()), set(page.get(339, [1]).tolist())
    samples, photometric = page.one(277, 1), page.one(262, -1)
    kinds = {0: "a grey image", 1: "a grey image", 2: "an RGB image", 3: "a palette image", 6: "a YCbCr image"}
    _require(photometric in kinds, "a TIFF in CMYK, Lab or other unusual colours; convert it to RGB")
    # White as 0 in more than 8 bits is what the decoder forgets to turn round.
    allowed = {0: {1, 8}, 1: {1, 8, 16, 32}, 2: {8, 16, 32}, 3: {1, 4, 8}, 6: {8}}[photometric]
    if formats == {3}:
        allowed = {32, 64} if photometric in (1, 2) else set()
    _require(
        len(bits) == 1 and bits <= allowed,
        f"a TIFF of {'/'.join(map(str, sorted(bits)))} bits a value is not read as {kinds[photometric]}; "
        "convert it to 8 or 16 bits",
    )
    _require(formats in ({1}, {3}), "a TIFF of signed or complex numbers; convert it to 8 or 16 bits")
    _require(page.one(259, 1) in _TIFF_COMPRESSIONS, "a TIFF of an unusual compression; convert it to PNG")
    channels = (3, 4) if photometric in (2, 6) else (1, 2)
    _require(samples in channels, f"a TIFF of {samples} channels is not read as {kinds[photometric]}")

    tiled = 324 in page.places
    offsets, lengths = (page.get(324), page.get(325)) if tiled else (page.get(273), page.get(279))
    rows, columns = (page.one(323, 0), page.one(322, 0)) if tiled else (min(page.one(278, height), height), width)
    _require(0 < rows * columns <= MAX_PIXELS, "the file is damaged (its strips or tiles have no sensible size)")
    parts = -(-height // rows) * -(-width // columns) * (samples if page.one(284, 1) == 2 else 1)
    _require(len(offsets) == len(lengths) >= parts, "the file is damaged (strips or tiles are missing)")
    _require(lengths.min() > 0 and (offsets + lengths).max() <= len(content), "the file is truncated")
    if page.one(259, 1) == 1 and photometric != 6:
        _require(lengths.sum() * 8 >= height * width * samples * max(bits), "the file is truncated")

    orientation = page.one(274, 1)
    return replace(header, grey=photometric in (0, 1), orientation=orientation if 1 <= orientation <= 8 else 1)


def _patch_tiff(content, page):
    # The decoder would multiply the colours with alpha unless they are declared to be so already ...
    _patch(content, page, 338, 1)
    # ... and some versions of it turn the image and some do not.
    _patch(content, page, 274, 1)


def _patch(content, page, tag, value):
    if tag in page.places:
        kind, number, place = page.places[tag]
        for i in range(min(number, 4)):
            struct.pack_into(page.order + kind, content, place + i * struct.calcsize("=" + kind), value)


# BMP


def _bmp(content):
    _, offset, size = struct.unpack_from("<L4xLL", content, 2)
    _require(size != 12, "a BMP of OS/2; convert it to PNG")
    _require(size in (40, 52, 56, 64, 108, 124), "the file is damaged (no BMP header)")
    width, height, planes, bits, compression = struct.unpack_from("<llHHL", content, 18)
    _require(width > 0, f"the image has no pixels ({width} x {abs(height)})")
    kinds = {0: (1, 4, 8, 16, 24, 32), 1: (8,), 2: (4,), 3: (16, 32)}
    _require(planes == 1 and bits in kinds.get(compression, ()), "a BMP of an unusual kind; convert it to PNG")
    header = _header(abs(height), width, grey=False, content=content)
    if compression in (0, 3):
        _require(offset + (width * bits + 31) // 32 * 4 * abs(height) <= len(content), "the file is truncated")
    return header


# PGM and PPM


def _pnm(content):
    kind = content[1:2]
    fields, at = [], 2
    while len(fields) < 3:
        match = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})(?=[\s#])").match(content, at)
        _require(match, "the file is truncated or its PGM/PPM header is damaged")
        fields.append(int(match[1]))
        at = match.end()
    width, height, largest = fields
    channels = 3 if kind in b"36" else 1
    header = _header(height, width, grey=channels == 1, content=content)
    _require(0 < largest < 65536, "the file is damaged (largest value not in 1 to 65535)")
    number = width * height * channels
    if kind in b"56":
        dtype = np.dtype("u1" if largest < 256 else ">u2")
        _require(at + 1 + number * dtype.itemsize <= len(content), "the file is truncated")
        values = np.frombuffer(content, dtype, number, at + 1)
    else:
        _require(number <= _MAX_WORDS, "too large for a PGM/PPM file in text form; convert it to PNG")
        words = re.sub(rb"#[^\r\n]*", b"", content[at:]).split(maxsplit=number)[:number]
        _require(len(words) == number, "the file is truncated")
        _require(all(w.isdigit() and len(w) < 6 for w in words), "the file is damaged (not a number)")
        values = np.array(words).astype(np.int64)
    _require(values.max() <= largest, "the file is damaged (a value is larger than the largest one declared)")
    shape = (height, width, 3) if channels == 3 else (height, width)
    return Header(height, width, header.grey, content, array=(values / largest).reshape(shape))


# WebP


def _webp(content):
    end = 8 + struct.unpack_from("<L", content, 4)[0]
    _require(end <= len(content), "the file is truncated")
    at, size, canvas, orientation = 12, None, None, 1
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sL", content, at)
        data = content[at + 8 : at + 8 + length]
        _require(at + 8 + length <= end, "the file is truncated")
        if kind == b"VP8X":
            _require(not data[0] & 2, "an animation; save the picture to use as a file of its own")
            canvas = tuple(1 + int.from_bytes(data[i : i + 3].ljust(3, b"\0"), "little") for i in (7, 4))
        elif kind == b"VP8 " and size is None:
            _require(data[3:6] == b"\x9d\x01\x2a", "the file is damaged (no VP8 header)")
            size = tuple(v & 0x3FFF for v in struct.unpack_from("<HH", data, 6)[::-1])
        elif kind == b"VP8L" and size is None:
            signature, packed = struct.unpack_from("<BL", data)
            _require(signature == 0x2F, "the file is damaged (no VP8L header)")
            size = ((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1)
        elif kind == b"EXIF":
            orientation = _exif_orientation(data.removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    _require(size is not None, "the file is truncated")
    _require(canvas in (None, size), "the file is damaged (two sizes)")
    return _header(*size, grey=False, content=content, orientation=orientation)


_FORMATS = (
    (rb"\x89PNG\r\n\x1a\n", _png),
    (rb"\xff\xd8", _jpeg),
    (rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", _tiff),
    (rb"BM", _bmp),
    (rb"P[2356][\s#]", _pnm),
    (rb"RIFF....WEBP", _webp),
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
