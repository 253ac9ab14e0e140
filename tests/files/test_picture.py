"""Pictures: what stands around the pixels comes out as it went in, whatever the format.

Files are made and looked at by Pillow, OpenCV and tifffile, not by the code
under test. ``KINDS`` gives files whose new pixels have to come out exactly.
"""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from common import SHARED
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, JpegImagePlugin

from selfdeblur.errors import UserError
from selfdeblur.files.picture import encode_picture, read_picture, write_picture
from selfdeblur.files.tiffs import TiffPage, write_tiff
from selfdeblur.values import value_range

RNG = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RNG.random((40, 56, 4)).astype(np.float32), (0, 0), 2)
SMOOTH = (SMOOTH - SMOOTH.min()) / (SMOOTH.max() - SMOOTH.min())
ICC = RNG.integers(0, 256, 3000, np.uint8).tobytes()


def sample(channels, dtype=np.uint8):
    full = {"u1": 255, "u2": 65535, "f4": 13000}[np.dtype(dtype).str[1:]]
    array = (SMOOTH[:, :, :channels] * full).astype(dtype)
    return array[:, :, 0] if channels == 1 else array


def pillow(array, kind, **options):
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, kind, **options)
    return buffer.getvalue()


def opencv(array, suffix):
    stored = array if array.ndim == 2 else array[:, :, [2, 1, 0, 3][: array.shape[2]]]
    return cv2.imencode(suffix, stored)[1].tobytes()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def tiff_of(channels, dtype, **options):
    array = sample(channels, dtype)
    if options.get("planarconfig") == "separate":
        array = np.moveaxis(array, -1, 0)
    photometric = "rgb" if channels > 2 else "minisblack"
    extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    return tiff(array, photometric=photometric, **extra, **options)


def packed(array, compression, predictor=1):
    """A TIFF of a compression that tifffile cannot write; that OpenCV and Pillow read it is a test of its own."""
    alpha = 2 if array.ndim == 3 and array.shape[2] in (2, 4) else None
    page = TiffPage([], {}, compression, predictor, None, False, False, alpha, None, 2)
    return write_tiff([array], [page], "name.tif")


def chunk(kind, data):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def with_chunks(content, *chunks):
    return content[:33] + b"".join(chunk(*c) for c in chunks) + content[33:]


def grey_alpha_16():
    array = sample(2, np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">LLBBBBB", 56, 40, 16, 4, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*c) for c in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def exif(orientation=6):
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x0110] = orientation, "ACME", "Model 1"
    tags.get_ifd(0x8769)[0x829A] = 0.01
    tags.get_ifd(0x8769)[0xA002], tags.get_ifd(0x8769)[0xA003] = 56, 40
    return tags.tobytes()


