"""Images and kernels rendered from the networks that runs have left, without fitting."""

import sys
from pathlib import Path

from selfdeblur.checks import check_image
from selfdeblur.colour import with_luminance
from selfdeblur.errors import UserError
from selfdeblur.files import names
from selfdeblur.files.images import read_image, write_image
from selfdeblur.files.models import load_model
from selfdeblur.files.records import read_json


def reproduce_files(paths, folder, *, kernel_size):
    """Render the image and the kernel of each blurry image from the models in ``folder``.

    Parameters
    ----------
    paths : list of Path
        Blurry images; they give the names, the sizes and the chroma.
    folder : Path
        Holds ``NAME_xnet.pth`` and ``NAME_knet.pth``, and gets ``NAME_x.png`` and ``NAME_k.png``.
    kernel_size : callable
        Gives (h, w) for a name, where neither the record nor the kernel's model tells.

    Returns
    -------
    int
        Exit status: 2 where an image had no model or one that is not usable, else 0.
    """
    status = 0
    for path in paths:
        try:
            written = _reproduce_file(path, Path(folder), kernel_size)
            print(f"{path.stem}: wrote {', '.join(p.name for p in written)}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    return status


def _reproduce_file(path, folder, kernel_size):
    name = path.stem
    image_file, kernel_file = folder / f"{name}{names.IMAGE_NETWORK}", folder / f"{name}{names.KERNEL_NETWORK}"
    if not image_file.exists() and not kernel_file.exists():
        raise UserError(f"{image_file}: no such model; {folder} has none for {name}")
    written, size = [], None
    if kernel_file.exists():
        model = load_model(kernel_file)
        size = model.kernel_size
        kernel = model.kernel
        written.append(folder / f"{name}{names.KERNEL}")
        write_image(written[-1], kernel / kernel.max())
    if image_file.exists():
        y = check_image(read_image(path))
        recorded = (read_json(folder / f"{name}{names.RECORD}") or {}).get("kernel_size")
        size = size or recorded or kernel_size(name)
        if size is None:
            raise UserError(f"{name}: neither {folder} nor the benchmark tells its kernel size; give --kernel_size")
        model = load_model(image_file, image_size=y.shape[:2], kernel_size=size)
        written.append(folder / f"{name}{names.IMAGE}")
        write_image(written[-1], with_luminance(y, model.image))
    return written
