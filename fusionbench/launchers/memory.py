"""The C library's heap, told to keep what it has.

Each training step frees tens of MB and asks for them again. By default glibc gives freed memory
back to the system and gets it again page by page: 12,000 to 30,000 page faults a cell, 7 to 25 %
of its processor time. Nothing here changes a result.
"""

import ctypes
import sys
from contextlib import suppress

# From malloc.h; the largest threshold that glibc accepts is 32 MiB.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Serve large tensors from the heap and never shrink it; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        wanted = {_MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 2048 * _MIB - 1, _TOP_PAD: 64 * _MIB}
        return all(libc.mallopt(option, value) for option, value in wanted.items())
    return False
