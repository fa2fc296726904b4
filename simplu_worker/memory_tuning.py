"""How the process keeps its memory."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from typing import Final

_GC_THRESHOLDS: Final = (20_000, 50, 100)  # of what stays for a while next to nothing can be in a cycle

# mallopt(3), of glibc; its malloc.h has the numbers.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MIB: Final = 1024 * 1024
_TRIM_ABOVE: Final = 64 * _MIB  # what is in hand by default: PREFETCH_MAX_BYTES
_MAP_ABOVE: Final = 32 * _MIB  # glibc takes no higher bound


def tune_allocator() -> None:
    """Take what there is for permanent, and keep what is let go of for what comes next. To be called once started.

    Replies and the arguments of statements are blocks of a megabyte. glibc gives such back to the kernel and gets them
    anew, page by page: a twentieth of the worker's processor time. Another C library goes its own way.
    """
    gc.collect()
    gc.freeze()  # looking through it all is the longest turn of the loop
    gc.set_threshold(*_GC_THRESHOLDS)
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _TRIM_ABOVE)
        mallopt(_M_MMAP_THRESHOLD, _MAP_ABOVE)
