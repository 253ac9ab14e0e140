"""Locks on files: the kernel's own, which go with the process that holds them."""

import errno
import sys
import time

try:
    import fcntl
except ImportError:  # not on Windows; there two processes must not share a folder
    fcntl = None

# A look at a lock, see `is_locked`, holds it for a moment: who wants it tries again.
TRIES, PAUSE = 3, 0.05
# What flock says where the file system has no locks, as Lustre without its option "flock".
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}

_warned = False


def take_lock(file):
    """Lock an open file against other processes until it is closed; returns False where another one holds it.

    Where there are no locks it returns True, and a warning says once that
    nothing keeps processes apart.
    """
    global _warned
    for attempt in range(TRIES if fcntl else 0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                if not _warned:
                    print(
                        f"warning: {file.name}: no locks on this file system ({error.strerror}); "
                        "give processes that share the folder different images, by --shard or --cluster",
                        file=sys.stderr,
                    )
                _warned = True
                return True
        if attempt < TRIES - 1:
            time.sleep(PAUSE)
    return fcntl is None


def is_locked(path):
    """Whether a process holds the lock of a file; False where there is no such file, or no way to tell."""
    if fcntl is None:
        return False
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
