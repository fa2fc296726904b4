"""What an audit finds to differ, and whether a tenant can be restored from a backup."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.commands.tenants.rules import (
    AuditedRow,
    AuditSubject,
    BackupFacts,
    BusinessListing,
    Difference,
    DifferenceKind,
    find_differences,
    missing_ages,
    plan_tenant,
    refusal_of_database,
    refusal_of_positions,
    refusal_of_repetition,
    refusal_of_rows,
)
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream.client import StreamShard
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON, HashRange, Position
from simplu_worker.shards.settling import Transfer
from simplu_worker.shards.types import StreamPosition
from simplu_worker.transfers.restoring import RestoreMode
from simplu_worker.vocabulary import TenantState, TransferStep

DENTAL, CLOSED, SPA = BusinessListing("dental"), BusinessListing("dental", is_active=False), BusinessListing("spa")
TYPES = ("dental", "gym")


def row(
    shard_id: str = "s1", state: str = "active", *, name: tuple[str, str] = ("a", "b-c"), kind: str = "dental"
) -> AuditedRow:
    return AuditedRow(shard_id, *name, kind, TenantState(state))


def subject(
    listing: BusinessListing | None = DENTAL,
    *rows: AuditedRow,
    named: str | None = "s1",
    refusal: str | None = None,
    silent: tuple[str, ...] = (),
) -> AuditSubject:
    return AuditSubject("a", "b-c", listing, rows, named, refusal, silent)


OTHER = ("a-b", "c")


@pytest.mark.parametrize(
    ("tenant", "kinds"),
    [
        (subject(DENTAL, row()), ""),
        (subject(DENTAL, row(state="fenced")), ""),
        (subject(DENTAL, row(state="moved"), row("s2"), named="s2"), ""),
        (subject(DENTAL, row(), row("s2", "incoming")), ""),
        (subject(DENTAL, row("s2", "destroyed"), row()), ""),
        (subject(DENTAL), "no_row"),
        (subject(DENTAL, named=None), "no_row not_in_citrus"),
        (subject(DENTAL, row(), named=None), "not_in_citrus"),
        (subject(DENTAL, row("s2")), "shard_differs"),
        (subject(DENTAL, row(), row("s2")), "two_homes"),
        (subject(DENTAL, row("s2"), row("s3")), "two_homes shard_differs"),
        (subject(DENTAL, row(kind="gym")), "type_differs"),
        (subject(SPA, row(kind="spa")), "unknown_type"),
        (subject(DENTAL, row(state="destroyed")), "destroyed"),
        (subject(DENTAL, row(state="destroying")), "destroyed"),
        (subject(DENTAL, row(state="moved")), "no_row"),
        (subject(DENTAL, row(name=OTHER)), "id_taken"),
        (subject(CLOSED, row(name=OTHER)), ""),
        (subject(CLOSED, row(), row("s2", name=OTHER)), "id_taken location_inactive"),
        (subject(None), ""),
        (subject(None, row(name=OTHER)), ""),
        (subject(None, row(state="destroying")), ""),
        (subject(DENTAL, row(state="destroyed"), named=None), "destroyed"),
        (subject(DENTAL, row(state="destroyed"), row("s2")), "shard_differs"),
        (subject(CLOSED, row()), "location_inactive"),
        (subject(CLOSED, named=None), ""),
        (subject(CLOSED, row(state="destroying")), ""),
        (subject(None, row()), "not_in_business_info"),
        (subject(None, row(), named=None), "not_in_business_info not_in_citrus"),
        (subject(DENTAL, row(), named=None, refusal="host x"), "address_refused"),
        (subject(DENTAL, silent=("s2",)), ""),
    ],
)
def test_differences_name_what_differs(tenant: AuditSubject, kinds: str) -> None:
    found = find_differences(tenant, known_types=TYPES)
    assert " ".join(difference.kind for difference in found) == kinds
    assert {(one.business_id, one.location_id) for one in found} <= {("a", "b-c")}
    assert all(difference.detail for difference in found)


def test_differences_tell_where_and_whose() -> None:
    rows = (row("s2", kind="gym"), row("s3", name=OTHER))
    details = [one.detail for one in find_differences(subject(DENTAL, *rows), known_types=TYPES)]
    assert details == [
        "shard s3 has its id a-b-c for business a-b, location c",
        "its home is on shard s2, and it is routed to s1",
        "business-info has dental, its shard gym",
    ]


@pytest.mark.parametrize(
    ("tenant", "kinds"),
    [
        (subject(DENTAL, named=None), "create"),
        (subject(DENTAL, row()), ""),
        (subject(DENTAL, row("s2")), ""),
        (subject(DENTAL, row(), silent=("s2",)), ""),
        (subject(DENTAL, silent=("s2",)), "no_row"),
        (subject(DENTAL, row(state="destroyed")), "destroyed"),
        (subject(DENTAL, row("s2", "destroyed")), "destroyed"),
        (subject(DENTAL, row(state="destroying")), "destroyed"),
        (subject(DENTAL, row(state="incoming")), "no_row"),
        (subject(DENTAL, row(), row("s2", "destroying")), "two_homes"),
        (subject(DENTAL, row(name=OTHER)), "id_taken"),
        (subject(SPA), "unknown_type no_row"),
    ],
)
def test_plan_creates_only_what_no_shard_has(tenant: AuditSubject, kinds: str) -> None:
    assert " ".join(one.kind for one in plan_tenant(tenant, known_types=TYPES)) == kinds


def test_plan_names_the_type_to_create_and_who_is_silent() -> None:
    (created,) = plan_tenant(subject(DENTAL), known_types=TYPES)
    assert created == Difference(DifferenceKind.CREATE, "dental", "a", "b-c")
    (unknown,) = plan_tenant(subject(DENTAL, silent=("s2", "s3")), known_types=TYPES)
    assert unknown == Difference(DifferenceKind.NO_ROW, "no answer from s2, s3", "a", "b-c")
    assert [one.kind for one in plan_tenant(subject(None), known_types=TYPES)] == [DifferenceKind.NO_ROW]


@pytest.mark.parametrize(
    ("tenant", "detail"),
    [
        (subject(DENTAL, named=None), "no shard has its row"),
        (subject(DENTAL, row(state="moved"), named=None), "no shard has its row; only a row that is moved"),
        (subject(DENTAL), "it is routed to shard s1, and no shard has its row"),
        (
            subject(DENTAL, row(state="moved")),
            "it is routed to shard s1, and no shard has its row; only a row that is moved",
        ),
    ],
)
def test_missing_row_is_described_with_route_and_other_rows(tenant: AuditSubject, detail: str) -> None:
    found = find_differences(tenant, known_types=TYPES)
    assert detail in [one.detail for one in found if one.kind is DifferenceKind.NO_ROW]


JUDGED_AT = datetime(2026, 3, 10, tzinfo=UTC)


def pending(pending_from: str, hours: float | None = None) -> StreamPosition:
    since = None if hours is None else JUDGED_AT - timedelta(hours=hours)
    return StreamPosition(pending_from=pending_from, pending_since=since, parents_done=True, fencing_token="t")


def facts(
    rows: dict[str, StreamPosition],
    *,
    checkpoints: dict[str, Position] | None = None,
    shards: dict[str, tuple[str, ...]] | None = None,
    first_tenant_hours: float | None = 1.0,
) -> BackupFacts:
    return BackupFacts(
        rows=rows,
        first_tenant_at=None if first_tenant_hours is None else JUDGED_AT - timedelta(hours=first_tenant_hours),
        stream_shards=[
            StreamShard(name, frozenset(parents), HashRange(0, 1), "1") for name, parents in (shards or {}).items()
        ],
        leases={name: Lease(name, position) for name, position in (checkpoints or {}).items()},
        tenant_wait=timedelta(minutes=5),
        now=JUDGED_AT,
    )


@pytest.mark.parametrize(
    ("found", "checkpoint", "hours"),
    [
        (pending("100/0", 2), Position(200), 2),
        (pending("100/0", 2), None, 2),
        (pending("100/0", 240), Position(100), None),  # the stream was idle since
        (pending("100/0", 240), Position(99), None),
        (pending("100/0", 240), Position(100, 1), 240),
        (pending("SHARD_END", 240), Position(200), None),
        (pending("TRIM_HORIZON"), TRIM_HORIZON, None),
        (pending("TRIM_HORIZON"), Position(200), 1 + 5 / 60),  # since the first tenant
    ],
)
def test_position_has_an_age_unless_no_worker_is_ahead(
    found: StreamPosition, checkpoint: Position | None, hours: float | None
) -> None:
    checkpoints = {} if checkpoint is None else {"a": checkpoint}
    expected = {} if hours is None else {"a": timedelta(hours=hours)}
    assert missing_ages(facts({"a": found}, checkpoints=checkpoints)) == expected


def test_stream_shard_without_a_row_is_judged_without_parents() -> None:
    shards: dict[str, tuple[str, ...]] = {"b": (), "a": (), "child": ("a",)}
    ages = missing_ages(facts({"a": pending("5/0", 2)}, shards=shards, first_tenant_hours=30))
    assert ages == {"a": timedelta(hours=2), "b": timedelta(hours=30, minutes=5)}
    assert missing_ages(facts({}, shards=shards, first_tenant_hours=None)) == {}


NOW = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROW: dict[str, Any] = {
    "business_id": "a",
    "location_id": "x",
    "business_type": "gym",
    "state": "active",
    "created_at": NOW,
}


@pytest.mark.parametrize(
    ("backup", "refusal"),
    [
        (ROW, ""),
        (ROW | {"state": "fenced"}, "that is fenced there"),
        (None, "it was made later"),
        (ROW | {"business_id": "b"}, "another business"),
        (ROW | {"state": "incoming"}, "that is incoming there"),
        (ROW | {"state": "moved"}, "that is moved there"),
        (ROW | {"state": "destroying"}, "that is destroying there"),
        (ROW | {"business_type": "hotel"}, "expected the business type gym"),
    ],
)
@pytest.mark.parametrize("mode", RestoreMode)
def test_rows_of_a_backup_are_refused_if_not_of_this_tenant(
    backup: dict[str, Any] | None, refusal: str, mode: RestoreMode
) -> None:
    found = refusal_of_rows(backup, ROW, mode)
    assert refusal in (found or "")
    assert (found is None) == (refusal == "")


def test_tenant_made_again_is_restored_as_of_the_backup_only() -> None:
    backup = ROW | {"created_at": NOW - DAY}
    assert refusal_of_rows(backup, ROW, RestoreMode.AS_OF_BACKUP) is None
    assert "destroyed and made again" in (refusal_of_rows(backup, ROW, RestoreMode.CATCH_UP) or "")


@pytest.mark.parametrize(
    ("hours", "kept", "refusal"),
    [
        (22, 15 * DAY, None),
        (23, 15 * DAY, None),
        (23 + 1 / 60, 15 * DAY, "for another 1 h at least, with its retention of 24 h, got one of 23 h ago (b); take"),
        (21.6, DAY, None),
        (22, DAY, "from the last 21.6 h, which the logs of all tenants reach back to, got one of 22 h ago (b); take"),
    ],
)
def test_positions_beyond_the_stream_or_the_logs_are_refused(
    hours: float, kept: timedelta, refusal: str | None
) -> None:
    found = refusal_of_positions({"a": timedelta(), "b": timedelta(hours=hours)}, retention=DAY, log_kept=kept)
    assert (refusal or "") in (found or "")
    assert (found is None) == (refusal is None)


def test_backup_is_a_database_of_its_own() -> None:
    live = {"is_standby": False, "started_at": NOW, "database": "shard"}
    assert "the database of the shard itself" in (refusal_of_database(live, live) or "")
    assert "got a standby" in (refusal_of_database(live | {"is_standby": True, "started_at": NOW - DAY}, live) or "")
    assert refusal_of_database(live | {"database": "restored"}, live) is None
    assert refusal_of_database(live | {"started_at": NOW - DAY}, live) is None


@pytest.mark.parametrize(
    ("step", "mode", "hours", "export", "is_refused"),
    [
        (TransferStep.DONE, RestoreMode.AS_OF_BACKUP, 0.1, "/first", True),
        (TransferStep.DONE, RestoreMode.AS_OF_BACKUP, 23.9, None, True),
        (TransferStep.DONE, RestoreMode.AS_OF_BACKUP, 24, None, True),
        (TransferStep.DONE, RestoreMode.AS_OF_BACKUP, 24.1, None, False),
        (TransferStep.DONE, RestoreMode.AS_OF_BACKUP, 0.1, "/second", False),
        (TransferStep.DONE, RestoreMode.CATCH_UP, 0.1, None, False),
        (TransferStep.COPIED, RestoreMode.AS_OF_BACKUP, 0.1, None, False),
    ],
)
def test_restore_is_repeated_only_with_another_file(
    step: TransferStep, mode: RestoreMode, hours: float, export: str | None, *, is_refused: bool
) -> None:
    detail = {"mode": RestoreMode.AS_OF_BACKUP, "export": "/first"}
    journal = Transfer("backup", "1/run", step, 4, detail, NOW - timedelta(hours=hours), NOW)
    found = refusal_of_repetition(journal, mode, None if export is None else Path(export))
    assert (found is not None) == is_refused
    assert refusal_of_repetition(None, mode, None) is None


@given(st.lists(st.integers(0, 60)), st.integers(2, 60), st.integers(1, 60))
def test_what_is_not_refused_is_within_both_retentions(ages: list[int], retention_h: int, kept_h: int) -> None:
    positions = {str(number): timedelta(hours=age) for number, age in enumerate(ages)}
    retention, kept = timedelta(hours=retention_h), timedelta(hours=kept_h)
    found = refusal_of_positions(positions, retention=retention, log_kept=kept)
    assert (found is None) == all(
        age < retention_h and age < kept_h and age <= min(retention_h - 1, kept_h * 0.9) for age in ages
    )
