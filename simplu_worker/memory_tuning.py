"""Tune the garbage collector, the memory allocator and the threads of the process."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

_GC_THRESHOLDS: Final = (20_000, 50, 100)  # rarely: hardly any long-lived object is part of a cycle

# mallopt(3), of glibc; its malloc.h has the numbers.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MIB: Final = 1024 * 1024
_TRIM_ABOVE: Final = 64 * _MIB  # the default of PREFETCH_MAX_BYTES
_MAP_ABOVE: Final = 32 * _MIB  # the highest bound that glibc accepts

THREADS: Final = 64  # a lookup of a name without an answer keeps one for up to 40 s


def end_start() -> None:
    """Have the garbage collector run from now on, and pass over what the imports have made."""
    gc.freeze()
    gc.enable()


def widen_threads() -> None:
    """Let THREADS lookups of names wait at a time; to be called on the event loop before the first one."""
    os.environ.setdefault("UV_THREADPOOL_SIZE", str(2 * THREADS))  # of libuv, which gives lookups half of them
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="lookup"))


def tune_allocator() -> None:
    """Freeze the start-up heap for the garbage collector, and make glibc keep freed memory; call it after the start.

    Replies and arguments are blocks of up to a megabyte; giving them back and forth costs a twentieth of the worker's
    processor time.
    """
    gc.collect()
    gc.freeze()  # a full collection would be the longest turn of the event loop
    gc.set_threshold(*_GC_THRESHOLDS)
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _TRIM_ABOVE)
        mallopt(_M_MMAP_THRESHOLD, _MAP_ABOVE)
