"""The problems of the zoo: sharp pictures, kernels, and the blurry pictures made of them, see `benchmarks/zoo.py`.

Each half has 60 problems. Kinds of pictures and kernels, noise and coding are dealt like cards, so that both halves
have as many of each, see PICTURES, KERNELS, NOISE and CODINGS; all else is drawn by the problem's own generator. Only
`Generator.random` is called, so a problem is the same on every machine, but for the rounding of transforms and, where
letters are drawn, of FreeType.

The pictures are those that scikit-image installs without a download, and what is drawn here. Some are in one half only.
"""

import io
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.signal import convolve
from scipy.special import ndtri
from skimage import data

from selfdeblur.classical.kernels import camera_shake_kernel
from selfdeblur.colour import luminance
from selfdeblur.errors import UserError
from selfdeblur.forward import blur
from selfdeblur.scores.metrics import align, psnr, ssim

SEEDS = {"development": 1, "report": 2}

# Problems of each kind in a half.
PICTURES = {"photograph": 18, "face": 9, "text": 12, "microscopy": 6, "texture": 6, "night": 9}
KERNELS = {"shake thin": 18, "shake thick": 18, "line": 8, "disk": 6, "Gaussian": 5, "double": 5}
NOISE = {0.0: 15, 0.003: 21, 0.01: 15, 0.03: 9}
CODINGS = {"8 bit": 36, "JPEG 90": 8, "JPEG 75": 8, "gamma": 8}

# The share of those problems in colour whose picture has colour.
COLOUR = 0.6

# Pictures of both halves, then of the development half and of the report half only.
SOURCES = {
    "photograph": (("camera", "coffee", "motorcycle", "astronaut"), ("chelsea", "coins"), ("rocket", "logo", "moon")),
    "face": (("astronaut face", "faces"), ("cat face",), ("camera head",)),
    "text": (("drawn page", "plate", "sign", "screen"), ("page",), ("handwriting",)),
    "microscopy": (("immunohistochemistry", "retina"), (), ("cell",)),
    "texture": (("brick",), ("grass",), ("gravel",)),
    "night": (("coffee, lights", "motorcycle, lights"), ("rocket, lights",), ("camera, lights", "hubble")),
}

# Pixels (height, width) that a picture has, the corner of the part that is used, and whether it has colour. Of what is
# drawn, and of none here, there is as much as needed.
PARTS = {
    "camera": (512, 512, 0, 0, False),
    "coffee": (400, 600, 0, 0, True),
    "motorcycle": (500, 741, 0, 0, True),
    "astronaut": (512, 512, 0, 0, True),
    "chelsea": (300, 451, 0, 0, True),
    "coins": (303, 384, 0, 0, False),
    "rocket": (427, 640, 0, 0, True),
    "logo": (500, 500, 0, 0, True),
    "moon": (512, 512, 0, 0, False),
    "astronaut face": (290, 290, 0, 90, True),
    "faces": (250, 250, 0, 0, False),
    "cat face": (300, 400, 0, 30, True),
    "camera head": (280, 280, 40, 120, False),
    "page": (191, 384, 0, 0, False),
    "handwriting": (172, 448, 0, 0, False),
    "immunohistochemistry": (512, 512, 0, 0, True),
    "retina": (480, 480, 110, 110, True),
    "cell": (380, 380, 180, 170, False),
    "brick": (512, 512, 0, 0, False),
    "grass": (512, 512, 0, 0, False),
    "gravel": (512, 512, 0, 0, False),
    "hubble": (872, 1000, 0, 0, True),
}
DRAWN = (640, 640, 0, 0, True)

# Sides of a blurry image, in pixels; it has at least SIDES_OF_KERNEL times the kernel's size.
SMALLEST, LARGEST, SIDES_OF_KERNEL = 128, 512, 5

# Sizes that are handed over, and the largest of some kinds; the kernel itself is smaller by a factor within LOOSE, as
# people rather say too much, and by two pixels or more.
KERNEL_SIZES, LOOSE = (9, 61), (1.05, 1.3)
LARGEST_KERNEL = {"disk": 31, "Gaussian": 31, "double": 41}

# Width of the strokes of thick shakes, in pixels.
STROKES = (2.0, 4.0)

GAMMA = 2.2


