"""The checksum of a set of rows, which does not depend on their order. Pure.

The sum of a hash of each row, in two halves of 64 bits, with their number. Both servers compute the hashes, from the
row as each has it: the type, the id, the document as Postgres writes it, and both times.
"""

from __future__ import annotations

import msgspec

HALF: int = 1 << 64


class RowChecksum(msgspec.Struct):
    """The checksum of the rows added so far."""

    row_count: int = 0
    high: int = 0
    low: int = 0

    def add(self, high: int, low: int, *, row_count: int = 1) -> None:
        """Add the hash of a row, or the sums of several."""
        self.row_count += row_count
        self.high = (self.high + high) % HALF
        self.low = (self.low + low) % HALF

    @property
    def text(self) -> str:
        """The hash as 32 hexadecimal digits, without the number of rows."""
        return f"{self.high:016x}{self.low:016x}"