KINDS = {
    "png grey": lambda: pillow(sample(1), "PNG"),
    "png rgb": lambda: pillow(sample(3), "PNG"),
    "png rgba": lambda: pillow(sample(4), "PNG"),
    "png grey alpha": lambda: pillow(sample(2), "PNG"),
    "png grey 16": lambda: opencv(sample(1, np.uint16), ".png"),
    "png rgb 16": lambda: opencv(sample(3, np.uint16), ".png"),
    "png rgba 16": lambda: opencv(sample(4, np.uint16), ".png"),
    "png grey alpha 16": grey_alpha_16,
    "webp": lambda: pillow(sample(3), "WEBP", lossless=True),
    "webp alpha": lambda: pillow(sample(4), "WEBP", lossless=True, exact=True),
    "bmp grey": lambda: pillow(sample(1), "BMP"),
    "bmp rgb": lambda: pillow(sample(3), "BMP"),
    "bmp rgba": lambda: opencv(sample(4), ".bmp"),
    "pgm": lambda: pillow(sample(1), "PPM"),
    "ppm": lambda: pillow(sample(3), "PPM"),
    "pgm 12": lambda: b"P5 56 40 4095\n" + (sample(1, np.uint16) // 16).astype(">u2").tobytes(),
    "tiff bigendian": lambda: tiff(sample(3, np.uint16), photometric="rgb", byteorder=">"),
    "tiff tiled": lambda: tiff(sample(1, np.uint16), tile=(16, 16)),
    "tiff white is zero": lambda: tiff(sample(1), photometric="miniswhite"),
    "tiff double": lambda: tiff(sample(1, np.float32).astype(np.float64) * 1e3),
    "tiff lzw": lambda: packed(sample(3), 5),
    "tiff lzw 16 predictor": lambda: packed(sample(1, np.uint16), 5, 2),
    "tiff lzw float": lambda: packed(sample(1, np.float32), 5),
    "tiff packbits": lambda: packed(sample(3, np.uint16), 32773),
    "tiff packbits grey alpha": lambda: packed(sample(2), 32773),
}
for _channels in (1, 2, 3, 4):
    for _dtype in (np.uint8, np.uint16, np.float32):
        for _plan in ("contig", "separate") if _channels > 1 else (None,):
            for _packing in (None, "zlib"):
                KINDS[f"tiff {_channels} {np.dtype(_dtype).name} {_plan} {_packing}"] = (
                    lambda c=_channels, d=_dtype, p=_plan, z=_packing: tiff_of(c, d, planarconfig=p, compression=z)
                )


def look(content):
    """Pixels (H, W, channels) and the facts of a file, as other libraries see them."""
    if content[:4] in (b"II\x2a\0", b"MM\0\x2a"):
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            facts = {
                name: getattr(page, name)
                for name in ("dtype", "compression", "photometric", "planarconfig", "extrasamples", "predictor")
            }
            if page.compression == 5:
                array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
                array = array if array.ndim == 2 else array[:, :, ::-1]
            else:
                array = page.asarray()
                array = np.moveaxis(array, 0, -1) if page.planarconfig == 2 and page.samplesperpixel > 1 else array
                array = 255 - array if page.photometric == 0 else array
    elif content[:2] in (b"P5", b"P6"):
        head = content.split(maxsplit=4)
        width, height, most = (int(n) for n in head[1:4])
        array = np.frombuffer(head[4], np.uint8 if most < 256 else ">u2").reshape(height, width, -1)
        facts = {"kind": content[:2], "most": most}
    else:
        with Image.open(io.BytesIO(content)) as image:
            facts = {"kind": image.format, "mode": image.mode}
            array = np.asarray(image)
        if content[:4] == b"\x89PNG":
            facts["depth"] = tuple(content[24:26])
            if facts["depth"][0] == 16 and facts["depth"][1] in (2, 4, 6):  # Pillow makes 8 bits of these
                array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
                array = array[:, :, [2, 1, 0, 3][: array.shape[2]] if facts["depth"][1] != 4 else [0, 3]]
    return np.atleast_3d(array), facts


@pytest.mark.parametrize("kind", KINDS)
def test_new_pixels_come_out_and_all_else_is_as_it_was(kind):
    content = KINDS[kind]()
    before, facts = look(content)
    picture = read_picture(content)
    assert np.array_equal(np.atleast_3d(picture.pages[0]), before[:, :, : 1 if before.shape[2] < 3 else 3])
    if before.shape[2] in (2, 4):
        assert np.array_equal(picture.alphas[0], before[:, :, -1])
    half = [(page / 2).astype(page.dtype) for page in picture.pages]
    written, notes = encode_picture(picture, half)
    after, facts_after = look(written)
    assert not notes
    assert not picture.notes
    assert facts_after == facts
    colours = 1 if before.shape[2] < 3 else 3
    assert np.array_equal(after[:, :, :colours], (before[:, :, :colours] / 2).astype(before.dtype))
    assert np.array_equal(after[:, :, colours:], before[:, :, colours:])


@pytest.mark.parametrize("compression", [5, 32773])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_packed_tiffs_are_read_by_others(compression, dtype):
    array = sample(1, dtype)
    content = packed(array, compression, 2)
    assert np.array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), array)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(image), array)
        assert image.info["compression"] == {5: "tiff_lzw", 32773: "packbits"}[compression]


