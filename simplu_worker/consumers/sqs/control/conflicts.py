"""Which messages of one batch may be handled at the same time, and which have to wait for which. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec


class MessageSubject(msgspec.Struct, frozen=True):
    """The subject of a message: a tenant, or with *business_id* alone every tenant of a business; and its FIFO group.

    An unreadable message has no subject.
    """

    tenant_id: str | None = None
    business_id: str | None = None
    group_id: str | None = None

    def conflicts_with(self, other: MessageSubject) -> bool:
        """Return whether the two messages must be handled one after the other."""
        if self.group_id is not None and self.group_id == other.group_id:
            return True
        if self.business_id is None or other.business_id is None:
            return False
        if self.tenant_id is None or other.tenant_id is None:
            return self.business_id == other.business_id
        return self.tenant_id == other.tenant_id


def stages_of(subjects: Sequence[MessageSubject]) -> list[list[int]]:
    """Return the indexes of *subjects* in stages: no two of a stage conflict, and each is behind earlier conflicts."""
    stage_by_index: list[int] = []
    for index, subject in enumerate(subjects):
        earlier = (stage_by_index[other] for other in range(index) if subject.conflicts_with(subjects[other]))
        stage_by_index.append(max(earlier, default=-1) + 1)
    stages: list[list[int]] = [[] for _ in range(max(stage_by_index, default=-1) + 1)]
    for index, stage in enumerate(stage_by_index):
        stages[stage].append(index)
    return stages


def first_conflict(subjects: Sequence[MessageSubject], index: int, undecided: Collection[int]) -> int | None:
    """Return the first of the *undecided* for which the message at *index* has to wait, preferably of its own group.

    None when the message may be handled.
    """
    before = [other for other in sorted(undecided) if other < index and subjects[index].conflicts_with(subjects[other])]
    own = [other for other in before if is_same_group(subjects[index], subjects[other])]
    return next(iter(own or before), None)


def is_same_group(subject: MessageSubject, other: MessageSubject) -> bool:
    """Return whether both are of the same FIFO group."""
    return subject.group_id is not None and subject.group_id == other.group_id
