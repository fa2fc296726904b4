"""Following a source by its change columns: the state in the journal, and the limits that people have to know. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from simplu_worker.transfers.importing.mapping import TableMapping

FOLLOWING: Final = "following"  # the step in the journal
# A row has the time at which its transaction set the column, and is seen only after the commit. Transactions that took
# longer than this are found by the comparison at the cut-over.
OVERLAP: Final = timedelta(minutes=5)
STOP_WRITERS: Final = (
    "stop the writers of the source before --apply without --follow: rows that change after its snapshot are not taken"
)


class FollowState(msgspec.Struct, frozen=True, rename="camel"):
    """The details of an import that follows its source: the digest of its mapping, the time of the last snapshot."""

    mapping: str
    followed_to: datetime


def followed_since(step: str, detail: Mapping[str, Any], *, mapping: str) -> datetime | None:
    """Return since when rows may have changed that were not copied; None if the tenant has to be copied whole.

    *mapping* is the digest of the mapping in use: rows that were copied by another one have other content.
    """
    if step != FOLLOWING:
        return None
    try:
        state = msgspec.convert(detail, FollowState)
    except msgspec.ValidationError:
        return None
    return state.followed_to - OVERLAP if state.mapping == mapping else None


def follow_notes(tables: Iterable[TableMapping]) -> list[str]:
    """Return the conditions of an import: stopped writers, and the tables that cannot be followed, or only in part."""
    every = list(tables)
    unfollowed = [table.name for table in every if table.changed is None]
    without_tombstone = [table.name for table in every if table.changed is not None and table.deleted is None]
    notes = [STOP_WRITERS]
    if unfollowed:
        notes.append(
            f"without a change column --follow sees no change of {', '.join(unfollowed)}; a tenant with one is copied"
            " again at the cut-over"
        )
    if without_tombstone:
        notes.append(
            f"without a tombstone column --follow sees no deletion in {', '.join(without_tombstone)}; a tenant with one"
            " is copied again at the cut-over"
        )
    return notes
