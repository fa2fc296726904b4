"""The tuning of memory, in a process of its own, because it lasts as long as the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from support.requires import require

FAULTS = """
import gc, resource, sys
from simplu_worker.memory_tuning import tune_allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill():
    blocks = [bytearray(b"x") * 1_000_000 for _ in range(20)]

if sys.argv[1] == "settled":
    tune_allocator()
fill()
before = faults()
for _ in range(10):
    fill()
print(faults() - before, gc.get_freeze_count())
"""


@pytest.mark.slow
def test_settled_process_reuses_the_memory_of_blocks_that_are_let_go_of() -> None:
    require("glibc", found=platform.libc_ver()[0] == "glibc", how="run this on a Linux that has it")
    unsettled, _ = faults("unsettled")
    settled, _ = faults("settled")

    assert unsettled > 10_000
    assert settled < unsettled / 10


def faults(how: str) -> tuple[int, int]:
    process = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    count, frozen = map(int, process.stdout.split())
    return count, frozen
