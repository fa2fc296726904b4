"""Which rows and tenants of a source can be taken, certificates, and following."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from simplu_worker.business_info import Business
from simplu_worker.operations.json_record import DOCUMENT_MAX_BYTES
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.settling import MovingTenant, Transfer
from simplu_worker.transfers.importing.rules import (
    IS_DUPLICATE,
    NO_KEY,
    NOT_AN_OBJECT,
    OVERLAP,
    FollowState,
    HomeFacts,
    ImportCertificate,
    ImportSituation,
    ImportState,
    SourceRow,
    SourceTenant,
    TenantReport,
    changed_since,
    is_deleted,
    name_tenant,
    place_of,
    refusal_of_row,
    report_of,
    situation_of,
    without_collisions,
)
from simplu_worker.transfers.moving.checksums import TypeSum
from simplu_worker.vocabulary import TenantState

TIME = "2026-01-01 10:00:00+00"
ROW = SourceRow("orders", "o1", TIME, TIME, 2, "{}", 1)
TYPES = {"dental": {"patients": "patient"}, "gym": {}, "hotel": {}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"resource_id": None}, NO_KEY),
        ({"resource_id": ""}, "its resource id: expected 1 to 256 characters, got 0"),
        ({"resource_id": "x" * 257}, "its resource id: expected 1 to 256 characters, got 257"),
        ({"resource_id": "x" * 256}, None),
        ({"resource_id": "x"}, None),
        ({"resource_id": "\ud800"}, "its resource id: expected 1 to 256 characters, got 1"),
        ({"byte_count": DOCUMENT_MAX_BYTES}, None),
        ({"resource_id": "twice"}, IS_DUPLICATE),
        ({"created": "infinity"}, f"its times: expected years from 1 to 9999, got infinity and {TIME}"),
        ({"changed": "0044-03-15 00:00:00+00 BC"}, "its times: expected years from 1 to 9999, got"),
        ({"changed": "12026-01-01 00:00:00+00"}, "its times: expected years from 1 to 9999, got"),
        ({"created": "2026-01-01 10:00:00.123456+00"}, None),
        ({"created": None}, f"its times: expected years from 1 to 9999, got none and {TIME}"),
        ({"changed": None}, f"its times: expected years from 1 to 9999, got {TIME} and none"),
        ({"byte_count": None, "document": None, "created": None}, None),
        ({"byte_count": None, "document": None, "resource_id": None}, NO_KEY),
        ({"document": "[]"}, NOT_AN_OBJECT),
        ({"document": "null", "byte_count": 4}, NOT_AN_OBJECT),
        ({"document": None}, NOT_AN_OBJECT),
        ({"document": None, "byte_count": DOCUMENT_MAX_BYTES + 1}, "its document: expected at most 100,000 values"),
        ({"document": '{"a": ' + "1" * 1001 + "}"}, "its document: expected at most 100,000 values"),
        ({"document": '{"a": ' + "[" * 513 + "]" * 513 + "}"}, "its document: expected at most 100,000 values"),
        ({"document": '{"a": [' + ", ".join(["1"] * 100_001) + "]}"}, "its document: expected at most 100,000 values"),
    ],
)
def test_row_is_refused_for_its_reason(changes: dict[str, Any], expected: str | None) -> None:
    reason = refusal_of_row(msgspec.structs.replace(ROW, **changes), {("orders", "twice")})
    assert reason == expected if expected is None else (reason or "").startswith(expected)


def test_row_without_a_document_is_deleted() -> None:
    assert is_deleted(msgspec.structs.replace(ROW, document=None, byte_count=None))
    assert not is_deleted(msgspec.structs.replace(ROW, document=None, byte_count=DOCUMENT_MAX_BYTES + 1))
    sums = [msgspec.structs.replace(ROW, byte_count=count, hash=7).sum for count in (2, None)]
    assert sums == [TypeSum(1, 2, 7), TypeSum(1, 0, 7)]


KNOWN = "its business type: expected one of dental, gym, hotel, got"


@pytest.mark.parametrize(
    ("key", "business_type", "business", "expected"),
    [
        (("b", "l"), "gym", None, ("gym", {}, None)),
        (("b", "l"), "dental", Business("b", "hotel"), ("dental", {"patients": "patient"}, None)),
        (("b", "l"), None, Business("b", "hotel"), ("hotel", {}, None)),
        (("b", "l"), None, None, (None, {}, f"{KNOWN} none")),
        (("b", "l"), "bakery", None, (None, {}, f"{KNOWN} bakery")),
        (("b", "l"), None, "type: wrong", (None, {}, f"{KNOWN} type: wrong")),
        (("", "l"), "gym", None, (None, {}, "expected a business and a location of 1 to 128 characters each")),
        (("b", "l" * 129), "gym", None, (None, {}, "expected a business and a location of 1 to 128 characters each")),
    ],
)
def test_tenant_has_a_type_or_a_problem(
    key: tuple[str, str], business_type: str | None, business: Business | str | None, expected: tuple[Any, ...]
) -> None:
    named = name_tenant(SourceTenant(*key, {"order": 2}), business, business_type=business_type, known_types=TYPES)
    assert (named.business_type, named.stored_names, named.problem) == expected
    assert (named.key, named.name, named.row_count) == (key, " ".join(key), 2)


def test_tenants_with_one_id_are_both_refused() -> None:
    tenants = [SourceTenant(*pair) for pair in (("a-b", "c"), ("a", "b-c"), ("a", "c"))]
    wrong = [SourceTenant("x", "y", problem=f"{number} is wrong") for number in range(2)]
    refused = SourceTenant("a", "c", problem="its type is unknown")
    assert without_collisions([*tenants, refused])[2:] == [tenants[2], refused]
    problems = [one.problem for one in without_collisions(tenants)]
    assert problems == ["another tenant of the source has its id a-b-c"] * 2 + [None]
    assert without_collisions(wrong) == wrong


def home(state: TenantState, source: str | None = None, step: str | None = None, shard_id: str = "s1") -> HomeFacts:
    return HomeFacts("b-l", shard_id, "b", "l", state, source, step)


ACTIVE, INCOMING, MOVED = TenantState.ACTIVE, TenantState.INCOMING, TenantState.MOVED
OTHER_PAIR = msgspec.structs.replace(home(ACTIVE), business_id="b-l")
OTHER_IMPORTED = msgspec.structs.replace(home(ACTIVE, "db", "done"), business_id="b-l")


@pytest.mark.parametrize(
    ("homes", "step", "problem"),
    [
        ([], ImportState.IMPORT, None),
        ([home(INCOMING, "db", "open")], ImportState.CONTINUE, None),
        ([home(INCOMING, "db", "following")], ImportState.CONTINUE, None),
        (
            [home(INCOMING, "pos of 7", "open")],
            ImportState.REFUSED,
            "shard s1 has it from the database pos of 7; discard that import first, by --discard --source 'pos of 7'",
        ),
        ([home(INCOMING)], ImportState.REFUSED, "shard s1 has it already, incoming"),
        ([home(ACTIVE, "db", "done")], ImportState.THERE, None),
        ([home(TenantState.FENCED, "db", "done")], ImportState.THERE, None),
        ([home(MOVED, "db", "done"), home(ACTIVE, shard_id="s2")], ImportState.THERE, None),
        ([home(ACTIVE, "db", "done"), home(INCOMING, shard_id="s2")], ImportState.THERE, None),
        (
            [home(ACTIVE, "db", "done"), home(ACTIVE, shard_id="s2")],
            ImportState.REFUSED,
            "the shards s1 and s2 have it",
        ),
        ([home(TenantState.DESTROYING, "db", "done")], ImportState.REFUSED, "shard s1 has it already, destroying"),
        ([home(TenantState.DESTROYED, "db", "done")], ImportState.REFUSED, "shard s1 has it already, destroyed"),
        ([home(ACTIVE, "db", "open")], ImportState.REFUSED, "shard s1 has it already, active"),
        ([home(ACTIVE, "other", "done")], ImportState.REFUSED, "shard s1 has it already, active"),
        ([home(ACTIVE)], ImportState.REFUSED, "shard s1 has it already, active"),
        ([home(MOVED), home(ACTIVE, shard_id="s2")], ImportState.REFUSED, "shard s2 has it already, active"),
        ([home(ACTIVE), home(INCOMING, "db", "open", "s2")], ImportState.REFUSED, "the shards s1 and s2 have it"),
        ([OTHER_PAIR], ImportState.REFUSED, "shard s1 has its id for business b-l, location l"),
        ([OTHER_IMPORTED], ImportState.REFUSED, "shard s1 has its id for business b-l, location l"),
    ],
)
def test_step_is_decided_by_the_rows_of_the_tenant(
    homes: list[HomeFacts], step: ImportState, problem: str | None
) -> None:
    tenant = SourceTenant("b", "l", business_type="gym")

    found = place_of(tenant, homes, source="db")
    assert (found[0], found[2]) == (step, problem)
    assert (found[1] is None) == (not homes)
    assert found[1] in [None, *homes]
    assert "the shards" not in (problem or "") or found[1] is homes[0]


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
DETAIL = msgspec.json.decode(msgspec.json.encode(FollowState("digest", MOMENT)))


def test_report_has_the_rows_of_an_earlier_certificate() -> None:
    tenant = SourceTenant("b", "l", business_type="gym")
    proof = ImportCertificate("pos of 7", "then", "digest", 3, 40, "00ff", "now", "1.0")

    planned = report_of(tenant, ImportState.IMPORT)
    there = report_of(tenant, ImportState.THERE, "s1", "a detail", proof)

    assert planned == TenantReport(ImportState.IMPORT, "b l", "b", "l", "gym")
    assert there == TenantReport(
        ImportState.THERE, "b l", "b", "l", "gym", "s1", 3, 40, detail="a detail", certificate=proof
    )


OWN, EARLIER, LATER = "0/own", "0/earlier", "0/later"
SERVER = Server("1", MOMENT)


@pytest.mark.parametrize(
    ("state", "token", "step", "detail", "expected"),
    [
        (INCOMING, OWN, "open", {}, ImportSituation.COPY),
        (INCOMING, EARLIER, "open", {}, ImportSituation.COPY),
        (INCOMING, EARLIER, "undoing", {"seenAt": "then"}, ImportSituation.COPY),
        (INCOMING, EARLIER, "following", DETAIL, ImportSituation.CATCH_UP),
        (INCOMING, OWN, "open", DETAIL, ImportSituation.CATCH_UP),
        (INCOMING, EARLIER, "following", DETAIL | {"queries": "other"}, ImportSituation.COPY),
        (INCOMING, LATER, "open", {}, ImportSituation.TAKEN),
        (INCOMING, None, "open", {}, ImportSituation.TAKEN),
        (None, OWN, "open", {}, ImportSituation.TAKEN),
        (ACTIVE, OWN, "open", {}, ImportSituation.TAKEN),
        (ACTIVE, OWN, "done", {}, ImportSituation.ENDED),
        (MOVED, OWN, "done", {}, ImportSituation.ENDED),
        (ACTIVE, EARLIER, "done", {}, ImportSituation.TAKEN),
    ],
)
def test_next_step_is_decided_by_the_rows_of_both_sides(
    state: TenantState | None, token: str | None, step: str, detail: dict[str, Any], expected: ImportSituation
) -> None:
    kind = ("b-l", "b", "l", "gym")
    tenant = state and MovingTenant(*kind, state, 1, 0, None, MOMENT, MOMENT, None, 1.0, MOMENT, SERVER)
    journal = token and Transfer("db", token, step, 0, detail, MOMENT, MOMENT)
    assert situation_of(tenant or None, journal or None, own=OWN, earlier=EARLIER, queries="digest") is expected


def test_changes_are_read_from_before_the_last_snapshot_on() -> None:
    assert changed_since(DETAIL, queries="digest") == MOMENT - OVERLAP
    assert changed_since({"queries": "digest"}, queries="digest") is None
