"""Wrong clocks. A shard days ahead of a right clock is, for the code, a right shard and a clock days behind."""

from __future__ import annotations

from datetime import timedelta

from simplu_worker.timing.clock import UtcClock, utc_now

DAYS = timedelta(days=20)
APART = "set both by NTP, until then the shard is held"


def clock_off_by(difference: timedelta) -> UtcClock:
    return lambda: utc_now() + difference


CLOCKS_APART = {"shard ahead": clock_off_by(-DAYS), "shard behind": clock_off_by(DAYS)}