def problems(half):
    """All problems of a half, "development" or "report", in order; images are made when they are asked for."""
    if half not in SEEDS:
        raise UserError(f"half: {half!r} is unknown; the halves are {' and '.join(SEEDS)}")
    rng = np.random.Generator(np.random.PCG64([SEEDS[half]]))
    kinds, kernels, noise, codings = (_dealt(deck, rng) for deck in (PICTURES, KERNELS, NOISE, CODINGS))
    decks = {}
    for kind, (both, *own) in SOURCES.items():
        names = both + own[list(SEEDS).index(half)]
        decks[kind] = _shuffled([names[n % len(names)] for n in range(PICTURES[kind])], rng)
    made = []
    for number in range(len(kinds)):
        name, kernel_kind = decks[kinds[number]].pop(), kernels[number]
        *whole, _, _, has_colour = PARTS.get(name.removesuffix(", lights"), DRAWN)
        size, side = _sizes(whole, kernel_kind, rng)
        made.append(
            Problem(
                half=half,
                number=number + 1,
                picture=name,
                picture_kind=kinds[number],
                kernel_kind=kernel_kind,
                kernel_size=(size, size),
                side=side,
                noise=noise[number],
                coding=codings[number],
                colour=rng.random() < COLOUR and has_colour,
            )
        )
    return made


def score(problem, image):
    """PSNR in dB and SSIM of an image (H, W) or (H, W, 3), 0..1, against the sharp one of a problem.

    Both are of the luminance, rounded to 8 bits, at the shift that fits best, see `selfdeblur.scores.metrics.align`.
    """
    image = np.rint(np.clip(luminance(image), 0, 1) * 255) / 255
    found = align(image, luminance(problem.x))
    return psnr(found.image, found.truth), ssim(found.image, found.truth)


