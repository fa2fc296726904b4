"""How much rarer a stream shard in use is read while the replica's processor is busy. Pure.

Every read brings a batch for each Postgres shard, and a batch costs a transaction, however few operations it has. So a
replica that has little time left reads more rarely: its transactions are fewer and larger, and operations are seen up
to 0.4 s later. A replica with time to spare reads as often as it may.
"""

from __future__ import annotations

from typing import Final

SAMPLE_S: Final = 2.0  # between two shares
EASY_SHARE: Final = 0.4  # of a core, or of the quota: up to here nothing is read more rarely
BUSY_SHARE: Final = 0.8  # from here on reads are as rare as they may be
STRETCH_MAX: Final = 3.0  # times as long between two reads
STEP: Final = 0.3  # of the way to the wanted factor: the share follows the factor, and must not swing


def wanted_stretch(share: float) -> float:
    """Return how many times as long as usual readers should wait between two reads, by the processor's *share*."""
    over = (share - EASY_SHARE) / (BUSY_SHARE - EASY_SHARE)
    return 1.0 + (STRETCH_MAX - 1.0) * min(max(over, 0.0), 1.0)


class ReadStretch:
    """The factor by which the readers of a replica wait longer."""

    def __init__(self) -> None:
        self.factor = 1.0
        self._has_begun = False

    def __repr__(self) -> str:
        return f"ReadStretch({self.factor:.2f})"

    def note_share(self, share: float) -> None:
        """Note the share of the processor that the replica used since the last call, 0 to 1.

        The first one is that of the start, and does not count. Where the share would be small even if all of it grew
        with the number of reads, the replica reads as usual at once.
        """
        if not self._has_begun:
            self._has_begun = True
        elif share * self.factor <= EASY_SHARE:
            self.factor = 1.0
        else:
            self.factor += STEP * (wanted_stretch(share) - self.factor)
