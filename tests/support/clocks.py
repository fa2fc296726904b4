"""Wrong clocks. A shard days ahead of a right clock is, for the code, a right shard and a clock days behind."""

from __future__ import annotations

from datetime import timedelta
from email.utils import format_datetime

from simplu_worker.timing.clock import OwnClock, utc_now

DAYS = timedelta(days=20)
APART = "set it by NTP, until then the shard is not used"


def clock_off_by(difference: timedelta, *, of_aws: timedelta | None = None) -> OwnClock:
    """Return a clock of this machine that is *difference* ahead, after an answer of an AWS that is *of_aws* ahead."""
    clock = OwnClock(utc=lambda: utc_now() + difference)
    if of_aws is not None:
        clock.compare(format_datetime(utc_now() + of_aws, usegmt=True))
    return clock


# A shard ahead, a shard behind, and a shard that agrees with this machine where both differ from AWS.
CLOCKS_APART = {
    "shard ahead": clock_off_by(-DAYS, of_aws=-DAYS),
    "shard behind": clock_off_by(DAYS, of_aws=DAYS),
    "this machine and the shard ahead of AWS": clock_off_by(timedelta(), of_aws=-DAYS),
}