@dataclass(frozen=True)
class Problem:
    """One blurry picture with all that is known of it.

    Attributes
    ----------
    half : str
    number : int
        From 1.
    picture, picture_kind, kernel_kind : str
    kernel_size : (int, int)
        What is handed over as the size of the kernel, odd: larger than the kernel itself, see LOOSE.
    side : (int, int)
        Height and width of the blurry image.
    noise : float
        Deviation of the white noise of each channel before coding, in shares of the range.
    coding : str
        "8 bit": rounded; "JPEG 90", "JPEG 75": compressed so; "gamma": blurred in linear light, then rounded. Noise
        is added to the grey levels, after the gamma.
    colour : bool
    kernel : ndarray of float64 (h, w)
        The true kernel, non-negative, sum 1, correlation sense, its bounding box in the middle.
    whole : ndarray of float32 (H + h - 1, W + w - 1) or with (.., 3)
        The picture on the padded grid of the forward model; lights are above 1.
    x : ndarray of float32 (H, W) or (H, W, 3)
        Sharp image, its middle, 0..1.
    y : ndarray of float32, as x
        Blurry image, 0..1, whole multiples of 1/255.
    blurred : ndarray of float32, as x
        Before noise and coding, without limits.
    """

    half: str
    number: int
    picture: str
    picture_kind: str
    kernel_kind: str
    kernel_size: tuple[int, int]
    side: tuple[int, int]
    noise: float
    coding: str
    colour: bool

    def _rng(self, part):
        return np.random.Generator(np.random.PCG64([SEEDS[self.half], self.number, part]))

    @cached_property
    def kernel(self):
        return drawn_kernel(self.kernel_kind, self.kernel_size[0], self._rng(0))

    @cached_property
    def whole(self):
        size = [n + k - 1 for n, k in zip(self.side, self.kernel_size, strict=True)]
        image = _picture(self.picture, size, self._rng(1))
        if image.ndim == 3 and not self.colour:
            image = image @ np.array([0.299, 0.587, 0.114])
        return image.astype(np.float32)

    @cached_property
    def x(self):
        top, left = (n // 2 for n in self.kernel_size)
        return self.whole[top : top + self.side[0], left : left + self.side[1]].clip(0, 1)

    @cached_property
    def blurred(self):
        power = GAMMA if self.coding == "gamma" else 1
        channels = torch.from_numpy(np.atleast_3d(self.whole).astype(np.float64) ** power).permute(2, 0, 1)
        light = blur(channels, torch.from_numpy(self.kernel)).permute(1, 2, 0).numpy()
        return (light.clip(0) ** (1 / power)).reshape(self.x.shape).astype(np.float32)

    @cached_property
    def y(self):
        seen = self.blurred.clip(0, 1)
        if self.noise:
            seen = seen + self.noise * ndtri(self._rng(2).random(seen.shape).clip(1e-12))
        seen = np.rint(seen.clip(0, 1) * 255).astype(np.uint8)
        if self.coding.startswith("JPEG"):
            Image.fromarray(seen).save(file := io.BytesIO(), "JPEG", quality=int(self.coding.split()[1]))
            seen = np.asarray(Image.open(file))
        return seen.astype(np.float32) / 255


def _between(low, high, rng):
    return low + (high - low) * rng.random()


def _whole(low, high, rng):
    """A whole number from low to high."""
    return low + int((high + 1 - low) * rng.random())


def _odd_below(n):
    return int(n - 1) // 2 * 2 + 1


def _shuffled(items, rng):
    return [items[n] for n in np.argsort(rng.random(len(items)), kind="stable")]


def _dealt(deck, rng):
    return _shuffled([card for card, count in deck.items() for _ in range(count)], rng)


def _sizes(whole, kernel_kind, rng):
    """Size that is handed over for a kernel, and (height, width) of the blurry image, for a picture of a size."""
    least, most = KERNEL_SIZES
    most = min(LARGEST_KERNEL.get(kernel_kind, most), (min(whole) + 1) // (SIDES_OF_KERNEL + 1))
    size = _odd_below(least * (most / least) ** rng.random() + 1)
    least = max(SMALLEST, SIDES_OF_KERNEL * size)
    side = least * (max(LARGEST, least) / least) ** rng.random()
    height, width = ((1, 1), (1, 1.33), (1.33, 1), (1, 1.5))[_whole(0, 3, rng)]
    wanted = [min(round(side * height), LARGEST), min(round(side * width), LARGEST)]
    return size, tuple(max(least, min(n, m - size + 1)) for n, m in zip(wanted, whole, strict=True))


# Kernels


def drawn_kernel(kind, size, rng):
    """A kernel (size, size) of a kind, smaller than that by a factor within LOOSE."""
    support = max(_odd_below(min(size / _between(*LOOSE, rng), size - 2)), 5)
    if kind == "shake thin":
        kernel = camera_shake_kernel(support, rng=rng)
    elif kind == "shake thick":
        stroke = min(_between(*STROKES, rng), support / 3)
        kernel = _stroked(camera_shake_kernel(max(_odd_below(support - _pen_size(stroke) + 4), 3), rng=rng), stroke)
    elif kind in ("line", "double"):
        angle, share, stroke = np.pi * rng.random(), _between(0.3, 0.7, rng), _between(1, 2, rng)
        turn = np.array([np.sin(angle), np.cos(angle)])
        # From end to end; a point between four pixels takes up two of them, and the pen goes to either side.
        length = (support - 1 - _pen_size(stroke)) / np.abs(turn).max()
        places, weights = (
            (np.linspace(-0.5, 0.5, 4096), 1) if kind == "line" else (np.array([-0.5, 0.5]), [share, 1 - share])
        )
        kernel = _stroked(_points(*(length * turn[:, None] * places), support, np.array(weights)), stroke)
    elif kind == "disk":
        kernel = _disk(support - _between(0, 1.5, rng))
    else:
        side = np.exp(-0.5 * (np.arange(support) - support // 2) ** 2 / (support / 6) ** 2)
        kernel = side[:, None] * side
    rows, columns = (np.flatnonzero(kernel.any(axis)) for axis in (1, 0))
    kernel = kernel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    before = [(size - n) // 2 for n in kernel.shape]
    padding = [(b, size - n - b) for b, n in zip(before, kernel.shape, strict=True)]
    return np.pad(kernel / kernel.sum(), padding)


def _points(rows, columns, size, weights):
    """Points around the middle of (size, size), each shared among the four pixels around it."""
    kernel = np.zeros((size + 2, size + 2))
    rows, columns = rows + (size + 1) / 2, columns + (size + 1) / 2
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for dr in (0, 1):
        for dc in (0, 1):
            weight = np.abs(1 - dr - (rows - top)) * np.abs(1 - dc - (columns - left))
            np.add.at(kernel, (top + dr, left + dc), weights * weight)
    return kernel


def _stroked(kernel, width):
    """A kernel drawn with a round pen of a width in pixels; 1 leaves it as it is."""
    return convolve(kernel, _disk(width), method="direct") if width > 1 else kernel


def _pen_size(width):
    """Pixels a side of a pen of a width."""
    return 2 * math.ceil((width - 1) / 2) + 1


def _disk(diameter, parts=16):
    """A disk; each pixel is worth the share of it that is covered."""
    size = _pen_size(diameter)
    place = (np.arange(size * parts) + 0.5) / parts - size / 2
    inside = place[:, None] ** 2 + place**2 <= (diameter / 2) ** 2
    disk = inside.reshape(size, parts, size, parts).mean((1, 3))
    return disk / disk.sum()


# Pictures


@lru_cache(maxsize=4)
def _installed(name):
    """A picture of scikit-image as an image of Pillow, grey or RGB."""
    if name == "motorcycle":
        return Image.fromarray(data.stereo_motorcycle()[0])
    if name == "logo":
        return Image.alpha_composite(Image.new("RGBA", (500, 500), "white"), Image.fromarray(data.logo())).convert(
            "RGB"
        )
    if name == "faces":
        faces = np.rint(data.lfw_subset()[:100] * 255).astype(np.uint8)
        return Image.fromarray(faces.reshape(10, 10, 25, 25).swapaxes(1, 2).reshape(250, 250))
    if name == "retina":
        return Image.fromarray(data.retina()).reduce(2)
    names = {
        "astronaut face": "astronaut",
        "cat face": "chelsea",
        "camera head": "camera",
        "handwriting": "text",
        "hubble": "hubble_deep_field",
    }
    return Image.fromarray(getattr(data, names.get(name, name))())


def _picture(name, size, rng):
    """A picture (height, width) or (height, width, 3), float64, 0..1 or, with lights, above."""
    if name.endswith(", lights"):
        return _lights(_cropped(name.removesuffix(", lights"), size, rng), rng)
    if name in DRAWINGS:
        if not hasattr(ImageFont, "load_default_imagefont"):
            raise UserError(f"Pillow {PIL.__version__}: its letters need 10.4 or later; run pip install -U pillow")
        return DRAWINGS[name](size, rng)
    return _cropped(name, size, rng)


def _cropped(name, size, rng):
    """A part of an installed picture, made smaller by up to two where there is enough of it, perhaps mirrored."""
    height, width, top, left, _ = PARTS[name]
    shrink = _between(1, max(min(2, height / size[0], width / size[1]), 1), rng)
    taken = [min(round(n * shrink), m) for n, m in zip(size, (height, width), strict=True)]
    top += int((height - taken[0] + 1) * rng.random())
    left += int((width - taken[1] + 1) * rng.random())
    image = _installed(name).crop((left, top, left + taken[1], top + taken[0]))
    image = np.asarray(image.resize(size[::-1], Image.Resampling.HAMMING)) / 255
    return image[:, ::-1] if rng.random() < 0.5 and name not in ("page", "handwriting", "logo") else image


def _lights(image, rng):
    """A picture by night: dark, with lamps of 2 to 20 times the range."""
    image = (_between(0.3, 0.7, rng) * np.atleast_3d(image) ** 1.3) * np.ones(3)
    height, width = image.shape[:2]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    for _ in range(_whole(6, 14, rng) + height * width // 9000):
        row, column, radius = height * rng.random(), width * rng.random(), 0.6 + 2.5 * rng.random() ** 3
        distance = np.sqrt((rows - row) ** 2 + (columns - column) ** 2)
        colour = 1 - np.array([0, 0.4, 0.7]) * rng.random()
        lamp = (radius + 0.5 - distance).clip(0, 1) * 2 * 10 ** rng.random() + 0.15 * np.exp(-distance / (3 * radius))
        image += lamp[:, :, None] * colour
    return image


WORDS = """
the of and to in a is that for it was on are as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know river mountain
Window station Monday garden Light harbour Market letter number 1987 2024 37 12:45 No. price total street north
""".split()  # noqa: SIM905

# Letters are drawn so many times larger than they are.
FINE = 2


def _font(height):
    """Pillow's own typeface, capital letters of a height in fine pixels."""
    return ImageFont.load_default(height / 0.7).font_variant(layout_engine=ImageFont.Layout.BASIC)


def _text(words, rng):
    return " ".join(WORDS[_whole(0, len(WORDS) - 1, rng)] for _ in range(words))


def _plate_text(rng):
    letters, digits = "ABCDEFGHJKLMNPRSTUVWXYZ", "0123456789"
    pattern = ("LL 123 LL", "L 1234 LL", "LLL 123", "LL-L 1234")[_whole(0, 3, rng)]
    draw = {True: letters, False: digits}
    return "".join((deck := draw[c.isalpha()])[_whole(0, len(deck) - 1, rng)] if c.isalnum() else c for c in pattern)


def _turned(sheet, size, rng, most):
    """A fine drawing seen a little from the side, its corners moved by up to ``most`` of its sides, and reduced."""
    a, b, c, d = (most * (rng.random() - 0.5) for _ in range(4))
    width, height = sheet.size
    sheet = sheet.transform(
        sheet.size,
        Image.Transform.PERSPECTIVE,
        (1 + a / 4, b, -b * height / 2, c, 1 + d / 4, -c * width / 2, a / width / 2, d / height / 2),
        Image.Resampling.BICUBIC,
    )
    image = np.asarray(sheet.reduce(FINE)) / 255
    return image[: size[0], : size[1]]


def _lit(image, rng):
    """A picture under light that falls off to one side, as RGB."""
    height, width = image.shape[:2]
    slope = (rng.random(2) - 0.5) * 0.3
    light = 1 + slope[0] * (np.arange(height)[:, None] / height - 0.5) + slope[1] * (np.arange(width) / width - 0.5)
    return (image * light[:, :, None]).clip(0, 1)


def _tone(low, high, rng):
    """A shade of grey with a little colour, of Pillow."""
    return tuple(int(255 * min(max(_between(low, high, rng) + 0.06 * (rng.random() - 0.5), 0), 1)) for _ in range(3))


def _drawn_page(size, rng):
    """Lines of print on paper."""
    margin = 40
    sheet = Image.new("RGB", [(n + 2 * margin) * FINE for n in size[::-1]], _tone(0.85, 0.97, rng))
    draw, ink = ImageDraw.Draw(sheet), _tone(0.03, 0.2, rng)
    height = FINE * _between(7, 15, rng)
    body, head = _font(height), _font(1.7 * height)
    row = FINE * (margin / 2 + 10 * rng.random())
    while row < sheet.height:
        heading = rng.random() < 0.1
        text = _text(3 if heading else int(sheet.width / height / 2.5), rng)
        if rng.random() < 0.85:
            draw.text(
                (FINE * (margin + 8), row), text, ink, head if heading else body, stroke_width=FINE // 2 * heading
            )
        row += height * (3.2 if heading else 2.1)
    image = _turned(sheet, [n + 2 * margin for n in size], rng, 0.1)
    return _lit(image[margin : margin + size[0], margin : margin + size[1]], rng)


def _board(name, size, rng, tone, ink, lines):
    """A board with lines of letters before a part of a photograph."""
    behind = Image.fromarray(np.rint(_cropped(name, size, rng) * 255).astype(np.uint8)).convert("RGB")
    sheet = behind.resize([n * FINE for n in behind.size], Image.Resampling.BICUBIC)
    width = sheet.width * _between(0.65, 0.95, rng)
    height = width / 1.25 / max(len(line) for line in lines)
    tall = (1.9 * len(lines) + 0.6) * height
    left, top = (sheet.width - width) * rng.random(), (sheet.height - tall) * rng.random()
    draw, font = ImageDraw.Draw(sheet), _font(height)
    box = (left, top, left + width, top + tall)
    draw.rounded_rectangle(box, height / 3, tone, ink, max(int(height / 8), 1))
    for n, line in enumerate(lines):
        place = (left + width / 2, top + height * (1.25 + 1.9 * n))
        draw.text(place, line, ink, font, anchor="mm", stroke_width=int(height / 20))
    return _lit(_turned(sheet, size, rng, 0.08), rng)


def _plate(size, rng):
    """The number plate of a car."""
    tone = (_tone(0.85, 0.95, rng), (240, 200, 40))[_whole(0, 1, rng)]
    return _board("motorcycle", size, rng, tone, _tone(0.02, 0.12, rng), [_plate_text(rng)])


def _sign(size, rng):
    """A street sign, light letters on a dark board."""
    tone = ((20, 60, 150), (10, 100, 60), (150, 25, 25), (40, 40, 45))[_whole(0, 3, rng)]
    lines = [_text(_whole(1, 2, rng), rng).title() for _ in range(_whole(2, 4, rng))]
    return _board("camera", size, rng, tone, _tone(0.88, 0.98, rng), lines)


def _screen(size, rng):
    """A window full of letters on a screen, in the small typeface of Pillow, pixel by pixel."""
    scale = _whole(1, 2, rng)
    paper, ink = _tone(0.05, 0.2, rng), _tone(0.7, 0.95, rng)
    if rng.random() < 0.5:
        paper, ink = ink, paper
    sheet = Image.new("RGB", [-(-n // scale) for n in size[::-1]], paper)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default_imagefont()
    for row in range(2, sheet.height, 13):
        colour = ink if rng.random() < 0.7 else tuple(int(120 + 100 * rng.random()) for _ in range(3))
        draw.text((4 + 12 * _whole(0, 3, rng), row), _text(_whole(0, sheet.width // 30, rng), rng), colour, font)
    sheet = sheet.resize([n * scale for n in sheet.size], Image.Resampling.NEAREST)
    return np.asarray(sheet)[: size[0], : size[1]] / 255


DRAWINGS = {"drawn page": _drawn_page, "plate": _plate, "sign": _sign, "screen": _screen}
