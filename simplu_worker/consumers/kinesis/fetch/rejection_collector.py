"""Collect the dead letters of one reply: one for each rejected record, but few for the bad parts of one record. Pure.

Up to LETTERS_MAX bad parts of an array or of lines have a letter each. More of them, and several of an aggregate, share
one, which has these parts alone, packed as an aggregate of their own: the good parts of the record are applied, and
would be applied twice if they were sent again without a `requestId`. Records of many bad parts would otherwise hold up
their stream shard for minutes, ten letters a request.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker
from simplu_worker.dead_letters.letter import BadParts, DeadLetter, dead_letter_of, format_ranges
from simplu_worker.operations.operation import PartNumber, RejectedRecord

LETTERS_MAX: Final = 10  # of one record: as many as one request stores
FIRST_PARTS_MAX: Final = 100  # that have a status of their own by their request ids (docs/outcomes.md)


class RejectionCollector:
    """The rejections of one reply, in the order of their positions."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []

    def __repr__(self) -> str:
        return f"RejectionCollector({len(self._groups)} records)"

    def __len__(self) -> int:
        """Return the number of records with rejections."""
        return len(self._groups)

    def add(self, rejected: RejectedRecord, record: bytes) -> None:
        """Add the rejection of *record*, which may be a part of the same record as the one before."""
        if not (self._groups and self._groups[-1].has_room_for(rejected)):
            self._groups.append(_Group(rejected))
        self._groups[-1].add(rejected, record)

    def dead_letters(self, failed_at: datetime) -> list[DeadLetter]:
        """Return the letters."""
        return [letter for group in self._groups for letter in group.dead_letters(failed_at)]


class _Group:
    """The rejections of one record: itself, or its bad parts."""

    def __init__(self, first: RejectedRecord) -> None:
        self._first = first
        self._letters_max = 1 if first.part_count is not None else LETTERS_MAX
        self._alone: list[tuple[RejectedRecord, bytes]] = []  # as long as each has a letter of its own
        self._packer = AggregatePacker()
        self._numbers: list[PartNumber] = []
        self._request_ids: list[str | None] = []
        self._reasons: Counter[str] = Counter()
        self._first_parts: list[RejectedRecord] = []
        self._tenant: tuple[str | None, str | None] = (first.business_id, first.location_id)

    def has_room_for(self, rejected: RejectedRecord) -> bool:
        """Return whether *rejected* is another part of the same record."""
        own, other = self._first.origin, rejected.origin
        return own.sequence_number == other.sequence_number and _is_part(self._first) and _is_part(rejected)

    def add(self, rejected: RejectedRecord, record: bytes) -> None:
        """Add the record, or a bad part."""
        self._alone.append((rejected, record))
        if self._numbers or len(self._alone) > self._letters_max:
            for one in self._alone:
                self._pack(*one)
            self._alone.clear()

    def _pack(self, rejected: RejectedRecord, record: bytes) -> None:
        self._packer.add(rejected.origin.partition_key or "", record)
        self._numbers.append(rejected.origin.part_number)
        self._request_ids.append(rejected.request_id)
        self._reasons[rejected.reason.value] += 1
        if len(self._first_parts) < FIRST_PARTS_MAX:
            self._first_parts.append(rejected)
        if self._tenant != (rejected.business_id, rejected.location_id):
            self._tenant = (None, None)

    def dead_letters(self, failed_at: datetime) -> list[DeadLetter]:
        """Return the letter of the record, those of its bad parts, or the one of all of these."""
        if self._alone:
            return [dead_letter_of(rejected, record, failed_at=failed_at) for rejected, record in self._alone]
        first, origin = self._first, self._first.origin
        in_all = "operations of a record" if first.part_count is None else "sub-records of an aggregate"
        total = first.part_count or (origin.part_index or 0) + 1 + origin.parts_behind
        return [
            DeadLetter(
                reason=first.reason,
                error=(
                    f"{len(self._numbers)} of the {total} {in_all} are no operations; the first one, "
                    f"number {format_ranges([origin.part_number])}: {first.error}"
                ),
                origin=origin,
                failed_at=failed_at,
                attempts=1,
                record=self._packer.seal(),
                business_id=self._tenant[0],
                location_id=self._tenant[1],
                parts=BadParts(
                    total,
                    len(self._numbers),
                    self._reasons,
                    tuple(self._numbers),
                    tuple(self._request_ids),
                    tuple(self._first_parts),
                ),
            )
        ]


def _is_part(rejected: RejectedRecord) -> bool:
    return rejected.part_count is not None or rejected.origin.part_index is not None
