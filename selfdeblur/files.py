"""Writing files so that each is either whole or absent."""

import contextlib
import os
import tempfile
from pathlib import Path

from selfdeblur.errors import UserError


@contextlib.contextmanager
def replacing(path):
    """Yield a binary file whose content takes the place of ``path`` at the end.

    The content goes to a temporary name in the same folder, is flushed to the
    disk and moved into place, so ``path`` never holds a part of it. When the
    block raises, ``path`` is left as it was and the temporary file removed.

    Raises
    ------
    UserError
        If the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_bytes(path, content):
    """Write ``content`` to ``path`` by way of a temporary file, see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path, content):
    """Write ``content`` to ``path`` as UTF-8 by way of a temporary file, see `replacing`."""
    write_bytes(path, content.encode())


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current
