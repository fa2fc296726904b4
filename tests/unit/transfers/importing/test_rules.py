"""Which rows and tenants of a source can be taken, and the reason for each that cannot."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from simplu_worker.business_info import Business
from simplu_worker.operations.json_record import DOCUMENT_MAX_BYTES
from simplu_worker.transfers.importing.mapping import OWN_SHAPE, SourceMapping, TableMapping, TenantMapping
from simplu_worker.transfers.importing.rules import (
    IS_DUPLICATE,
    NO_KEY,
    NOT_AN_OBJECT,
    HomeFacts,
    NamedTenant,
    PlaceStep,
    SourceRow,
    SourceTenant,
    must_be_read_alone,
    name_tenant,
    needs_business_info,
    pairs_of,
    place_of,
    refusal_of_row,
    without_collisions,
)
from simplu_worker.vocabulary import TenantState

TIME = "2026-01-01 10:00:00+00"
ROW = SourceRow("orders", "o1", TIME, TIME, 2, "{}", 1, 2, ("o1",))
TYPES = ("dental", "gym", "hotel")
TABLES = [TableMapping(table="t", key=["id"], tenant=["b"])]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"resource_id": None}, NO_KEY),
        ({"resource_type": None}, "its resource type: expected 1 to 128 characters, got 0"),
        ({"resource_type": "x" * 129}, "its resource type: expected 1 to 128 characters, got 129"),
        ({"resource_type": "x" * 128}, None),
        ({"resource_id": ""}, "its resource id: expected 1 to 256 characters, got 0"),
        ({"resource_id": "x" * 257}, "its resource id: expected 1 to 256 characters, got 257"),
        ({"resource_id": "x" * 256}, None),
        ({"resource_id": "x"}, None),
        ({"resource_id": "\ud800"}, "its resource id: expected 1 to 256 characters, got 1"),
        ({"byte_count": DOCUMENT_MAX_BYTES}, None),
        ({"resource_id": "twice"}, IS_DUPLICATE),
        ({"error": "DataError (22000)"}, "the source cannot return it as JSON: DataError (22000)"),
        ({"created": "infinity"}, f"its times: expected years from 1 to 9999, got infinity and {TIME}"),
        ({"changed": "0044-03-15 00:00:00+00 BC"}, "its times: expected years from 1 to 9999, got"),
        ({"changed": "12026-01-01 00:00:00+00"}, "its times: expected years from 1 to 9999, got"),
        ({"created": "2026-01-01 10:00:00.123456+00"}, None),
        ({"byte_count": None, "document": None}, NOT_AN_OBJECT),
        ({"document": "[]"}, NOT_AN_OBJECT),
        ({"document": "null", "byte_count": 4}, NOT_AN_OBJECT),
        ({"document": None, "byte_count": DOCUMENT_MAX_BYTES + 1}, "its document: expected at most 100,000 values"),
        ({"document": '{"a": ' + "1" * 1001 + "}"}, "its document: expected at most 100,000 values"),
        ({"document": '{"a": ' + "[" * 513 + "]" * 513 + "}"}, "its document: expected at most 100,000 values"),
        ({"document": '{"a": [' + ", ".join(["1"] * 100_001) + "]}"}, "its document: expected at most 100,000 values"),
    ],
)
def test_row_is_refused_for_its_reason(changes: dict[str, Any], expected: str | None) -> None:
    reason = refusal_of_row(msgspec.structs.replace(ROW, **changes), {("orders", "twice")})
    assert reason == expected if expected is None else (reason or "").startswith(expected)


@pytest.mark.parametrize(
    ("document", "byte_count", "expected"),
    [
        ("{}", 2, False),
        (None, 40_000, True),
        (None, DOCUMENT_MAX_BYTES, True),
        (None, DOCUMENT_MAX_BYTES + 1, False),
        (None, None, False),
    ],
)
def test_document_is_read_alone_if_it_is_long_and_may_be_stored(
    document: str | None,
    byte_count: int | None,
    expected: bool,  # noqa: FBT001  # a column
) -> None:
    row = msgspec.structs.replace(ROW, document=document, byte_count=byte_count)
    assert must_be_read_alone(row) is expected


def source(*key: str, types: set[str | None] | None = None) -> SourceTenant:
    return SourceTenant(key, Counter(t=1), business_types=types or set())


def mapping(**tenants: Any) -> SourceMapping:
    return SourceMapping(TABLES, TenantMapping(**tenants))


@pytest.mark.parametrize(
    ("key", "tenants", "expected"),
    [
        (("b", "l"), {}, [("b", "l")]),
        (("b",), {"location": "main"}, [("b", "main")]),
        (("b-l",), {"joined": True}, [("b", "l")]),
        (("a-b-c",), {"joined": True}, [("a", "b-c"), ("a-b", "c")]),
        (("none",), {"joined": True}, []),
    ],
)
def test_columns_name_business_and_location(
    key: tuple[str, ...], tenants: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert pairs_of(source(*key), TenantMapping(**tenants)) == expected


NO_TYPE = "its business type: expected one of dental, gym, hotel, got"
NO_PAIR = "expected one business and location in business-info that its id may be, got"
DASHED = source("a-b-c", types={"gym"})
LISTED = Business("a", "gym", frozenset({"b-c"}))
OTHER = Business("a-b", "gym", frozenset({"c"}))


@pytest.mark.parametrize(
    ("one", "given", "businesses", "expected"),
    [
        (source("b", "l"), mapping(business_type="gym"), {}, ("b", "l", "gym", None)),
        (source("b", "l"), mapping(), {"b": Business("b", "hotel")}, ("b", "l", "hotel", None)),
        (source("b", "l"), mapping(), {}, ("b", "l", None, f"{NO_TYPE} none")),
        (source("b", "l"), mapping(business_type="bakery"), {}, ("b", "l", None, f"{NO_TYPE} bakery")),
        (source("b", "l"), mapping(), {"b": "type: wrong"}, ("b", "l", None, f"{NO_TYPE} type: wrong")),
        (source("a-b", types={"gym", None}), OWN_SHAPE, {}, ("a", "b", None, f"{NO_TYPE} gym and none")),
        (source("a-b", types={"gym", "hotel"}), OWN_SHAPE, {}, ("a", "b", None, f"{NO_TYPE} gym and hotel")),
        (DASHED, OWN_SHAPE, {"a": LISTED}, ("a", "b-c", "gym", None)),
        (DASHED, OWN_SHAPE, {"a": Business("a", "gym", frozenset({"x"})), "a-b": OTHER}, ("a-b", "c", "gym", None)),
        (DASHED, OWN_SHAPE, {}, (None, None, None, f"{NO_PAIR} none")),
        (DASHED, OWN_SHAPE, {"a": LISTED, "a-b": OTHER}, (None, None, None, f"{NO_PAIR} a b-c, a-b c")),
        (
            source("", "l"),
            mapping(business_type="gym"),
            {},
            (None, None, None, "expected a business and a location of 1 to 128 characters each"),
        ),
    ],
)
def test_tenant_has_a_name_and_a_type_or_a_problem(
    one: SourceTenant,
    given: SourceMapping,
    businesses: dict[str, Business | str | None],
    expected: tuple[str | None, ...],
) -> None:
    named = name_tenant(one, given, businesses, known_types=TYPES)
    assert (named.business_id, named.location_id, named.business_type, named.problem) == expected
    assert named.source is one


@pytest.mark.parametrize(
    ("one", "given", "expected"),
    [
        (source("b", "l"), mapping(business_type="gym"), False),
        (source("b", "l"), mapping(), True),
        (source("a-b"), OWN_SHAPE, False),
        (source("a-b-c"), OWN_SHAPE, True),
    ],
)
def test_business_info_is_asked_only_for_names_and_types_that_the_source_lacks(
    one: SourceTenant,
    given: SourceMapping,
    expected: bool,  # noqa: FBT001  # a column
) -> None:
    assert needs_business_info(one, given) is expected


def test_tenants_with_one_id_are_both_refused() -> None:
    tenants = [NamedTenant(source(*pair), *pair, "gym") for pair in (("a-b", "c"), ("a", "b-c"), ("a", "c"))]
    wrong = [NamedTenant(source(key), problem=f"{key} is wrong") for key in ("x", "y")]
    problems = [one.problem for one in without_collisions(tenants)]
    assert problems == ["another tenant of the source has its id a-b-c"] * 2 + [None]
    assert without_collisions(wrong) == wrong


def test_tenant_is_named_by_the_source_until_it_has_a_name() -> None:
    one = source("b", "l")
    names = [NamedTenant(one), NamedTenant(one, "b"), NamedTenant(one, "B", "L"), NamedTenant(one, location_id="l")]
    assert [named.name for named in names] == ["b l", "b l", "B L", "b l"]
    assert names[2].tenant_id == "B-L"
    assert one.row_count == 1


def home(state: TenantState, source: str | None = None, step: str | None = None, shard_id: str = "s1") -> HomeFacts:
    return HomeFacts("b-l", shard_id, "b", "l", state, source, step)


ACTIVE, INCOMING, MOVED = TenantState.ACTIVE, TenantState.INCOMING, TenantState.MOVED
OTHER_PAIR = msgspec.structs.replace(home(ACTIVE), business_id="b-l")


@pytest.mark.parametrize(
    ("homes", "step", "problem"),
    [
        ([], PlaceStep.MAKE, None),
        ([home(INCOMING, "db", "copying")], PlaceStep.CONTINUE, None),
        ([home(INCOMING, "db", "following")], PlaceStep.CONTINUE, None),
        (
            [home(INCOMING, "pos of 7", "copying")],
            PlaceStep.REFUSE,
            "shard s1 has it from the database pos of 7; discard that import first, by --discard --source 'pos of 7'",
        ),
        ([home(INCOMING)], PlaceStep.REFUSE, "shard s1 has it already, incoming"),
        ([home(ACTIVE, "db", "activated")], PlaceStep.DONE, None),
        ([home(TenantState.FENCED, "db", "activated")], PlaceStep.DONE, None),
        ([home(MOVED, "db", "activated"), home(ACTIVE, shard_id="s2")], PlaceStep.DONE, None),
        ([home(ACTIVE, "db", "activated"), home(INCOMING, shard_id="s2")], PlaceStep.DONE, None),
        (
            [home(ACTIVE, "db", "activated"), home(ACTIVE, shard_id="s2")],
            PlaceStep.REFUSE,
            "the shards s1 and s2 have it",
        ),
        ([home(TenantState.DESTROYING, "db", "activated")], PlaceStep.REFUSE, "shard s1 has it already, destroying"),
        ([home(TenantState.DESTROYED, "db", "activated")], PlaceStep.REFUSE, "shard s1 has it already, destroyed"),
        ([home(ACTIVE, "db", "copying")], PlaceStep.REFUSE, "shard s1 has it already, active"),
        ([home(ACTIVE, "other", "activated")], PlaceStep.REFUSE, "shard s1 has it already, active"),
        ([home(ACTIVE)], PlaceStep.REFUSE, "shard s1 has it already, active"),
        ([home(MOVED), home(ACTIVE, shard_id="s2")], PlaceStep.REFUSE, "shard s2 has it already, active"),
        ([home(ACTIVE), home(INCOMING, "db", "copying", "s2")], PlaceStep.REFUSE, "the shards s1 and s2 have it"),
        ([OTHER_PAIR], PlaceStep.REFUSE, "shard s1 has its id for business b-l, location l"),
    ],
)
def test_step_is_decided_by_the_rows_of_the_tenant(
    homes: list[HomeFacts], step: PlaceStep, problem: str | None
) -> None:
    tenant = NamedTenant(source("b", "l"), "b", "l", "gym")

    found = place_of(tenant, homes, source="db")
    assert (found[0], found[2]) == (step, problem)
    assert (found[1] is None) == (not homes)
    assert found[1] in [None, *homes]
