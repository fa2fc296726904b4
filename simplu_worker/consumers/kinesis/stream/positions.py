"""Positions in a stream shard, ordered and written as the Kinesis Client Library orders and writes them. Pure.

The library knows no records of several operations: what is stored is the position before such a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Protocol, TypeAlias

import msgspec

# Kinesis API reference, SequenceNumber: 0|([1-9]\d{0,128}).
_SEQUENCE_NUMBER = re.compile(r"0|[1-9][0-9]{0,128}")
_BEYOND_EVERY_SEQUENCE_NUMBER = 10**129
BEFORE_SUB_RECORDS: Final = -1  # in place of a sub-sequence number


class HashRange(msgspec.Struct, frozen=True, gc=False):
    """The hash keys of a stream shard, both ends inclusive."""

    first: int
    last: int


class Position(msgspec.Struct, frozen=True, order=True, gc=False):
    """The position of a record in its stream shard, or one of the four sentinels below.

    *number* is the sequence number; *part* counts the parts of a record back from its last one: -2, -1, 0. Sentinels:
    AT_TIMESTAMP < TRIM_HORIZON < LATEST < every record < SHARD_END.
    """

    number: int
    sub_sequence_number: int = 0
    part: int = 0

    @classmethod
    def from_sequence_number(cls, sequence_number: str, sub_sequence_number: int = 0) -> Position:
        """Return the position of a record, or the one before it. Raises ValueError."""
        if not _SEQUENCE_NUMBER.fullmatch(sequence_number):
            raise ValueError(f"expected a sequence number (decimal digits), got {sequence_number[:140]!r}")
        if sub_sequence_number < BEFORE_SUB_RECORDS:
            raise ValueError(f"expected a sub-sequence number from {BEFORE_SUB_RECORDS}, got {sub_sequence_number}")
        return cls(int(sequence_number), sub_sequence_number)

    @classmethod
    def from_checkpoint(cls, checkpoint: str, sub_sequence_number: int = 0) -> Position:
        """Parse a checkpoint of a lease row. Raises ValueError."""
        return _SENTINELS.get(checkpoint) or cls.from_sequence_number(checkpoint, sub_sequence_number)

    @property
    def checkpoint(self) -> str:
        """The attribute `checkpoint` of a lease row; `checkpointSubSequenceNumber` is *sub_sequence_number*."""
        return _SENTINEL_NAMES.get(self.number) or str(self.number)

    @property
    def is_sentinel(self) -> bool:
        """Whether this is not the position of a record."""
        return self.number in _SENTINEL_NAMES


class HasPosition(Protocol):
    """A record with its position and its arrival, as an `Origin` from Kinesis is."""

    @property
    def sequence_number(self) -> str | None:
        """Decimal digits, as Kinesis sends them."""

    @property
    def sub_sequence_number(self) -> int:
        """Its number in an aggregate."""

    @property
    def parts_behind(self) -> int:
        """The number of parts behind it in its record of several operations."""

    @property
    def arrived_at(self) -> datetime:
        """The approximate arrival, by Kinesis."""


class RecordPosition(msgspec.Struct, frozen=True, gc=False):
    """The position of a record as Kinesis sends it, and the arrival of the record."""

    sequence_number: str
    sub_sequence_number: int
    arrived_at: datetime
    parts_behind: int = 0

    @classmethod
    def from_record(cls, record: HasPosition) -> RecordPosition:
        """Return the position of *record*."""
        return cls(record.sequence_number or "", record.sub_sequence_number, record.arrived_at, record.parts_behind)

    @classmethod
    def from_position(cls, position: Position, arrived_at: datetime) -> RecordPosition:
        """Return *position*, with the arrival of its record."""
        return cls(position.checkpoint, position.sub_sequence_number, arrived_at, -position.part)

    @classmethod
    def before_record(cls, sequence_number: str, arrived_at: datetime) -> RecordPosition:
        """Return the position before all sub-records of a record."""
        return cls(sequence_number, BEFORE_SUB_RECORDS, arrived_at)

    @property
    def stored(self) -> RecordPosition:
        """The position to store: this one, or the one before a record of which it is a part."""
        if not self.parts_behind:
            return self
        return RecordPosition(self.sequence_number, self.sub_sequence_number - 1, self.arrived_at)

    @property
    def position(self) -> Position:
        """The position in a form that compares with all others."""
        number = Position.from_sequence_number(self.sequence_number, self.sub_sequence_number).number
        return Position(number, self.sub_sequence_number, -self.parts_behind)

    @property
    def sort_key(self) -> tuple[int, str, int, int]:
        """The key for comparisons, cheaper than `position`: the digits have no leading zeros."""
        return len(self.sequence_number), self.sequence_number, self.sub_sequence_number, -self.parts_behind


class AtSequenceNumber(msgspec.Struct, frozen=True):
    """Start with this record."""

    sequence_number: str


class AfterSequenceNumber(msgspec.Struct, frozen=True):
    """Start with the record after this one."""

    sequence_number: str


class TrimHorizon(msgspec.Struct, frozen=True):
    """Start with the oldest record that the stream keeps."""


class Latest(msgspec.Struct, frozen=True):
    """Start with the next record to arrive."""


class AtTimestamp(msgspec.Struct, frozen=True):
    """Start with the first record of this instant (with a time zone) or later."""

    instant: datetime


Start: TypeAlias = AtSequenceNumber | AfterSequenceNumber | TrimHorizon | Latest | AtTimestamp


class LazyPositions(Sequence[RecordPosition]):
    """The positions of records, each created on access: most are never accessed."""

    def __init__(self, records: Sequence[HasPosition]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> RecordPosition:  # type: ignore[override]  # no slices
        return RecordPosition.from_record(self._records[index])


def is_after(one: RecordPosition, other: RecordPosition | None) -> bool:
    """Return whether *one* comes after *other*; None is the beginning, before every record."""
    return other is None or one.sort_key > other.sort_key


def lowest_position(positions: Iterable[RecordPosition | None]) -> RecordPosition | None:
    """Return the lowest of *positions*, at least one; None is the beginning."""
    found = list(positions)
    return None if None in found else min((one for one in found if one), key=lambda one: one.sort_key)


AT_TIMESTAMP: Final = Position(-3)
TRIM_HORIZON: Final = Position(-2)
LATEST: Final = Position(-1)
SHARD_END: Final = Position(_BEYOND_EVERY_SEQUENCE_NUMBER)

_SENTINELS: Final = {
    "AT_TIMESTAMP": AT_TIMESTAMP,
    "TRIM_HORIZON": TRIM_HORIZON,
    "LATEST": LATEST,
    "SHARD_END": SHARD_END,
}
_SENTINEL_NAMES: Final = {position.number: name for name, position in _SENTINELS.items()}
