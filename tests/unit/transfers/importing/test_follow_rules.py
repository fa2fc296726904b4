"""Following a source: the state in the journal, and the notes of a plan."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from simplu_worker.transfers.importing.mapping import TableMapping
from simplu_worker.transfers.importing.rules import OVERLAP, STOP_WRITERS, FollowState, follow_notes, followed_since

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
DETAIL = msgspec.json.decode(msgspec.json.encode(FollowState("digest", MOMENT)))


@pytest.mark.parametrize(
    ("step", "detail", "expected"),
    [
        ("following", DETAIL, MOMENT - OVERLAP),
        ("copying", DETAIL, None),
        ("following", DETAIL | {"mapping": "other"}, None),
        ("following", {}, None),
        ("following", {"mapping": "digest", "followedTo": "yesterday"}, None),
    ],
)
def test_copy_goes_on_from_the_last_snapshot_of_the_same_mapping(
    step: str, detail: dict[str, Any], expected: datetime | None
) -> None:
    assert followed_since(step, detail, mapping="digest") == expected


def test_plan_names_the_tables_that_cannot_be_followed() -> None:
    plain = TableMapping(table="a", key=["id"], tenant=["b"])
    changing = msgspec.structs.replace(plain, table="c", changed="at")
    whole = msgspec.structs.replace(changing, table="d", deleted="gone")

    notes = follow_notes([plain, changing, whole, msgspec.structs.replace(plain, table="e", deleted="gone")])

    assert follow_notes([whole]) == [STOP_WRITERS]
    assert notes[0] == STOP_WRITERS
    assert notes[1].startswith("without a change column --follow sees no change of public.a, public.e; a tenant with")
    assert notes[2].startswith("without a tombstone column --follow sees no deletion in public.c; a tenant with one")
    assert len(notes) == 3
