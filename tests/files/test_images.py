"""Image and kernel files: odd ones are read correctly, malformed ones refused in one line.

Each case of the table ``ODD`` gives the bytes of a file and what has to come
out; each case of ``MALFORMED`` the bytes of a file that has to be refused.
"""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from common import ROOT
from fuzzing import EDITS, FUZZ, edit
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfdeblur.errors import UserError
from selfdeblur.files.headers import MAX_PIXELS
from selfdeblur.files.images import SUFFIXES, find_images, read_image, write_image
from selfdeblur.files.kernels import read_kernel


def _smooth(height=40, width=56):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 2)


RGB = _smooth()
GREY = RGB[..., 1].copy()
RGB16 = RGB.astype(np.uint16) * 257 + 3
GREY16 = RGB16[..., 1].copy()
ALPHA = np.random.default_rng(1).integers(0, 256, GREY.shape, dtype=np.uint8)


# Files made by hand


def chunk(kind, data):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_of(width, height, depth, colour, raw, *, extra=b"", interlace=0, compressed=None):
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, interlace))
    data = zlib.compress(raw) if compressed is None else compressed
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png(array, colour, *, extra=b""):
    depth = 8 * array.dtype.itemsize
    big_endian = array.astype(array.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in big_endian)
    return png_of(array.shape[1], array.shape[0], depth, colour, raw, extra=extra)


def png_of_bits(depth, values, *, colour=0, extra=b""):
    bits = np.unpackbits(values[..., None], axis=2)[..., 8 - depth :].reshape(len(values), -1)
    raw = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    return png_of(values.shape[1], values.shape[0], depth, colour, raw, extra=extra)


