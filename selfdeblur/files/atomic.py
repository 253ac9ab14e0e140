"""Writing files so that each is either whole or absent."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from selfdeblur.errors import OutputError


def write_bytes(path, content):
    """Write ``content`` in place of ``path``.

    The content goes to a temporary name in the same folder, is flushed to the
    disk and moved into place, so ``path`` never holds a part of it. Where that
    fails, ``path`` is left as it was and nothing temporary remains.

    Parameters
    ----------
    path : str or Path
        Its folder is made where it does not exist.
    content : bytes-like

    Raises
    ------
    OutputError
        If the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        try:
            handle, temporary = _temporary(path)
        except FileNotFoundError:  # only then, for on a shared file system each look at a folder takes its time
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = _temporary(path)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                os.unlink(temporary)
                temporary = None
                missing = memoryview(content).nbytes - shutil.disk_usage(path.parent).free
                reason += f", {max(missing, 1)} bytes are missing"
        raise OutputError(f"{path}: cannot be written ({reason})") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _temporary(path):
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


def write_text(path, content):
    """Write ``content`` as UTF-8 in place of ``path``, see `write_bytes`."""
    write_bytes(path, content.encode())


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current
