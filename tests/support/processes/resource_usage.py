"""The memory and the processor time of processes, as the system counts them."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

SAMPLE_S = 0.5
PROC = Path("/proc")


def rss_bytes(pid: int) -> int | None:
    """Return the resident memory of a process, VmRSS of proc(5), else from ps; none when the process is gone."""
    if not (PROC / "self" / "status").exists():
        ps = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return int(ps.stdout) * 1024 if ps.stdout.strip() else None
    with suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


def cpu_seconds(pids: Iterable[int], name_of: Callable[[str], str], *, with_ended: bool = False) -> Counter[str]:
    """Return the processor time used so far, by *name_of* each command line; empty without /proc.

    With *with_ended* it includes ended children: otherwise a server's time decreases when one of its backends ends.
    """
    used: Counter[str] = Counter()
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    for pid in pids:
        with suppress(OSError):
            line = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
            times = stat[stat.rindex(")") + 2 :].split()[
                11 : 15 if with_ended else 13
            ]  # user, system; then those of its children
            used[name_of(line)] += sum(map(int, times)) / ticks_per_s  # type: ignore[assignment]
    return used


class ValueRange(NamedTuple):
    """The least, the median and the greatest of several measurements."""

    least: float
    median: float
    most: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> ValueRange:
        return cls(min(values), statistics.median(values), max(values))


class MemorySampler:
    """Samples the memory of one process; *pid* is called for every sample."""

    def __init__(self, pid: Callable[[], int | None]) -> None:
        self._pid = pid
        self.samples: list[tuple[datetime, int]] = []

    async def run(self) -> None:
        while True:
            pid = self._pid()
            if pid is not None and (size := rss_bytes(pid)) is not None:
                self.samples.append((datetime.now(UTC), size))
            await asyncio.sleep(SAMPLE_S)

    def range_between(self, begin: datetime, end: datetime) -> ValueRange | None:
        """Return the range of the memory between two times, in bytes; none without a sample."""
        sizes = [size for at, size in self.samples if begin <= at < end]
        return ValueRange.from_values(sizes) if sizes else None