def interlaced(array):
    """Rows of the seven passes of Adam7, each with filter 0."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(b"\0" + row.tobytes() for r, c, dr, dc in passes for row in array[r::dr, c::dc])


def pillow(array, kind, **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    options.setdefault("photometric", "rgb" if array.ndim == 3 else "minisblack")
    options.setdefault("metadata", None)
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def tiff_pages(*pages):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for array, subfile in pages:
            writer.write(array, subfiletype=subfile, photometric="minisblack", metadata=None)
    return file.getvalue()


def exif(orientation, *, order="<"):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "LHHHLHHL", 8, 1, 274, 3, 1, orientation, 0, 0)


def pillow_exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data


def bmp(width, height, bits, rows, *, compression=0, palette=b"", size=40, offset=None):
    offset = 14 + size + len(palette) if offset is None else offset
    header = struct.pack("<2sLLL", b"BM", offset + len(rows), 0, offset)
    if size == 12:
        header += struct.pack("<LHHHH", 12, width, height, 1, bits)
    else:
        header += struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, compression, len(rows), 0, 0, 0, 0)
    return header + palette + rows


def bmp_rows(array):
    stride = -(-array.shape[1] * 3 // 4) * 4
    return b"".join(row.tobytes().ljust(stride, b"\0") for row in array[::-1, :, ::-1])


def webp_chunk(kind, data):
    return kind + struct.pack("<L", len(data)) + data + b"\0" * (len(data) % 2)


def webp_of(*chunks):
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def turned(array, orientation):
    """The array as it was photographed, from how a camera held that way stored it (EXIF 2.3, table 6)."""
    flip, quarter = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}[
        orientation
    ]
    return np.rot90(array[:, ::-1] if flip else array, quarter)


def _palette():
    colours = np.random.default_rng(2).integers(0, 256, (16, 3), dtype=np.uint8)
    index = (GREY // 16).astype(np.uint8)
    return colours, index


COLOURS, INDEX = _palette()
QUANTIZED = Image.fromarray(RGB).quantize(16)
PLTE = chunk(b"PLTE", COLOURS.tobytes())

# name -> (bytes, the array that comes out, largest difference allowed)
ODD = {
    "png grey 1 bit": (png_of_bits(1, GREY >> 7), (GREY >> 7) / 1, 0),
    "png grey 2 bits": (png_of_bits(2, GREY >> 6), (GREY >> 6) / 3, 0),
    "png grey 4 bits": (png_of_bits(4, GREY >> 4), (GREY >> 4) / 15, 0),
    "png grey 8 bits": (png(GREY, 0), GREY / 255, 0),
    "png grey 16 bits": (png(GREY16, 0), GREY16 / 65535, 0),
    "png rgb 8 bits": (png(RGB, 2), RGB / 255, 0),
    "png rgb 16 bits": (png(RGB16, 2), RGB16 / 65535, 0),
    "png rgba 8 bits": (png(np.dstack([RGB, ALPHA]), 6), RGB / 255, 0),
    "png rgba 16 bits": (png(np.dstack([RGB16, ALPHA * np.uint16(257)]), 6), RGB16 / 65535, 0),
    "png grey and alpha 8 bits": (png(np.dstack([GREY, ALPHA]), 4), GREY / 255, 0),
    "png grey and alpha 16 bits": (png(np.dstack([GREY16, ALPHA * np.uint16(257)]), 4), GREY16 / 65535, 0),
    "png palette 4 bits": (png_of_bits(4, INDEX, colour=3, extra=PLTE), COLOURS[INDEX] / 255, 0),
    "png palette 8 bits": (png(INDEX, 3, extra=PLTE), COLOURS[INDEX] / 255, 0),
    "png palette with alpha": (png(INDEX, 3, extra=PLTE + chunk(b"tRNS", b"\0\x80" * 8)), COLOURS[INDEX] / 255, 0),
    "png grey with a transparent value": (png(GREY, 0, extra=chunk(b"tRNS", b"\0\x80")), GREY / 255, 0),
    "png rgb with a transparent value": (png(RGB, 2, extra=chunk(b"tRNS", b"\0\1\0\2\0\3")), RGB / 255, 0),
    "png with gamma": (png(RGB, 2, extra=chunk(b"gAMA", struct.pack(">L", 100000))), RGB / 255, 0),
    "png with a senseless profile": (png(RGB, 2, extra=chunk(b"iCCP", b"x\0\0nonsense")), RGB / 255, 0),
    "png with a senseless comment": (png(RGB, 2, extra=chunk(b"tEXt", b"\xff" * 9)), RGB / 255, 0),
    "png with bytes after its end": (png(RGB, 2) + b"more" * 9, RGB / 255, 0),
    "png interlaced": (png_of(56, 40, 8, 2, interlaced(RGB), interlace=1), RGB / 255, 0),
    "png animation of one picture": (
        png(RGB, 2, extra=chunk(b"acTL", struct.pack(">LL", 1, 0)) + chunk(b"fcTL", b"\0" * 26)),
        RGB / 255,
        0,
    ),
    "jpeg grey": (pillow(GREY, "JPEG", quality=100), GREY / 255, 2 / 255),
    "jpeg": (pillow(RGB, "JPEG", quality=100, subsampling=0), RGB / 255, 5 / 255),
    "jpeg progressive": (pillow(RGB, "JPEG", quality=100, subsampling=0, progressive=True), RGB / 255, 5 / 255),
    "jpeg with bytes after its end": (pillow(GREY, "JPEG", quality=100) + b"more" * 9, GREY / 255, 2 / 255),
    "jpeg with padding before its end": (
        pillow(GREY, "JPEG", quality=100)[:-2] + b"\0" * 3 + b"\xff\xd9",
        GREY / 255,
        2 / 255,
    ),
    "jpeg with a senseless exif": (
        pillow(GREY, "JPEG", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        GREY / 255,
        2 / 255,
    ),
    "jpeg with orientation 9": (pillow(GREY, "JPEG", quality=100, exif=pillow_exif(9)), GREY / 255, 2 / 255),
    "jpeg with a preview behind it": (
        pillow(GREY, "MPO", quality=100, save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        GREY / 255,
        2 / 255,
    ),
    "tiff big endian": (tiff(RGB16, byteorder=">"), RGB16 / 65535, 0),
    "tiff of more than 4 GB in form": (tiff(RGB, bigtiff=True), RGB / 255, 0),
    "tiff float32": (tiff((GREY / 255).astype(np.float32)), (GREY / 255).astype(np.float32), 0),
    "tiff float32 rgb": (tiff((RGB / 255).astype(np.float32)), (RGB / 255).astype(np.float32), 0),
    "tiff float64": (tiff(GREY / 255), GREY / 255, 0),
    "tiff of planes": (tiff(np.moveaxis(RGB, 2, 0).copy(), photometric="rgb", planarconfig="separate"), RGB / 255, 0),
    "tiff deflated": (tiff(RGB, compression="zlib"), RGB / 255, 0),
    "tiff lzw": (pillow(RGB, "TIFF", compression="tiff_lzw"), RGB / 255, 0),
    "tiff packbits": (pillow(RGB, "TIFF", compression="packbits"), RGB / 255, 0),
    "tiff white is 0": (tiff(GREY, photometric="miniswhite"), 1 - GREY / 255, 1e-12),
    "tiff rgba": (tiff(np.dstack([RGB, ALPHA]), extrasamples=["unassalpha"]), RGB / 255, 0),
    "tiff rgba 16 bits": (tiff(np.dstack([RGB16, GREY16]), extrasamples=["unassalpha"]), RGB16 / 65535, 0),
    "tiff palette": (pillow(QUANTIZED, "TIFF"), np.array(QUANTIZED.convert("RGB")) / 255, 0),
    "tiff 1 bit": (pillow(Image.fromarray(GREY > 128), "TIFF"), (GREY > 128) / 1, 0),
    "tiff with a preview": (tiff_pages((GREY, 0), (GREY[::2, ::2].copy(), 1)), GREY / 255, 0),
    "bmp 24 bits": (bmp(56, 40, 24, bmp_rows(RGB)), RGB / 255, 0),
    "bmp from top to bottom": (bmp(56, -40, 24, bmp_rows(RGB[::-1])), RGB / 255, 0),
    "bmp grey palette": (pillow(GREY, "BMP"), GREY / 255, 0),
    "bmp 32 bits": (pillow(np.dstack([RGB, ALPHA]), "BMP"), RGB / 255, 0),
    "pgm": (b"P5\n56 40\n255\n" + GREY.tobytes(), GREY / 255, 0),
    "pgm with comments": (b"P5#a\n# b\n56#c\n 40 # d\r\n#\n255\n" + GREY.tobytes(), GREY / 255, 0),
    "pgm of 4 bits": (b"P5 56 40 15\n" + (GREY // 16).tobytes(), (GREY // 16) / 15, 0),
    "pgm of 10 bits": (b"P5 56 40 1023\n" + (GREY16 // 64).astype(">u2").tobytes(), (GREY16 // 64) / 1023, 0),
    "pgm of 16 bits": (b"P5 56 40 65535\n" + GREY16.astype(">u2").tobytes(), GREY16 / 65535, 0),
    "ppm": (b"P6 56 40 255\n" + RGB.tobytes(), RGB / 255, 0),
    "pgm as text": (b"P2 56 40 255\n" + " ".join(map(str, GREY.ravel())).encode(), GREY / 255, 0),
    "ppm as text": (b"P3 56 40 255\n" + "\n".join(map(str, RGB.ravel())).encode() + b"\n", RGB / 255, 0),
    "webp without loss": (pillow(RGB, "WEBP", lossless=True), RGB / 255, 0),
    "webp with alpha": (pillow(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True), RGB / 255, 0),
    "webp with loss": (pillow(RGB, "WEBP", quality=100), RGB / 255, 0.15),
    "png 1 x 1": (png(GREY[:1, :1], 0), GREY[:1, :1] / 255, 0),
    "jpeg 1 x 1": (pillow(GREY[:1, :1], "JPEG", quality=100), GREY[:1, :1] / 255, 2 / 255),
    "png 65535 x 1": (png(np.full((1, 65535), 7, np.uint8), 0), np.full((1, 65535), 7 / 255), 0),
    "png 1 x 65535": (png(np.full((65535, 1), 7, np.uint8), 0), np.full((65535, 1), 7 / 255), 0),
    "jpeg 65500 x 1": (
        pillow(np.full((1, 65500), 7, np.uint8), "JPEG", quality=100),
        np.full((1, 65500), 7 / 255),
        2 / 255,
    ),
    "tiff 65535 x 1": (tiff(np.full((1, 65535), 7, np.uint8)), np.full((1, 65535), 7 / 255), 0),
}
for _n in range(1, 9):
    ODD[f"png with orientation {_n}"] = (png(RGB, 2, extra=chunk(b"eXIf", exif(_n))), turned(RGB, _n) / 255, 0)
    ODD[f"tiff with orientation {_n}"] = (tiff(RGB, extratags=[(274, "H", 1, _n, True)]), turned(RGB, _n) / 255, 0)
    ODD[f"tiff of 16 bits with orientation {_n}"] = (
        tiff(GREY16, extratags=[(274, "H", 1, _n, True)]),
        turned(GREY16, _n) / 65535,
        0,
    )
    ODD[f"jpeg with orientation {_n}"] = (
        pillow(GREY, "JPEG", quality=100, exif=pillow_exif(_n)),
        turned(GREY, _n) / 255,
        2 / 255,
    )
    ODD[f"webp with orientation {_n}"] = (
        pillow(RGB, "WEBP", lossless=True, exif=pillow_exif(_n)),
        turned(RGB, _n) / 255,
        0,
    )
ODD["png with orientation in big endian"] = (
    png(RGB, 2, extra=chunk(b"eXIf", exif(6, order=">"))),
    turned(RGB, 6) / 255,
    0,
)

_LAST = chunk(b"IEND", b"")
ODD["png with orientation behind its data"] = (
    png(RGB, 2).removesuffix(_LAST) + chunk(b"eXIf", exif(6)) + _LAST,
    turned(RGB, 6) / 255,
    0,
)

# Files that are cut off, at each part of their headers and in their data.
WHOLE = {
    "png": png(RGB, 2),
    "palette png": png(INDEX, 3, extra=PLTE),
    "jpeg": pillow(RGB, "JPEG"),
    "progressive jpeg": pillow(RGB, "JPEG", progressive=True),
    "tiff": tiff(RGB),
    "deflated tiff": tiff(RGB16, compression="zlib"),
    "big tiff": tiff(GREY, bigtiff=True),
    "bmp": bmp(56, 40, 24, bmp_rows(RGB)),
    "pgm": b"P5\n56 40\n255\n" + GREY.tobytes(),
    "ppm": b"P6\n56 40\n65535\n" + RGB16.astype(">u2").tobytes(),
    "text pgm": b"P2\n56 40\n255\n" + b"".join(b"%03d\n" % v for v in GREY.ravel()) + b"#\n",
    "webp": pillow(RGB, "WEBP"),
    "webp without loss": pillow(RGB, "WEBP", lossless=True),
    "extended webp": pillow(RGB, "WEBP", exif=pillow_exif(6)),
}
PLACES = (1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 33, 41, 60, 100, 160, 300, 600)


def cuts():
    found = {}
    for name, content in WHOLE.items():
        size = len(content)
        # The last number of a text may be cut short and still be one.
        late = (size // 2, size - 300, size - 13) + (() if name == "text pgm" else (size - 2, size - 1))
        for at in sorted({n for n in (*PLACES, *late) if 0 < n < size}):
            if content[:at] not in found.values():
                found[f"{name} cut at {at}"] = content[:at]
    return found


CUTS = cuts()


def edited(content, at, new):
    return content[:at] + new + content[at + len(new) :]


def without_end(content):
    """A PNG before its last chunk."""
    return content[:-12]


def jpeg_segments(content):
    """Places of the markers of a JPEG before its data: marker -> place of the FF."""
    at, places = 2, {}
    while content[at + 1] != 0xDA:
        places.setdefault(content[at + 1], at)
        at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    places[0xDA] = at
    return places


JPEG = pillow(RGB, "JPEG", quality=90)
SOF, SOS = jpeg_segments(JPEG)[0xC0], jpeg_segments(JPEG)[0xDA]
LARGE_RGB = _smooth(240, 256)
LARGE = pillow(LARGE_RGB, "JPEG", quality=90)
PROGRESSIVE = pillow(LARGE_RGB, "JPEG", quality=90, progressive=True)
LAST_SCAN = PROGRESSIVE.rindex(b"\xff\xda")


def tiff_tag(content, tag, value, *, number=None):
    """A little-endian TIFF in which the first directory's entry for a tag has another value, and number of values."""
    at = struct.unpack_from("<L", content, 4)[0]
    for i in range(struct.unpack_from("<H", content, at)[0]):
        place = at + 2 + 12 * i
        if struct.unpack_from("<H", content, place)[0] == tag:
            if number is not None:
                content = edited(content, place + 4, struct.pack("<L", number))
            kind = {1: "<B", 3: "<H", 4: "<L"}[struct.unpack_from("<H", content, place + 2)[0]]
            return edited(content, place + 8, struct.pack(kind, value))
    raise AssertionError(f"no tag {tag}")


