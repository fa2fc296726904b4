"""The share of processor time that this process uses, of the time that it may use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

QUOTA_FILE: Final = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "max 100000", or "50000 100000" for half a core


class CpuShare:
    """Measures the processor time between two calls of `read_percent`."""

    def __init__(
        self,
        *,
        cores: float | None = None,
        cpu_s: Callable[[], float] = time.process_time,
        wall_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """*cores* are those that the process may use: at most one, because it is one thread; None reads the quota."""
        self._cores = usable_cores(_read_quota()) if cores is None else cores
        self._cpu_s, self._wall_s = cpu_s, wall_s
        self._last = cpu_s(), wall_s()

    def __repr__(self) -> str:
        return f"CpuShare(cores={self._cores:g})"

    def read_percent(self) -> float:
        """Return the percentage used since the last call, 0 to 100; 0 when no time has passed."""
        cpu_s, wall_s = self._cpu_s(), self._wall_s()
        used_s, passed_s = cpu_s - self._last[0], (wall_s - self._last[1]) * self._cores
        self._last = cpu_s, wall_s
        return min(max(100 * used_s / passed_s, 0.0), 100.0) if passed_s > 0 else 0.0


def _read_quota() -> str:
    try:
        return QUOTA_FILE.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):  # no cgroup, or one of version 1
        return ""


def usable_cores(quota: str) -> float:
    """Return the cores that one thread may use, by the contents of `cpu.max`."""
    limit, _, period = quota.strip().partition(" ")
    if not limit.isdecimal() or not period.isdecimal() or int(period) == 0:
        return 1.0
    return min(max(int(limit) / int(period), 0.01), 1.0)
