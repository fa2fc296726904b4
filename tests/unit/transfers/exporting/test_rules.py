"""What an export writes for events, in which order, and by which statements."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.events import ReadRow
from simplu_worker.feed.types import FeedEvent, FeedTenant, Place
from simplu_worker.transfers.exporting.rules import (
    ExportKey,
    ExportRow,
    all_statements,
    digest_of_mapping,
    in_statements,
    may_be_of,
    plan_round,
    statement_of,
)
from simplu_worker.transfers.importing.queries import parse_mapping, parse_queries
from simplu_worker.vocabulary import FeedKind

TENANT = FeedTenant("clinic-main", "clinic", "main", "dental")
OTHER = FeedTenant("gym-oslo", "gym", "oslo", "gym")
MAPPING = """
-- name: patient
SELECT patient;
-- upsert: patient
INSERT INTO patients SELECT FROM changed;
-- delete: patient
DELETE FROM patients USING changed;

-- name: visit
SELECT visit;
-- upsert: visit
merge INTO visits;
-- delete: visit
UPDATE visits SET deleted = true;
"""


def row(
    kind: str, resource: str | None = None, *, tenant: FeedTenant | None = TENANT, other_types: tuple[str, ...] = ()
) -> ReadRow:
    resource_type, _, resource_id = (resource or "").partition(" ")
    event = FeedEvent(
        id="e",
        kind=FeedKind(kind),
        shard_id="a",
        time=datetime(2026, 3, 1, tzinfo=UTC),
        position="1-0",
        incarnation="",
        tenant=tenant,
        resource_type=resource_type or None,
        resource_id=resource_id or None,
        other_types=other_types,
    )
    return ReadRow(Place(1, 0), (event,))


def names(*rows: ReadRow) -> list[str]:
    return [f"{key.resource_type} {key.resource_id}" for key in plan_round(rows, ["patient", "visit"]).keys]


def key(name: str) -> ExportKey:
    resource_type, _, resource_id = name.partition(" ")
    return ExportKey(TENANT, resource_type, resource_type, resource_id)


def test_resource_is_at_its_first_change() -> None:
    created, visit = row("resource.created", "patient 1"), row("resource.created", "visit 1")
    assert names(created, visit, row("resource.patched", "patient 1")) == ["patient 1", "visit 1"]


def test_deleted_resource_is_at_its_last_change() -> None:
    updated, visit = row("resource.updated", "patient 1"), row("resource.deleted", "visit 1")
    assert names(updated, visit, row("resource.deleted", "patient 1")) == ["visit 1", "patient 1"]


def test_type_may_be_mapped_under_another_name() -> None:
    (found,) = plan_round([row("resource.changed", "patients 1", other_types=("patient",))], ["patient"]).keys
    assert (found.resource_type, found.stored_type) == ("patient", "patients")


def test_types_without_statements_and_rows_without_events_are_left_out() -> None:
    known = row("resource.created", "visit 1")
    assert names(row("resource.created", "invoice 1"), ReadRow(Place(1, 1)), row("reset", tenant=None), known) == [
        "visit 1"
    ]


@pytest.mark.parametrize("kind", ["tenant.created", "tenant.moved", "tenant.replaced", "tenant.destroyed"])
def test_tenant_that_changes_whole_is_compared_once(kind: str) -> None:
    rows = [
        row("resource.created", "patient 1"),
        row(kind),
        row(kind),
        row("resource.created", "visit 2", tenant=OTHER),
    ]
    plan = plan_round(rows, ["patient", "visit"])
    assert plan.tenants == [TENANT]
    assert [one.tenant for one in plan.keys] == [OTHER]


def test_statement_has_rows_of_one_kind_and_so_many() -> None:
    there = [ExportRow(key(f"patient {number}"), "{}") for number in range(3)]
    gone, visit = ExportRow(key("patient 3")), ExportRow(key("visit 1"), "{}")
    assert in_statements([*there, gone, visit], 2) == [there[:2], there[2:], [gone], [visit]]
    assert in_statements([], 2) == []


def test_statement_reads_its_rows_from_columns() -> None:
    mapping = {one.query.resource_type: one for one in parse_mapping(MAPPING.encode())}
    sql, columns = statement_of([ExportRow(key("patient 1"), "{}", "then", "now")], mapping)
    assert sql.startswith("WITH changed AS (")
    assert sql.endswith(")\nINSERT INTO patients SELECT FROM changed")
    assert columns == [["clinic"], ["main"], ["1"], ["{}"], ["then"], ["now"]]
    sql, columns = statement_of([ExportRow(key("visit 1")), ExportRow(key("visit 2"))], mapping)
    assert sql.endswith("UPDATE visits SET deleted = true")
    assert columns[2:4] == [["1", "2"], [None, None]]


def test_both_statements_are_looked_at_as_they_are_sent() -> None:
    mapping = {one.query.resource_type: one for one in parse_mapping(MAPPING.encode())}
    sent = [statement_of([ExportRow(key("visit 1"), document)], mapping)[0] for document in ("{}", None)]
    assert all_statements(mapping["visit"]) == sent


def test_key_names_the_resource_and_its_tenant() -> None:
    assert key("visit 7").name == "visit 7 of clinic main"


def test_digest_differs_for_another_statement() -> None:
    texts = [MAPPING, MAPPING.replace("merge", "MERGE"), MAPPING.replace("= true", "= false")]
    texts.append(MAPPING.replace("SELECT visit", "SELECT visits"))
    assert len({digest_of_mapping(parse_mapping(text.encode())) for text in texts}) == 4
    assert digest_of_mapping(parse_mapping(MAPPING.encode())) == digest_of_mapping(parse_mapping(MAPPING.encode()))


@pytest.mark.parametrize(
    ("text", "column_type", "is_possible"),
    [
        ("7", "int4", True),
        ("-7", "int8", True),
        ("2147483648", "int4", False),
        ("2147483647", "int4", True),
        ("32768", "int2", False),
        ("9223372036854775808", "int8", False),
        ("clinic", "int8", False),
        ("clinic", "uuid", False),
        ("00000000-0000-4000-8000-000000000000", "uuid", True),
        ("clinic", "text", True),
        ("7", "varchar", True),
    ],
)
def test_tenant_of_another_kind_of_id_has_no_rows(text: str, column_type: str, *, is_possible: bool) -> None:
    assert may_be_of(text, column_type) is is_possible


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("-- delete: visit", "-- delete: visits", "visits: there is no `-- name: visits`"),
        ("-- upsert: visit\n", "", "visit: expected `-- upsert: visit`, and below it INSERT or MERGE"),
        (
            "UPDATE visits",
            "SELECT visits",
            "visit: expected `-- delete: visit`, and below it DELETE or UPDATE",
        ),
    ],
)
def test_file_needs_both_statements_of_each_type(old: str, new: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_mapping(MAPPING.replace(old, new).encode())
    assert any(problem in one for one in caught.value.problems)


def test_import_reads_the_queries_of_the_same_file() -> None:
    assert [one.resource_type for one in parse_queries(MAPPING.encode())] == ["patient", "visit"]
    assert all("INSERT" not in one.sql for one in parse_queries(MAPPING.encode()))
