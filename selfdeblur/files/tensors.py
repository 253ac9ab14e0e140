"""Files of tensors and plain values, from which nothing is executed."""

import io
import warnings

import torch

from selfdeblur.errors import UserError
from selfdeblur.files.atomic import write_bytes


def write_torch(path, content):
    """Write tensors, and dictionaries and lists of them, with `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def read_torch(path):
    """Read a file of `write_torch`; nothing in it is executed.

    Raises
    ------
    UserError
        If the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:
        # A damaged file can break off the reading in any way.
        raise UserError(f"{path}: damaged, or not a file of plain tensors; remove it") from error