def test_palette_and_few_bits_become_more_and_it_says_so():
    rgb = Image.fromarray(sample(3))
    palette = rgb.quantize(20)
    picture = read_picture(pillow(palette, "PNG"))
    assert picture.notes == ["the palette becomes RGB"]
    assert np.array_equal(picture.pages[0], np.asarray(palette.convert("RGB")))
    palette.info["transparency"] = 3
    picture = read_picture(pillow(palette, "PNG", transparency=3))
    assert np.array_equal(picture.alphas[0] == 0, np.asarray(palette) == 3)
    assert look(encode_picture(picture)[0])[1]["mode"] == "RGBA"
    bits = Image.fromarray(sample(1) > 120)
    picture = read_picture(pillow(bits, "PNG"))
    assert picture.notes == ["1 bits a value become 8"]
    assert np.array_equal(picture.pages[0], np.asarray(bits) * 255)
    assert "the palette becomes RGB" in read_picture(pillow(rgb.quantize(20), "BMP")).notes
    picture = read_picture(pillow(rgb.quantize(20), "TIFF"))
    assert picture.notes == ["the palette becomes RGB"]
    assert look(encode_picture(picture)[0])[0].shape == (40, 56, 3)


def test_a_transparent_colour_becomes_alpha():
    array = sample(3)
    key = array[7, 9]
    content = with_chunks(pillow(array, "PNG"), (b"tRNS", struct.pack(">3H", *(int(v) for v in key))))
    picture = read_picture(content)
    assert np.array_equal(picture.alphas[0] == 0, (array == key).all(axis=2))
    assert "the transparent colour becomes alpha" in picture.notes


def test_png_keeps_profile_exif_density_and_text():
    kept = {
        b"gAMA": struct.pack(">L", 45455),
        b"iCCP": b"name\0\0" + zlib.compress(ICC),
        b"pHYs": struct.pack(">LLB", 3937, 7874, 1),
        b"eXIf": exif(6)[6:],
        b"tEXt": b"Author\0somebody",
    }
    content = with_chunks(opencv(sample(3, np.uint16), ".png"), *kept.items())
    picture = read_picture(content)
    assert picture.pages[0].shape == (56, 40, 3), "turned upright"
    written, _ = encode_picture(picture)
    at, found = 8, {}
    while at < len(written):
        (length,) = struct.unpack_from(">L", written, at)
        found[written[at + 4 : at + 8]] = written[at + 8 : at + 8 + length]
        at += 12 + length
    assert {name: found[name] for name in (b"gAMA", b"iCCP", b"tEXt")} == {
        name: kept[name] for name in (b"gAMA", b"iCCP", b"tEXt")
    }
    assert found[b"pHYs"] == struct.pack(">LLB", 7874, 3937, 1), "turned with the picture"
    with Image.open(io.BytesIO(written)) as image:
        assert image.getexif()[0x0112] == 1
        assert image.getexif()[0x010F] == "ACME"
        assert image.getexif().get_ifd(0x8769)[0x829A] == 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_upright_and_keeps_the_rest(orientation):
    profile = RNG.integers(0, 256, 100_000, np.uint8).tobytes()
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    options = {"icc_profile": profile, "dpi": (300, 200), "comment": b"a comment", "xmp": xmp, "quality": 91}
    content = pillow(sample(3), "JPEG", exif=exif(orientation), **options)
    picture = read_picture(content)
    written, notes = encode_picture(picture)
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(written)) as after:
        assert after.size == ((40, 56) if orientation > 4 else (56, 40))
        assert after.quantization == before.quantization
        tags = after.getexif()
        assert (tags[0x0112], tags[0x010F], tags[0x0110]) == (1, "ACME", "Model 1")
        assert (tags.get_ifd(0x8769)[0xA002], tags.get_ifd(0x8769)[0xA003]) == after.size
        assert after.info["icc_profile"] == profile
        assert after.info["comment"] == b"a comment"
        assert after.info["xmp"] == xmp.replace(f'"{orientation}"'.encode(), b'"1"')
        assert after.info["dpi"] == (300, 200)
        upright = np.asarray(ImageOps.exif_transpose(before)).astype(int)
        assert np.abs(np.asarray(after).astype(int) - upright).mean() < 5
    assert not notes


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 60, "subsampling": 2},
        {"quality": 85, "subsampling": 1},
        {"quality": 97, "subsampling": 0},
        {"quality": 80, "progressive": True},
        {"qtables": [list(range(1, 65)), list(range(2, 66))]},
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_quality_and_subsampling(options, channels):
    content = pillow(sample(channels), "JPEG", **options)
    written, _ = encode_picture(read_picture(content))
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(written)) as after:
        assert after.mode == before.mode
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == JpegImagePlugin.get_sampling(before)
        assert after.info.get("progressive") == before.info.get("progressive")


