"""The throughput of a stream shard, as its reader writes it into the lease row. Pure."""

from __future__ import annotations

import math
from typing import Final

# Slower than the KCL's mean of the last two renewals: a burst of some seconds must not move leases.
TIME_CONSTANT_S: Final = 120.0
KILOBYTE: Final = 1024.0  # of the KCL's `throughputKBps`


class ThroughputMeter:
    """A moving mean of the bytes read, which begins with the estimate of the last owner."""

    def __init__(self, estimate_kbps: float | None, *, now: float) -> None:
        self.kbps = estimate_kbps
        self._noted_at = now
        self._noted_bytes = 0

    def __repr__(self) -> str:
        return f"ThroughputMeter({self.kbps})"

    def note(self, read_bytes: int, *, now: float) -> None:
        """Take over that *read_bytes* were read since the meter was made, until *now* (monotonic)."""
        passed_s = now - self._noted_at
        if passed_s <= 0:
            return
        rate = (read_bytes - self._noted_bytes) / KILOBYTE / passed_s
        share = 1.0 if self.kbps is None else 1 - math.exp(-passed_s / TIME_CONSTANT_S)
        self.kbps = (self.kbps or 0.0) * (1 - share) + rate * share
        self._noted_at, self._noted_bytes = now, read_bytes
