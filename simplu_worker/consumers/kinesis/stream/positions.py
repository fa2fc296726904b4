"""Positions in a stream shard, ordered and written as the Kinesis Client Library orders and writes them. Pure.

The library knows no records of several operations: what is stored is the position before such a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, TypeAlias

import msgspec

from simplu_worker.operations.operation import Origin

# Kinesis API reference, SequenceNumber: 0|([1-9]\d{0,128}).
_SEQUENCE_NUMBER = re.compile(r"0|[1-9][0-9]{0,128}")
_BEYOND_EVERY_SEQUENCE_NUMBER = 10**129
BEFORE_SUB_RECORDS: Final = -1  # in place of a sub-sequence number


class HashRange(msgspec.Struct, frozen=True, gc=False, rename={"first": "StartingHashKey", "last": "EndingHashKey"}):
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


class RecordPosition(msgspec.Struct, frozen=True, gc=False):
    """The position of a record as Kinesis sends it, and the arrival of the record."""

    sequence_number: str
    sub_sequence_number: int
    arrived_at: datetime
    parts_behind: int = 0

    @classmethod
    def from_origin(cls, origin: Origin) -> RecordPosition:
        """Return the position of a record or a part, by its origin in Kinesis."""
        return cls(origin.sequence_number or "", origin.sub_sequence_number, origin.arrived_at, origin.parts_behind)

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


class _Start(msgspec.Struct, frozen=True, tag_field="Type", rename="pascal"):
    """Where to start, with the members and tags of StartingPosition (API reference, SubscribeToShard)."""


class AtSequenceNumber(_Start, frozen=True, tag="AT_SEQUENCE_NUMBER"):
    """Start with this record."""

    sequence_number: str


class AfterSequenceNumber(_Start, frozen=True, tag="AFTER_SEQUENCE_NUMBER"):
    """Start with the record after this one."""

    sequence_number: str


class TrimHorizon(_Start, frozen=True, tag="TRIM_HORIZON"):
    """Start with the oldest record that the stream keeps."""


class Latest(_Start, frozen=True, tag="LATEST"):
    """Start with the next record to arrive."""


class AtTimestamp(_Start, frozen=True, tag="AT_TIMESTAMP", rename={"instant": "Timestamp"}):
    """Start with the first record of this instant (with a time zone) or later."""

    instant: datetime


Start: TypeAlias = AtSequenceNumber | AfterSequenceNumber | TrimHorizon | Latest | AtTimestamp


class LazyPositions(Sequence[RecordPosition]):
    """The positions of records, each created on access: most are never accessed."""

    def __init__(self, origins: Sequence[Origin]) -> None:
        self._origins = origins

    def __len__(self) -> int:
        return len(self._origins)

    def __getitem__(self, index: int) -> RecordPosition:  # type: ignore[override]  # no slices
        return RecordPosition.from_origin(self._origins[index])


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
