"""Memory that is kept between steps instead of being handed back to the system."""

import ctypes
import sys

# Parameters of glibc's mallopt, by their numbers in malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4


def keep_freed_memory(*, large=True):
    """Make glibc's allocator keep what is freed; elsewhere this does nothing.

    Every step allocates the same tensors. By default each is mapped anew and
    its pages are faulted in one by one, which costs a quarter of the step.
    The setting holds for the whole process, so programs call it, the library
    does not.

    Parameters
    ----------
    large : bool
        Keep blocks of 32 MB and more, too. What is kept cannot always be used
        again for a tensor of another size, so without them a process needs
        less memory.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    if large:
        mallopt(M_MMAP_MAX, 0)
    else:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 * 2**20)