def test_tiff_keeps_its_tags():
    array = sample(3, np.uint16)
    content = tiff(
        array,
        photometric="rgb",
        resolution=(15748, 7874),
        resolutionunit="CENTIMETER",
        description="a slide, 20x",
        software="Scanner 1",
        datetime="2020:01:02 03:04:05",
        iccprofile=ICC,
        compression="zlib",
        predictor=True,
        extratags=[(271, "s", 0, "ACME", True), (274, "H", 1, 8, True), (65000, "d", 2, (0.5, 2.5), True)],
    )
    picture = read_picture(content)
    assert picture.pages[0].shape == (56, 40, 3)
    written, _ = encode_picture(picture)
    with tifffile.TiffFile(io.BytesIO(written)) as file:
        tags = file.pages[0].tags
        assert tags[282].value == (15748, 1)
        assert tags[283].value == (7874, 1)
        assert tags[296].value == 3
        assert tags[270].value == "a slide, 20x"
        assert tags[305].value == "Scanner 1"
        assert tags[306].value == "2020:01:02 03:04:05"
        assert tags[271].value == "ACME"
        assert tags[65000].value == (0.5, 2.5)
        assert bytes(tags[34675].value) == ICC
        assert 274 not in tags
        assert file.pages[0].predictor == 2


def test_tiff_keeps_exif_and_position():
    tags = Image.Exif()
    tags.get_ifd(0x8769)[0x829A] = 0.25
    tags.get_ifd(0x8825)[1] = "N"
    array = sample(1, np.uint16)
    content = pillow(array, "TIFF", exif=tags.tobytes())
    written, _ = encode_picture(read_picture(content))
    with Image.open(io.BytesIO(written)) as image:
        assert image.getexif().get_ifd(0x8769)[0x829A] == 0.25
        assert image.getexif().get_ifd(0x8825)[1] == "N"
        assert np.array_equal(np.asarray(image), array)


