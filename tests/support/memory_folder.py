"""Temporary files of the tests in memory, where the system has room for them."""

from __future__ import annotations

import os
import tempfile

# A file system in memory, on Linux. In containers it is small, or no program in it may run.
FOLDER = "/dev/shm"
MIN_BYTES = 4 * 1024**3


def use_memory() -> None:
    """Have this process and those it starts make temporary files in memory, unless TMPDIR names another folder.

    Tests start Postgres servers whose files nobody keeps: on a disk these cost several times the processor time.
    """
    if "TMPDIR" not in os.environ and is_roomy(FOLDER):
        os.environ["TMPDIR"] = tempfile.tempdir = FOLDER


def is_roomy(folder: str) -> bool:
    try:
        facts = os.statvfs(folder)
    except OSError:
        return False
    is_big = facts.f_bavail * facts.f_frsize >= MIN_BYTES
    return is_big and not facts.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK | os.X_OK)
