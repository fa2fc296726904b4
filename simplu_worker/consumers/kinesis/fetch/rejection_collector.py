"""Collect the dead letters of one reply: one for each rejected record, and one for all bad parts of an aggregate. Pure.

A letter of bad parts has these parts alone, packed as an aggregate of their own: the good parts of the record are
applied, and sent again without a `requestId` they would be applied twice. An aggregate of many thousand bad parts would
otherwise hold up its stream shard for minutes, ten letters a request.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker
from simplu_worker.dead_letters.letter import BadParts, DeadLetter, dead_letter_of
from simplu_worker.operations.operation import RejectedRecord

FIRST_PARTS_MAX: Final = 100  # that have a status of their own by their request ids (docs/interface.md)


class RejectionCollector:
    """The rejections of one reply, in the order of their positions."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []

    def __repr__(self) -> str:
        return f"RejectionCollector({len(self._groups)} letters)"

    def __len__(self) -> int:
        """Return the number of letters."""
        return len(self._groups)

    def add(self, rejected: RejectedRecord, record: bytes) -> None:
        """Add the rejection of *record*, which may be a part of the same aggregate as the one before."""
        if self._groups and self._groups[-1].has_room_for(rejected):
            self._groups[-1].add(rejected, record)
        else:
            self._groups.append(_Group(rejected, record))

    def dead_letters(self, failed_at: datetime) -> list[DeadLetter]:
        """Return the letters."""
        return [group.dead_letter(failed_at) for group in self._groups]


class _Group:
    """The rejections of one record: itself, or its bad parts."""

    def __init__(self, first: RejectedRecord, record: bytes) -> None:
        self._first = first
        self._record = record
        self._packer: AggregatePacker | None = None
        self._numbers: list[int] = []
        self._request_ids: list[str | None] = []
        self._reasons: Counter[str] = Counter()
        self._first_parts: list[RejectedRecord] = []
        self._tenant: tuple[str | None, str | None] = (first.business_id, first.location_id)

    def has_room_for(self, rejected: RejectedRecord) -> bool:
        """Return whether *rejected* is another part of the same aggregate."""
        own, other = self._first.origin, rejected.origin
        return (
            self._first.part_count is not None
            and rejected.part_count is not None
            and own.sequence_number == other.sequence_number
        )

    def add(self, rejected: RejectedRecord, record: bytes) -> None:
        """Add another bad part."""
        if self._packer is None:
            self._packer = AggregatePacker()
            self._pack(self._packer, self._first, self._record)
        self._pack(self._packer, rejected, record)

    def _pack(self, packer: AggregatePacker, rejected: RejectedRecord, record: bytes) -> None:
        packer.add(rejected.origin.partition_key or "", record)
        self._numbers.append(rejected.origin.sub_sequence_number)
        self._request_ids.append(rejected.request_id)
        self._reasons[rejected.reason.value] += 1
        if len(self._first_parts) < FIRST_PARTS_MAX:
            self._first_parts.append(rejected)
        if self._tenant != (rejected.business_id, rejected.location_id):
            self._tenant = (None, None)

    def dead_letter(self, failed_at: datetime) -> DeadLetter:
        """Return the letter of the record, or of its bad parts."""
        first = self._first
        if self._packer is None:
            return dead_letter_of(first, self._record, failed_at=failed_at)
        total = first.part_count or 0
        return DeadLetter(
            reason=first.reason,
            error=(
                f"{len(self._numbers)} of the {total} sub-records of an aggregate are no operations; the first one, "
                f"number {first.origin.sub_sequence_number}: {first.error}"
            ),
            origin=first.origin,
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