def test_pages_of_imagej_and_of_ome_tiff_keep_their_description():
    stack = np.stack([sample(1, np.uint16) // n for n in (1, 2, 3)])
    for content, described in (
        (tiff(stack, imagej=True, metadata={"axes": "TYX", "finterval": 0.5}), "imagej_metadata"),
        (tiff(stack, imagej=True, metadata={"axes": "TYX"}, compression="zlib"), "imagej_metadata"),
        (tiff(stack, ome=True, metadata={"axes": "TYX", "PhysicalSizeX": 0.1}), "ome_metadata"),
        (tiff(stack, photometric="minisblack"), "shaped_metadata"),
    ):
        picture = read_picture(content)
        assert len(picture.pages) == 3
        written, _ = encode_picture(picture, [page // 2 for page in picture.pages], name="new.tif")
        with tifffile.TiffFile(io.BytesIO(content)) as before, tifffile.TiffFile(io.BytesIO(written)) as after:
            assert np.array_equal(np.stack([page.asarray() for page in after.pages]), stack // 2)
            if described == "ome_metadata":
                assert [line for line in after.ome_metadata.split("<") if "UUID" not in line] == [
                    line for line in before.ome_metadata.split("<") if "UUID" not in line
                ]
            else:
                assert getattr(after, described) == getattr(before, described)
            assert after.series[0].shape == before.series[0].shape
    assert len(read_picture(content, pages="first").pages) == 1


def test_an_imagej_stack_whose_pages_have_no_directory(tmp_path):
    stack = np.stack([sample(1, np.uint16) // n for n in (1, 2, 3)])
    tifffile.imwrite(tmp_path / "t.tif", stack, imagej=True, metadata={"axes": "TYX"}, truncate=True)
    with tifffile.TiffFile(tmp_path / "t.tif") as file:
        assert len(file.pages) == 1
    picture = read_picture(tmp_path / "t.tif")
    assert all(np.array_equal(page, wanted) for page, wanted in zip(picture.pages, stack, strict=True))
    with tifffile.TiffFile(io.BytesIO(encode_picture(picture)[0])) as file:
        assert np.array_equal(file.series[0].asarray(), stack)


def test_ome_tiff_names_itself():
    stack = np.stack([sample(1)] * 2)
    content = tiff(stack, ome=True, metadata={"axes": "TYX"})
    xml = tifffile.TiffFile(io.BytesIO(content)).ome_metadata
    named = xml.replace("</TiffData>", '<UUID FileName="old.ome.tif">urn:uuid:1</UUID></TiffData>')
    assert "FileName" in named or "<TiffData" in xml
    page = read_picture(content).kept[0]
    text = b'<OME><UUID FileName="old.ome.tif">urn:uuid:1</UUID></OME>\0'
    page.tags[:] = [tag for tag in page.tags if tag[0] != 270] + [(270, 2, len(text), text)]
    written = write_tiff([stack[0]], [page], "new & good.tif")
    with tifffile.TiffFile(io.BytesIO(written)) as file:
        assert 'FileName="new &amp; good.tif"' in file.pages[0].description


def test_webp_bmp_and_lossy_webp_keep_what_they_can():
    content = pillow(sample(3), "WEBP", lossless=True, icc_profile=ICC, exif=exif(3))
    written, _ = encode_picture(read_picture(content))
    with Image.open(io.BytesIO(written)) as image:
        assert image.info["icc_profile"] == ICC
        assert image.getexif()[0x0112] == 1
        assert np.array_equal(np.asarray(image), sample(3)[::-1, ::-1])
    picture = read_picture(pillow(sample(3), "WEBP", quality=50))
    assert any("quality" in note for note in picture.notes)
    assert b"VP8 " in encode_picture(picture)[0]
    content = pillow(sample(3), "BMP", dpi=(300, 300))
    with Image.open(io.BytesIO(encode_picture(read_picture(content))[0])) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_another_format_takes_what_it_can_hold(tmp_path):
    options = {"icc_profile": ICC, "dpi": (300, 300), "exif": exif(1)}
    picture = read_picture(pillow(sample(3), "JPEG", **options))
    for suffix in (".png", ".webp", ".jpg"):
        assert write_picture(tmp_path / f"a{suffix}", picture) == []
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.info["icc_profile"] == ICC
            assert image.getexif()[0x010F] == "ACME"
            if suffix != ".webp":
                assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert write_picture(tmp_path / "a.tif", picture) == ["EXIF is not carried over to TIFF"]
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert bytes(file.pages[0].tags[34675].value) == ICC
        assert file.pages[0].tags[282].value == (300, 1)
    notes = write_picture(tmp_path / "b.jpg", read_picture(opencv(sample(4, np.uint16), ".png")))
    assert "16 bits a value become 8, JPEG has no more" in notes
    assert "JPEG has no alpha, it is left out" in notes
    notes = write_picture(tmp_path / "c.png", read_picture(tiff(sample(1, np.float32))))
    assert len(notes) == 1
    assert "became integers" in notes[0]
    assert look((tmp_path / "c.png").read_bytes())[1]["depth"] == (16, 0)
    with pytest.raises(UserError, match="no colours"):
        write_picture(tmp_path / "d.pgm", picture)
    with pytest.raises(UserError, match="suffix"):
        write_picture(tmp_path / "d.xyz", picture)
    with pytest.raises(UserError, match="holds one picture"):
        write_picture(tmp_path / "d.png", read_picture(tiff(np.stack([sample(1)] * 2))))
    assert not list(tmp_path.glob("d*"))


def test_a_pgm_of_12_bits_as_png_uses_all_of_16():
    picture = read_picture(KINDS["pgm 12"]())
    content, _ = encode_picture(picture, suffix=".png")
    assert look(content)[0].max() > 60000


def gif():
    frames = [Image.fromarray(sample(1) // n) for n in (1, 2)]
    return pillow(frames[0], "GIF", save_all=True, append_images=frames[1:])


def moving(kind):
    frames = [Image.fromarray(sample(3) // n) for n in (1, 2)]
    return pillow(frames[0], kind, save_all=True, append_images=frames[1:])


REFUSED = {
    "gif": (gif, "GIF.*PNG"),
    "apng": (lambda: moving("PNG"), "animation"),
    "moving webp": (lambda: moving("WEBP"), "animation"),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(40), "HEIC.*JPEG"),
    "avif": (lambda: pillow(sample(3), "AVIF"), "AVIF.*PNG"),
    "dng": (lambda: tiff(sample(1), extratags=[(50706, "B", 4, (1, 4, 0, 0), True)]), "raw.*16-bit TIFF"),
    "sensor": (lambda: tiff(sample(1), photometric="cfa"), "raw.*16-bit TIFF"),
    "cr2": (lambda: b"II\x2a\0\x10\0\0\0CR\2\0" + bytes(100), "raw"),
    "raf": (lambda: b"FUJIFILMCCD-RAW 0201" + bytes(100), "raw"),
    "imagej z": (
        lambda: tiff(np.stack([sample(1)] * 3), imagej=True, metadata={"axes": "ZYX"}),
        "3 slices in z.*within a picture",
    ),
    "ome z": (lambda: tiff(np.stack([sample(1)] * 3), ome=True, metadata={"axes": "ZYX"}), "3 slices in z"),
    "cmyk": (lambda: pillow(Image.fromarray(sample(4), "CMYK"), "JPEG"), "CMYK.*RGB"),
    "five channels": (lambda: tiff(np.dstack([sample(4), sample(1)]), photometric="rgb"), "5 channels"),
    "signed": (lambda: tiff(sample(1).astype(np.int16)), "signed"),
    "nan": (lambda: tiff(np.full((40, 40), np.nan, np.float32)), "not finite"),
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"hello", "not an image"),
    "two kinds of pages": (
        lambda: tiff_pages(sample(1), sample(1, np.uint16)),
        "different kinds",
    ),
    "bomb": (lambda: bomb(), "more than its pixels"),
}


def tiff_pages(*arrays):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for array in arrays:
            file.write(array)
    return buffer.getvalue()


def bomb():
    strip = zlib.compress(bytes(1 << 24))
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, iter([strip]), shape=(40, 40), dtype=np.uint8, compression="zlib", rowsperstrip=40)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_single_picture_is_refused_in_one_line(kind, tmp_path):
    make, reason = REFUSED[kind]
    path = tmp_path / "picture.bin"
    path.write_bytes(make())
    with pytest.raises(UserError, match=reason) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_raw_files_are_told_by_their_name_and_missing_ones_are_missing(tmp_path):
    (tmp_path / "a.NEF").write_bytes(tiff(sample(1)))
    with pytest.raises(UserError, match="raw file"):
        read_picture(tmp_path / "a.NEF")
    for name in ("b.NEF", "b.png"):
        with pytest.raises(UserError, match="No such file"):
            read_picture(tmp_path / name)
    with pytest.raises(UserError, match=r"plain file|directory"):
        read_picture(tmp_path)


@pytest.mark.parametrize("kind", ["png rgb 16", "webp", "bmp rgb", "pgm", "tiff 3 uint8 contig zlib", "tiff lzw"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_part_of_a_file_is_refused(kind, share):
    content = KINDS[kind]()
    with pytest.raises(UserError):
        read_picture(content[: int(share * len(content))])


@given(st.data())
def test_damaged_tiffs_are_read_or_refused(data):
    content = bytearray(KINDS[data.draw(st.sampled_from(["tiff lzw", "tiff 3 uint16 contig zlib", "tiff tiled"]))]())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.one_of(st.integers(0, 300), st.integers(0, len(content) - 1)))
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    try:
        picture = read_picture(bytes(content))
    except UserError:
        return
    encode_picture(picture)


# Ranges


def disk(peak, dtype, noise=0.0):
    """A smooth bright spot on nothing, its brightest value about ``peak``."""
    rows, columns = np.mgrid[-32:32, -32:32] / 12
    spot = peak * np.exp(-(rows**2) - columns**2)
    return (spot + noise * RNG.standard_normal(spot.shape)).astype(dtype)


def test_the_range_of_8_bits_is_all_of_them():
    assert value_range(disk(40, np.uint8), 255) == (0, 255)


def test_a_camera_of_12_bits_has_a_range_of_its_own_and_single_pixels_do_not_stretch_it():
    low, high = value_range(disk(2000, np.uint16), 65535)
    assert low == 0
    assert 2000 < high < 3000
    hot = disk(2000, np.uint16)
    hot[5, 5] = 60000
    assert value_range(hot, 65535)[1] < 3200


def test_white_where_a_camera_stops_is_white():
    clipped = np.minimum(disk(6000, np.uint16), 4095).astype(np.uint16)
    assert value_range(clipped, 65535) == (0, 4095)
    assert value_range(np.minimum(disk(90000, np.float64), 65535).astype(np.uint16), 65535) == (0, 65535)


def test_floating_point_of_any_range():
    assert value_range(disk(0.9, np.float32), None) == (0, 1)
    low, high = value_range(disk(56514.7, np.float32), None)
    assert low == 0
    assert 56514.7 < high < 80000
    low, high = value_range(disk(10, np.float32) - 3, None)
    assert low == pytest.approx(-3, abs=1e-3)
    assert 7 < high < 12
    assert value_range(np.zeros((5, 5), np.float32), None) == (0, 1)
    assert value_range(np.full((2, 2), 7, np.uint16), 65535)[1] > 7


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_units_lead_there_and_back(dtype):
    picture = read_picture(tiff(sample(1, dtype)))
    image = picture.unit()
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    back = picture.in_units(image)
    assert back.dtype == dtype
    assert np.allclose(back, picture.pages[0], rtol=1e-5)


def test_what_becomes_brighter_is_limited_by_the_type_alone():
    picture = read_picture(tiff(disk(2000, np.uint16)))
    low, high = picture.range()
    assert picture.in_units(np.full((64, 64), 1.5)).max() == round(1.5 * (high - low))
    assert picture.in_units(np.full((64, 64), 1000.0)).max() == 65535
    assert picture.in_units(np.full((64, 64), -1.0)).max() == 0
    picture = read_picture(tiff(disk(2000, np.float32) - 100))
    assert picture.in_units(np.full((64, 64), -1.0)).min() == pytest.approx(-100, abs=0.1)
    assert picture.in_units(np.full((64, 64), 40.0)).max() > 50000


CASES = SHARED / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="the files that people bring are not here")
@pytest.mark.parametrize("path", sorted(CASES.glob("*.[ptj]*")), ids=lambda path: path.name)
def test_files_that_people_bring(path):
    picture = read_picture(path)
    again = read_picture(encode_picture(picture)[0])
    for one, other in zip(picture.pages, again.pages, strict=True):
        assert one.dtype == other.dtype
        if picture.format == "JPEG":
            assert np.abs(one.astype(int) - other).mean() < 2
        else:
            assert np.array_equal(one, other)
    assert again.resolution == picture.resolution or picture.resolution == (1.0, 1.0)