def tiff_first(content):
    return struct.unpack_from("<L", content, 4)[0]


TIFF = tiff(GREY, rowsperstrip=8)
TIFF_ONE = tiff(GREY)
TIFF_TURNED = tiff(GREY, extratags=[(274, "H", 1, 6, True)])
TIFF_NEXT = tiff_first(TIFF_ONE) + 2 + 12 * struct.unpack_from("<H", TIFF_ONE, tiff_first(TIFF_ONE))[0]
WEBP = pillow(RGB, "WEBP")
LOSSLESS = pillow(RGB, "WEBP", lossless=True)
NOISE = np.random.default_rng(3).bytes(3000)
FLOAT = (GREY / 255).astype(np.float32)


def with_value(value):
    array = FLOAT.copy()
    array[3, 4] = value
    return array


MALFORMED = {
    "nothing": b"",
    "zeros": bytes(1000),
    "noise": NOISE,
    "text": b"this is no image\n" * 50,
    "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "pickle": pickle.dumps([1, 2]),
    # Other formats
    "gif": pillow(GREY, "GIF"),
    "gif animation": pillow(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
    "jpeg 2000": pillow(RGB, "JPEG2000"),
    "pbm as text": b"P1 2 2 0 1 1 0",
    "pbm": b"P4 8 2 \x55\xaa",
    "pam": b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\n\0",
    "pfm": b"Pf\n1 1\n-1.0\n\0\0\0\0",
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n\0\0\0\0",
    "heic": b"\0\0\0\x18ftypheic" + bytes(99),
    "avif": b"\0\0\0\x18ftypavif" + bytes(99),
    "exr": b"\x76\x2f\x31\x01" + bytes(99),
    "psd": b"8BPS\0\x01" + bytes(99),
    "pdf": b"%PDF-1.7\n",
    "zip": b"PK\3\4" + bytes(99),
    "jpeg xl": b"\xff\x0a" + bytes(99),
    "sun raster": b"\x59\xa6\x6a\x95" + bytes(99),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    # Magic and no more
    "png magic and noise": b"\x89PNG\r\n\x1a\n" + NOISE,
    "jpeg magic and noise": b"\xff\xd8\xff\xe0" + NOISE,
    "tiff magic and noise": b"II*\0" + NOISE,
    "big tiff magic and noise": b"MM\0+" + NOISE,
    "bmp magic and noise": b"BM" + NOISE,
    "pgm magic and noise": b"P5\n" + NOISE,
    "webp magic and noise": b"RIFF\x10\0\0\0WEBP" + NOISE,
    # PNG
    "png with line ends turned": b"\x89PNG\n\x1a\n" + png(RGB, 2)[8:],
    "png 0 x 0": png_of(0, 0, 8, 0, b""),
    "png 0 x 5": png_of(0, 5, 8, 0, b"\0" * 5),
    "png 5 x 0": png_of(5, 0, 8, 0, b""),
    "png of 2**31 - 1 squared": png_of(2**31 - 1, 2**31 - 1, 8, 0, b"\0"),
    "png of 2**32 - 1 squared": png_of(2**32 - 1, 2**32 - 1, 8, 0, b"\0"),
    "png that declares 60000 x 60000": png_of(60000, 60000, 8, 2, bytes(1000)),
    "png bomb": png_of(8193, 8192, 8, 0, bytes(8194 * 8192)),
    "png that declares 8000 x 8000 and has no data": png_of(8000, 8000, 16, 6, b""),
    "png without data chunk": without_end(png_of(5, 5, 8, 0, b"")).replace(chunk(b"IDAT", zlib.compress(b"")), b"")
    + chunk(b"IEND", b""),
    "png with empty data": png_of(56, 40, 8, 2, b"", compressed=b""),
    "png with noise as data": png_of(56, 40, 8, 2, b"", compressed=NOISE),
    "png with half the rows": png_of(56, 40, 8, 2, b"\0" * (169 * 20)),
    "png with data cut off": png_of(56, 40, 8, 2, b"", compressed=zlib.compress(NOISE * 3)[:-400]),
    "png with a wrong sum of the data": png_of(5, 5, 8, 0, b"", compressed=zlib.compress(bytes(30))[:-1] + b"\xee"),
    "png with a filter that does not exist": png_of(5, 5, 8, 0, b"\x09" * 30),
    "png with a wrong sum in its header": edited(png(RGB, 2), 29, b"\1\2\3\4"),
    "png with another width than summed": edited(png(RGB, 2), 16, b"\0\0\0\x39"),
    "png with a wrong sum in its data": edited(png(RGB, 2), len(png(RGB, 2)) - 16, b"\1\2\3\4"),
    "png with a flipped bit": edited(png(RGB, 2), 500, bytes([png(RGB, 2)[500] ^ 4])),
    "png with zeros from the middle on": edited(png(RGB, 2), 3000, bytes(len(png(RGB, 2)) - 3000)),
    "png with a wrong sum in a comment": edited(png(RGB, 2, extra=chunk(b"tEXt", b"abc")), 44, b"\1"),
    "png without header": png(RGB, 2)[:8] + png(RGB, 2)[33:],
    "png with a short header": png(RGB, 2)[:8] + chunk(b"IHDR", bytes(12)) + png(RGB, 2)[33:],
    "png of colour type 5": png_of(56, 40, 8, 5, bytes(9999)),
    "png of 3 bits": png_of(56, 40, 3, 0, bytes(9999)),
    "png rgb of 4 bits": png_of(56, 40, 4, 2, bytes(9999)),
    "png of interlace 7": png_of(56, 40, 8, 2, bytes(9999), interlace=7),
    "png palette without palette": png(INDEX, 3),
    "png with a palette of 5 bytes": png(INDEX, 3, extra=chunk(b"PLTE", b"12345")),
    "png with an endless chunk": png(RGB, 2)[:33] + b"\xff\xff\xff\xffIDAT" + NOISE,
    "png of a million chunks": png(RGB, 2)[:33] + chunk(b"tEXt", b"") * 300000 + png(RGB, 2)[33:],
    "png animation": pillow(RGB, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    "png animation of 2**32 - 1 pictures": png(RGB, 2, extra=chunk(b"acTL", b"\xff" * 8)),
    # JPEG
    "jpeg that ends at once": b"\xff\xd8\xff\xd9",
    "jpeg without scan": JPEG[:SOS] + b"\xff\xd9",
    "jpeg without header": JPEG[:SOF] + JPEG[SOS:],
    "jpeg with two headers": JPEG[:SOF] + JPEG[SOF:SOS] + JPEG[SOF:],
    "jpeg 0 wide": edited(JPEG, SOF + 7, b"\0\0"),
    "jpeg 0 high": edited(JPEG, SOF + 5, b"\0\0"),
    "jpeg that declares 65535 x 65535": edited(JPEG, SOF + 5, b"\xff\xff\xff\xff"),
    "jpeg that declares 8000 x 8000": edited(JPEG, SOF + 5, struct.pack(">HH", 8000, 8000)),
    "jpeg of 12 bits": edited(JPEG, SOF + 4, b"\x0c"),
    "jpeg of 2 channels": edited(JPEG, SOF + 9, b"\2"),
    "jpeg of 255 channels": edited(JPEG, SOF + 9, b"\xff"),
    "jpeg cmyk": pillow(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "jpeg of a kind without loss": edited(JPEG, SOF + 1, b"\xc3"),
    "jpeg of a hierarchical kind": edited(JPEG, SOF + 1, b"\xc5"),
    "jpeg with an empty segment": edited(JPEG, 4, b"\0\0"),
    "jpeg with a segment beyond its end": edited(JPEG, 4, b"\xff\xff"),
    "jpeg with senseless tables": edited(JPEG, jpeg_segments(JPEG)[0xC4] + 5, b"\xff" * 16),
    "jpeg with zeros from the middle on": edited(LARGE, len(LARGE) // 2, bytes(len(LARGE) // 2)),
    "jpeg with zeros from the middle to its end mark": edited(LARGE, len(LARGE) // 2, bytes(len(LARGE) // 2 - 2)),
    "jpeg with the middle cut out": LARGE[: len(LARGE) // 2] + LARGE[-2:],
    "jpeg with a preview in it, cut off": pillow(LARGE_RGB, "JPEG", exif=b"Exif\0\0" + JPEG)[:-2],
    "jpeg with a scan of nothing": LARGE[: jpeg_segments(LARGE)[0xDA] + 14] + LARGE[-2:],
    "progressive jpeg with zeros to its end mark": edited(
        PROGRESSIVE, LAST_SCAN + 40, bytes(len(PROGRESSIVE) - LAST_SCAN - 42)
    ),
    "progressive jpeg of 1000 scans": PROGRESSIVE[:-2] + PROGRESSIVE[LAST_SCAN:-2] * 1000 + PROGRESSIVE[-2:],
    "jpeg of a million FF": JPEG[:SOS] + b"\xff" * 1000000,
    "jpeg of 300000 segments": JPEG[:2] + b"\xff\xfe\0\2" * 300000 + JPEG[2:],
    # TIFF
    "tiff with a NaN": tiff(with_value(np.nan)),
    "tiff with an infinity": tiff(with_value(np.inf)),
    "tiff with a negative infinity": tiff(with_value(-np.inf)),
    "tiff with a NaN of double precision": tiff(with_value(np.nan).astype(np.float64)),
    "tiff with a NaN in colour": tiff(np.dstack([FLOAT, FLOAT, with_value(np.nan)])),
    "tiff of floats up to 255": tiff(FLOAT * 255),
    "tiff of negative floats": tiff(-FLOAT),
    "tiff of huge floats": tiff(with_value(3e38)),
    "tiff of half floats": tiff(FLOAT.astype(np.float16)),
    "tiff int8": tiff((GREY // 2).astype(np.int8)),
    "tiff int16": tiff(GREY16.astype(np.int16)),
    "tiff int32": tiff(GREY16.astype(np.int32)),
    "tiff uint64": tiff(GREY16.astype(np.uint64)),
    "tiff of complex numbers": tiff(FLOAT.astype(np.complex64)),
    "tiff cmyk": tiff(np.dstack([RGB, ALPHA]), photometric="separated"),
    "tiff lab": pillow(Image.fromarray(RGB).convert("RGB"), "TIFF").replace(
        struct.pack("<HHLH", 262, 3, 1, 2), struct.pack("<HHLH", 262, 3, 1, 8)
    ),
    "tiff of 5 channels": tiff(np.dstack([RGB, ALPHA, ALPHA]), photometric="rgb", planarconfig="contig"),
    "tiff of 12 bits": tiff_tag(TIFF, 258, 12),
    "tiff of 0 bits": tiff_tag(TIFF, 258, 0),
    "tiff white is 0 of 16 bits": tiff(GREY16, photometric="miniswhite"),
    "tiff of pages": tiff_pages((GREY, 0), (255 - GREY, 0)),
    "tiff of 200 pages": tiff_pages(*[(GREY[:2, :2].copy(), 1)] * 200),
    "tiff 0 wide": tiff_tag(TIFF, 256, 0),
    "tiff 0 high": tiff_tag(TIFF, 257, 0),
    "tiff that declares 4e9 pixels of width": tiff_tag(TIFF, 256, 2**32 - 1),
    "tiff that declares 60000 x 60000": tiff_tag(tiff_tag(TIFF, 256, 60000), 257, 60000),
    "tiff that declares twice the height": tiff_tag(TIFF, 257, 80),
    "tiff that declares twice the width": tiff_tag(TIFF, 256, 112),
    "tiff with 0 rows a strip": tiff_tag(TIFF, 278, 0),
    "tiff with a strip beyond its end": tiff_tag(TIFF_ONE, 273, 2**31),
    "tiff with a strip of 4 GB": tiff_tag(TIFF_ONE, 279, 2**32 - 1),
    "tiff with an empty strip": tiff_tag(TIFF_ONE, 279, 0),
    "tiff with 2**32 - 1 strips": tiff_tag(TIFF, 273, 8, number=2**32 - 1),
    "tiff with an orientation of an unknown type": TIFF_TURNED.replace(
        struct.pack("<HHL", 274, 3, 1), struct.pack("<HHL", 274, 129, 1)
    ),
    "tiff with an orientation beyond its end": TIFF_TURNED.replace(
        struct.pack("<HHL", 274, 3, 1), struct.pack("<HHL", 274, 3, 2**30)
    ),
    "tiff with places of strips as signed bytes": tiff(RGB16, byteorder=">").replace(
        struct.pack(">HHL", 273, 4, 1), struct.pack(">HHL", 273, 6, 1)
    ),
    "tiff with too few strips": tiff_tag(TIFF, 273, 8, number=1),
    "tiff without directory": b"II*\0\0\0\0\0" + bytes(100),
    "tiff whose directory is beyond its end": b"II*\0\xff\xff\xff\x7f" + bytes(100),
    "tiff with 65535 entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(65535 * 12 + 4),
    "tiff with an empty directory": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    "tiff whose next page is the same": edited(TIFF_ONE, TIFF_NEXT, struct.pack("<L", tiff_first(TIFF_ONE))),
    "tiff whose next page is beyond its end": edited(TIFF_ONE, TIFF_NEXT, b"\xff\xff\xff\x7f"),
    "big tiff with 2**64 - 1 entries": b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 100,
    "tiff of a compression that does not exist": tiff_tag(TIFF, 259, 999),
    # BMP
    "bmp of OS/2": bmp(56, 40, 24, bmp_rows(RGB), size=12),
    "bmp 0 wide": bmp(0, 40, 24, bmp_rows(RGB)),
    "bmp 0 high": bmp(56, 0, 24, bmp_rows(RGB)),
    "bmp -5 wide": bmp(-5, 40, 24, bmp_rows(RGB)),
    "bmp of 2**31 - 1 squared": bmp(2**31 - 1, 2**31 - 1, 24, bmp_rows(RGB)),
    "bmp of height -2**31": bmp(1, -(2**31), 24, bmp_rows(RGB)),
    "bmp of 2 planes": edited(bmp(56, 40, 24, bmp_rows(RGB)), 26, b"\2"),
    "bmp of 7 bits": bmp(56, 40, 7, bmp_rows(RGB)),
    "bmp of 0 bits": bmp(56, 40, 0, bmp_rows(RGB)),
    "bmp with a jpeg in it": bmp(56, 40, 24, bmp_rows(RGB), compression=4),
    "bmp of runs cut off": bmp(56, 40, 8, b"\x05\x01\x05", compression=1, palette=bytes(1024)),
    "bmp with data beyond its end": bmp(56, 40, 24, bmp_rows(RGB), offset=2**31),
    "bmp with a header of 13 bytes": edited(bmp(56, 40, 24, bmp_rows(RGB)), 14, b"\x0d"),
    "bmp that declares 8000 x 8000": bmp(8000, 8000, 24, bmp_rows(RGB)),
    # PGM, PPM
    "pgm 0 x 0": b"P5 0 0 255\n",
    "pgm of negative width": b"P5 -5 5 255\n" + bytes(99),
    "pgm of 99999 squared": b"P5 99999 99999 255\n" + bytes(99),
    "pgm of a number of 100 digits": b"P5 " + b"9" * 100 + b" 5 255\n" + bytes(99),
    "pgm of largest value 0": b"P5 5 5 0\n" + bytes(25),
    "pgm of largest value 65536": b"P5 5 5 65536\n" + bytes(50),
    "pgm with words for numbers": b"P5 five 5 255\n" + bytes(25),
    "pgm with values above the largest": b"P5 5 5 15\n" + b"\x10" * 25,
    "pgm of one comment": b"P5 #" + b"a" * 100000,
    "pgm of comments": b"P5 " + b"#\n" * 100000,
    "text pgm with words": b"P2 2 2 255\n1 2 x 4",
    "text pgm with values below 0": b"P2 2 2 255\n1 2 -3 4",
    "text pgm with a value of 100 digits": b"P2 2 2 255\n1 2 3 " + b"9" * 100,
    "text pgm that declares 8000 x 8000": b"P2 8000 8000 255\n" + b"1 " * 100,
    # WebP
    "webp animation": pillow(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    "webp animation with one picture left": pillow(
        RGB, "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)]
    ).replace(b"ANMF", b"JUNK", 1),
    "webp without picture": webp_of(webp_chunk(b"EXIF", exif(1))),
    "webp with a picture without data": webp_of(webp_chunk(b"VP8 ", b"")),
    "webp without start code": webp_of(webp_chunk(b"VP8 ", bytes(30))),
    "webp 0 x 0": webp_of(webp_chunk(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\0\0\0\0" + bytes(30))),
    "webp without signature": webp_of(webp_chunk(b"VP8L", bytes(30))),
    "webp that declares 16384 x 16384": webp_of(webp_chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(30))),
    "webp of noise": webp_of(webp_chunk(b"VP8L", b"\x2f\x37\xc0\x09\0" + NOISE)),
    "webp of two sizes": webp_of(webp_chunk(b"VP8X", bytes(4) + b"\x09\0\0\x09\0\0"), WEBP[12:]),
    "webp with a chunk beyond its end": edited(WEBP, 16, b"\xff\xff\xff\x7f"),
    "webp of length 0": edited(WEBP, 4, bytes(4)),
} | CUTS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.png"


@pytest.fixture(autouse=True)
def quiet(capfd):
    """Nothing but our own line may reach the terminal."""
    yield
    streams = capfd.readouterr()
    assert streams.out == ""
    assert streams.err == ""


def refusal(function, path):
    with pytest.raises(UserError) as error:
        function(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) - len(str(path)) < 200
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ODD)
def test_odd_file_is_read_correctly(path, name):
    content, expected, tolerance = ODD[name]
    path.write_bytes(content)
    array = read_image(path)
    assert array.dtype == np.float64
    assert array.flags.c_contiguous
    assert array.shape == expected.shape
    assert np.abs(array - expected).max() <= tolerance


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_refused(path, name):
    path.write_bytes(MALFORMED[name])
    refusal(read_image, path)
    refusal(read_kernel, path)


def test_there_are_more_than_100_malformed_files():
    assert len(MALFORMED) - len(CUTS) > 100
    assert len(CUTS) > 100
    assert len(set(MALFORMED.values())) == len(MALFORMED)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "empty"),
        ("text", "unknown format"),
        ("gif animation", "GIF files are not read; convert it to PNG"),
        ("png cut at 100", "truncated"),
        ("jpeg cut at 600", "truncated"),
        ("tiff cut at 300", "truncated"),
        ("bmp cut at 300", "truncated"),
        ("pgm cut at 300", "truncated"),
        ("webp cut at 300", "truncated"),
        ("png with a flipped bit", "damaged"),
        ("png bomb", r"8193 x 8192 pixels are too many .at most 67108864."),
        ("png 0 x 5", "damaged"),
        ("tiff 0 wide", r"no pixels .0 x 40."),
        ("png animation", "animation of 2 pictures"),
        ("webp animation", "animation"),
        ("tiff of pages", "TIFF of 2 pictures"),
        ("jpeg cmyk", "CMYK.*convert it to RGB"),
        ("tiff with a NaN", "not finite"),
        ("tiff of floats up to 255", r"values from .* to .*; scale them to 0 to 1"),
        ("tiff int16", "signed"),
        ("jpeg with the middle cut out", "damaged"),
    ],
)
def test_refusal_says_why(path, name, words):
    path.write_bytes(MALFORMED[name])
    with pytest.raises(UserError, match=words):
        read_image(path)


@pytest.mark.skipif(
    int(cv2.__version__.split(".")[0]) < 5, reason="NOT CHECKED: this OpenCV keeps such damage to itself"
)
@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg"])
def test_tiff_that_is_damaged_in_its_data(path, compression):
    content = pillow(_smooth(240, 256), "TIFF", compression=compression)
    path.write_bytes(edited(content, len(content) // 2, bytes(300)))
    assert "damaged" in refusal(read_image, path)


def test_suffix_does_not_matter(tmp_path):
    for suffix in SUFFIXES:
        path = tmp_path / f"x{suffix}"
        path.write_bytes(png(RGB, 2))
        assert np.array_equal(read_image(path), RGB / 255)


@pytest.mark.parametrize("reader", [read_image, read_kernel])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_what_is_no_file(tmp_path, reader, suffix):
    path = tmp_path / f"x{suffix}"
    assert "No such file" in refusal(reader, path)
    path.mkdir()
    assert "directory" in refusal(reader, path)
    path.rmdir()
    os.mkfifo(path)
    refusal(reader, path)
    path.unlink()
    path.symlink_to(path)
    refusal(reader, path)
    path.unlink()
    path.symlink_to("/dev/zero")
    refusal(reader, path)


def test_file_without_permission():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "image.png")
        path.write_bytes(png(RGB, 2))
        path.chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            assert "Permission denied" in refusal(read_image, path)
        finally:
            os.seteuid(user)


def test_file_too_large_is_not_even_read(path):
    with path.open("wb") as file:
        file.write(png(RGB, 2))
        file.truncate(24 * MAX_PIXELS + 1)
    assert "too many" in refusal(read_image, path)


BOMBS = (
    "png bomb",
    "png of 2**31 - 1 squared",
    "png that declares 60000 x 60000",
    "jpeg that declares 65535 x 65535",
    "tiff that declares 60000 x 60000",
    "tiff with 2**32 - 1 strips",
    "tiff with a strip of 4 GB",
    "bmp of 2**31 - 1 squared",
    "bmp that declares 8000 x 8000",
    "pgm of 99999 squared",
    "text pgm that declares 8000 x 8000",
    "webp that declares 16384 x 16384",
    "big tiff with 2**64 - 1 entries",
)


def test_bombs_take_no_memory(tmp_path):
    if not Path("/proc/self/statm").exists():
        pytest.skip("NOT CHECKED: no /proc here to learn the memory in use from")
    paths = [tmp_path / f"{i}.png" for i in range(len(BOMBS))]
    for path, name in zip(paths, BOMBS, strict=True):
        path.write_bytes(MALFORMED[name])
    code = (
        "import resource, sys\n"
        "from selfdeblur.errors import UserError\n"
        "from selfdeblur.files.images import read_image\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + (50 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_image(path)\n"
        "    except UserError as error: print('does not suffice' in str(error))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split() == ["False"] * len(BOMBS)


def test_png_that_unpacks_to_more_than_its_rows(path):
    path.write_bytes(png_of(56, 40, 8, 2, b"".join(b"\0" + r.tobytes() for r in RGB) + bytes(200 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert np.array_equal(read_image(path), RGB / 255)
    except UserError as error:
        assert "damaged" in str(error)  # noqa: PT017
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_reading_in_threads_leaves_the_terminal_alone(tmp_path, capfd):
    names = ["png rgb 8 bits", "jpeg", "png with a senseless profile", "tiff float64"]
    for i, name in enumerate(names):
        (tmp_path / f"{i}.png").write_bytes(ODD[name][0])
    (tmp_path / "4.png").write_bytes(MALFORMED["jpeg with the middle cut out"])
    wrong = []

    def read(turns):
        for _ in range(turns):
            for i, name in enumerate(names):
                wrong.append(np.abs(read_image(tmp_path / f"{i}.png") - ODD[name][1]).max() > 0.1)
            try:
                read_image(tmp_path / "4.png")
                wrong.append(True)
            except UserError:
                pass

    threads = [threading.Thread(target=read, args=(10,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 160
    assert not any(wrong)
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_without_standard_error(path):
    path.write_bytes(png(RGB, 2))
    code = (
        "import os, sys; os.close(2); from selfdeblur.files.images import read_image; "
        "print(read_image(sys.argv[1]).shape)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "(40, 56, 3)\n"


# Writing and listing


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".bmp", ".ppm"])
def test_written_image_is_read_back(tmp_path, suffix):
    path = tmp_path / "new" / f"x{suffix}"
    write_image(path, RGB / 255)
    assert np.array_equal(read_image(path), RGB / 255)
    write_image(path.with_stem("grey"), GREY / 255)
    grey = read_image(path.with_stem("grey"))
    assert np.array_equal(grey, (np.dstack([GREY] * 3) if suffix == ".ppm" else GREY) / 255)


def test_written_values_are_clipped_and_rounded(path):
    write_image(path, np.array([[-1, 0.5 / 255 + 1e-9, 0.499 / 255, 2]]))
    assert (read_image(path) * 255).tolist() == [[0, 1, 0, 255]]


@pytest.mark.parametrize("name", ["x", "x.txt", "x.gif", "x.png.exe"])
def test_suffix_of_no_format(tmp_path, name):
    assert "no image format" in refusal(lambda path: write_image(path, GREY / 255), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_image_that_the_format_cannot_hold(tmp_path):
    assert "cannot hold this colour image" in refusal(lambda path: write_image(path, RGB / 255), tmp_path / "x.pgm")
    wide = np.zeros((1, 20000))
    assert "cannot hold this grey image of 20000 x 1" in refusal(
        lambda path: write_image(path, wide), tmp_path / "x.webp"
    )
    assert list(tmp_path.iterdir()) == []


def test_nan_is_not_written(path):
    with pytest.raises(ValueError, match="not finite"):
        write_image(path, with_value(np.nan))
    assert not path.exists()


def test_images_are_found_by_name_with_and_without_suffix(tmp_path):
    for name in ("b.png", "a.JPG", "a.txt", ".hidden.png", "._a.png", "sub.png"):
        if name == "sub.png":
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()
    assert [p.name for p in find_images(tmp_path)] == ["a.JPG", "b.png"]
    assert [p.name for p in find_images(tmp_path, "b")] == ["b.png"]
    assert [p.name for p in find_images(tmp_path, "*.png")] == ["b.png"]
    assert [p.name for p in find_images(tmp_path, "[ab]")] == ["a.JPG", "b.png"]


@pytest.mark.parametrize("pattern", ["c*", "", "/", "..", "[", "a.txt"])
def test_pattern_that_matches_nothing(tmp_path, pattern):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").touch()
    assert refusal(lambda folder: find_images(folder, pattern), tmp_path) == f"no image in it matches {pattern!r}"


def test_folder_of_no_images(tmp_path):
    assert "no image in it has one of the suffixes" in refusal(find_images, tmp_path)
    assert "no such folder" in refusal(find_images, tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "no such folder" in refusal(find_images, tmp_path / "file")


# Kernels


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_header(text, data=b"", *, version=b"\1\0"):
    text = text.encode()
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<L", len(text)) + text + data


class Runs:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self):
        return (os.mkdir, ("ran",))


K = np.arange(15.0).reshape(3, 5)
KERNELS = {
    "float64": npy(K),
    "float32": npy(K.astype(np.float32)),
    "half floats": npy(K.astype(np.float16)),
    "integers": npy(K.astype(np.int16)),
    "unsigned bytes": npy(K.astype(np.uint8)),
    "big endian": npy(K.astype(">f8")),
    "order of Fortran": npy(np.asfortranarray(K)),
    "huge values": npy(K * 1e307),
    "tiny values": npy(K * 1e-320),
}
BAD_KERNELS = {
    "nothing": b"",
    "text": b"hello",
    "magic": b"\x93NUMPY",
    "cut header": npy(K)[:40],
    "cut data": npy(K)[:-1],
    "future version": npy_header("{}", version=b"\x09\0"),
    "endless header": b"\x93NUMPY\2\0\xff\xff\xff\xff{",
    "nested header": npy_header("(" * 60000),
    "nested lists": npy_header("[" * 5000 + "]" * 5000),
    "code in header": npy_header("__import__('os').mkdir('ran')"),
    "no dictionary": npy_header("5"),
    "no shape": npy_header("{'descr': '<f8'}"),
    "negative shape": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 3)}", bytes(72)),
    "huge shape": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 999999999)}", bytes(72)),
    "shape beyond numbers": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**99, 3)}", bytes(72)),
    "shape of words": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': ('a', 'b')}", bytes(72)),
    "dtype of nonsense": npy_header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (3, 3)}", bytes(72)),
    "huge dtype": npy_header("{'descr': '|S2000000000', 'fortran_order': False, 'shape': (3, 3)}", bytes(72)),
    "pickle in an array": npy(np.array([[Runs()]], dtype=object), allow_pickle=True),
    "pickle": pickle.dumps(Runs()),
    "zip of arrays": (lambda file: (np.savez(file, k=K), file.getvalue())[1])(io.BytesIO()),
    "words": npy(np.array([["a", "b", "c"]])),
    "times": npy(np.array([[1, 2, 3]], "M8[s]")),
    "complex": npy(K + 1j),
    "truths": npy(K > 3),
    "records": npy(np.zeros((3, 3), [("a", "f8")])),
    "no dimension": npy(np.array(1.0)),
    "one dimension": npy(np.ones(9)),
    "three dimensions": npy(np.ones((3, 3, 3)) * [1, 2, 3]),
    "empty": npy(np.zeros((0, 3))),
    "even height": npy(np.ones((4, 3))),
    "even width": npy(np.ones((3, 4))),
    "zeros": npy(np.zeros((3, 3))),
    "negative": npy(K - 1),
    "nan": npy(np.where(K == 3, np.nan, K)),
    "infinity": npy(np.where(K == 3, np.inf, K)),
    "too large": npy(np.ones((2049, 2049))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_of_numpy(tmp_path, name):
    path = tmp_path / "k.npy"
    path.write_bytes(KERNELS[name])
    kernel = read_kernel(path)
    assert kernel.dtype == np.float64
    assert np.allclose(kernel, K / K.sum(), rtol=1e-3 if name == "tiny values" else 1e-12, atol=0)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", BAD_KERNELS)
def test_bad_kernel_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "k.npy"
    path.write_bytes(BAD_KERNELS[name])
    refusal(read_kernel, path)
    assert not (tmp_path / "ran").exists(), "code from the file was run"


def test_kernel_of_an_image(path):
    path.write_bytes(png(GREY[:5, :7], 0))
    kernel = read_kernel(path)
    assert np.allclose(kernel, GREY[:5, :7] / GREY[:5, :7].sum(), rtol=1e-12, atol=0)
    path.write_bytes(png(np.dstack([GREY[:5, :7]] * 3), 2))
    assert np.array_equal(read_kernel(path), kernel)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (RGB[:5, :7], "a coloured image"),
        (GREY[:4, :7], "is 4 x 7 .height x width.; both sizes of a kernel have to be odd"),
        (GREY[:5, :6], "is 5 x 6"),
        (GREY[:5, :7] * 0, "sums to 0"),
    ],
)
def test_image_that_is_no_kernel(path, array, words):
    path.write_bytes(png(array, 2 if array.ndim == 3 else 0))
    with pytest.raises(UserError, match=words):
        read_kernel(path)
    refusal(read_kernel, path)


# Fuzzing: FUZZ_EXAMPLES sets how long

SEEDS = [content for content, *_ in ODD.values() if len(content) < 20000] + [c for c in WHOLE.values()]


def mended(content):
    """A PNG with its checksums made right, so that the edits get past them."""
    out, at = content[:8], 8
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">L4s", content, at)
        out += chunk(kind, content[at + 8 : at + 8 + length])
        at += 12 + length
    return out


def outcome(reader, path):
    try:
        array = reader(path)
    except UserError as error:
        return str(error)
    assert array.dtype == np.float64
    assert array.ndim in (2, 3)
    assert 0 < array.size <= 3 * MAX_PIXELS
    assert array.min() >= 0
    assert array.max() <= 1
    return ""


@FUZZ
@given(seed=st.sampled_from(SEEDS), edits=EDITS, mend=st.booleans())
def test_fuzz_images(tmp_path_factory, seed, edits, mend):
    content = edit(seed, edits)
    if mend and content.startswith(b"\x89PNG\r\n\x1a\n"):
        content = mended(content)
    path = tmp_path_factory.getbasetemp() / "fuzz.png"
    path.write_bytes(content)
    said = outcome(read_image, path) + outcome(read_kernel, path)
    assert "\n" not in said
    assert len(said) < 1000


@FUZZ
@given(seed=st.sampled_from([*KERNELS.values(), *BAD_KERNELS.values()]), edits=EDITS)
def test_fuzz_kernels(tmp_path_factory, seed, edits):
    path = tmp_path_factory.getbasetemp() / "fuzz.npy"
    path.write_bytes(edit(seed, edits))
    said = outcome(read_kernel, path)
    assert "\n" not in said
    assert len(said) < 500
