"""Make docs/stages.svg, the figure of the stages of the preset fast, by a run on the first image of the sample."""

import base64
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selfdeblur.api import start, take_steps
from selfdeblur.data.benchmarks import LEVIN
from selfdeblur.data.sample import write_sample
from selfdeblur.files.images import read_image
from selfdeblur.forward import centre
from selfdeblur.settings import make_settings

IMAGE, KERNEL, GAP, LINE = 200, 120, 50, 17
TARGET = Path(__file__).resolve().parents[1] / "docs" / "stages.svg"


def main():
    """Run the preset and draw what each stage gives."""
    with tempfile.TemporaryDirectory() as folder:
        path = next(p for p in write_sample(folder) if p.parent.name == "levin")
        y = read_image(path).astype(np.float32)
        truth = read_image(path.parent / "gt" / f"{path.stem.split('_')[0]}.png")
    settings = make_settings("fast")
    run = start(y, LEVIN.kernel_size(path.stem), settings, device="cpu")
    take_steps(run)
    output = run.output()
    checked = centre(run.fit.outputs()[0], run.kernel_size)[0, 0].numpy()
    kernels = {name: kernel.numpy() for name, kernel in run.kernels.items()}
    TARGET.parent.mkdir(exist_ok=True)
    text = drawing(y, truth, output, checked, kernels, settings.num_iter)
    TARGET.write_text(text, encoding="utf-8")
    print(f"{TARGET}: {run.vote}; {run.quality(output)}")


def drawing(y, truth, output, checked, kernels, steps):
    """The figure as the text of an SVG."""
    half = IMAGE // 2
    columns = [(GAP + IMAGE) * i for i in range(4)]
    middle = 10 + 3 * LINE
    row = IMAGE + 4 * LINE
    parts = []
    parts += panel(columns[0], middle, y, None, "blurry image y")
    texts = {
        "search": "sparse gradients, from coarse to fine, many starts",
        "check": f"up to {steps} steps of two thin networks, from the kernel of the search",
        "vote": "the search's kernel if the check confirms it, else the mean",
        "deconvolution": "y with that kernel: the result x",
    }
    if output.share < 1:
        texts["deconvolution"] = f"y with that kernel, {1 - output.share:.0%} of the check: the result x"
    parts += panel(columns[1], middle, None, kernels["estimate"], "search", texts["search"])
    parts += panel(columns[2], middle, checked, kernels["check"], "check", texts["check"])
    parts += panel(columns[2], row + middle, None, output.kernel.numpy(), "vote", texts["vote"])
    parts += panel(columns[3], middle, output.image.numpy(), None, "deconvolution", texts["deconvolution"])
    parts += panel(columns[3], row + middle, truth, None, "for comparison", "the sharp image, seen by none")
    upper, lower = middle + half, row + middle + half
    left, right = (GAP + IMAGE) * 1 - GAP + 6, (GAP + IMAGE) * 1 - 6
    parts += [
        arrow(left, upper, right, upper),
        arrow(columns[2] - GAP + 6, upper, columns[2] - 6, upper),
        arrow(columns[2] - GAP + 6, upper + half, columns[2] + 10, lower - half + 10),
        arrow(columns[2] + half, middle + IMAGE + 6, columns[2] + half, row + middle - 2.6 * LINE),
        arrow(columns[3] - GAP + 6, lower - 30, columns[3] - 6, upper + 60),
    ]
    size = columns[3] + IMAGE, 2 * row + middle - 3 * LINE + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 0 {size[0] + 8} {size[1]}" font-family="sans-serif" '
        'font-size="13">\n<title>The stages of the preset fast on one image of the sample</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>\n'
        f'<rect x="-4" width="{size[0] + 8}" height="{size[1]}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def panel(left, top, image, kernel, title, text=""):
    """An image with a kernel in its corner, or one of them alone, under a title and a line of text."""
    words = wrapped(text)
    lines = [f'<text x="{left}" y="{top - (2.2 if text else 0.5) * LINE}" font-weight="bold">{title}</text>']
    lines += [
        f'<text x="{left}" y="{top - (1.25 - n) * LINE + 1}" font-size="11.5" fill="#333">{line}</text>'
        for n, line in enumerate(words)
    ]
    if image is not None:
        lines.append(picture(left, top, IMAGE, image))
    if kernel is not None:
        side = KERNEL if image is None else 60
        at = (left + (IMAGE - side) / 2, top + (IMAGE - side) / 2)
        if image is not None:
            at = left + IMAGE - side, top + IMAGE - side
        lines.append(picture(*at, side, kernel / kernel.max(), "pixelated"))
        lines.append(f'<rect x="{at[0]}" y="{at[1]}" width="{side}" height="{side}" fill="none" stroke="#fff"/>')
    return lines


def wrapped(text, most=33):
    """The text in lines of so many characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def picture(left, top, side, image, rendering="auto"):
    """An image of values 0 to 1, in the file itself."""
    done, png = cv2.imencode(".png", np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    assert done
    data = base64.b64encode(png.tobytes()).decode()
    return (
        f'<image x="{left}" y="{top}" width="{side}" height="{side}" style="image-rendering:{rendering}" '
        f'href="data:image/png;base64,{data}"/>'
    )


def arrow(x1, y1, x2, y2):
    """A straight arrow."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#555" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    main()
