"""Whose rows another program has written, and what stands in the way of taking them over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.business_info import Business
from simplu_worker.transfers.adoption.plan import (
    NAMED_MAX,
    AdoptionChoices,
    AdoptionPlan,
    DuplicateRows,
    Layout,
    OldContents,
    OldTenant,
    Owner,
    Standing,
    layout_of,
    next_step,
    owner_of,
    without_collisions,
)

JOINED = {
    "id": "bigint",
    "business_location_id": "character varying",
    "resource_type": "character varying",
    "resource_id": "character varying",
    "data": "jsonb",
    "start_date": "date",
    "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone",
    "shard_id": "character varying",
}
TWO = {name: type_ for name, type_ in JOINED.items() if name != "business_location_id"} | {
    "business_id": "character varying",
    "location_id": "character varying",
}
CLINIC = Business("clinic", "dental", frozenset({"main", "b-c"}))
DASHED = Business("clinic-b", "dental", frozenset({"c"}))
UNTYPED = Business("clinic", "bakery", frozenset({"main"}))
TYPES = {"dental", "gym", "hotel"}


def owner(source: OldTenant, *businesses: Business | str, shard_id: str | None = "shard-1") -> Owner:
    """Return who *source* is by these businesses; a text is what is wrong with the item of the business `clinic`."""
    known = {"clinic" if isinstance(one, str) else one.id: one for one in businesses}
    return owner_of(source, known, shard_id, shard_id="shard-1", types=TYPES)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (JOINED, Layout.JOINED_IDS),
        (TWO, Layout.TWO_IDS),
        (JOINED | {"data": "text"}, Layout.JOINED_IDS),
        (TWO | JOINED, Layout.JOINED_IDS),
    ],
)
def test_layout_is_known_by_the_columns(columns: dict[str, str], expected: Layout) -> None:
    assert layout_of(columns) is expected


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "a column id of type bigint or integer, got none"),
        (JOINED | {"id": "uuid"}, "a column id of type bigint or integer, got of type uuid"),
        (JOINED | {"data": "bytea"}, "got of type bytea"),
        ({name: type_ for name, type_ in TWO.items() if name != "business_id"}, "business_location_id, or business_id"),
    ],
)
def test_layout_says_what_was_expected_when_it_is_another_table(columns: dict[str, str], says: str) -> None:
    assert says in layout_of(columns)


@given(business_id=st.text("ab-", min_size=1, max_size=6), location_id=st.text("ab-", min_size=1, max_size=6))
def test_candidates_have_every_pair_that_makes_the_id(business_id: str, location_id: str) -> None:
    candidates = OldTenant(f"{business_id}-{location_id}").candidates
    assert (business_id, location_id) in candidates
    assert {"-".join(pair) for pair in candidates} == {f"{business_id}-{location_id}"}
    assert len(candidates) == f"{business_id}-{location_id}".count("-")


def test_owner_is_the_one_pair_that_business_info_knows() -> None:
    found = owner(OldTenant("clinic-b-c"), CLINIC)
    assert (found.business_id, found.location_id, found.business_type) == ("clinic", "b-c", "dental")
    assert (found.tenant_id, found.problem, found.name) == ("clinic-b-c", None, "clinic b-c")


@pytest.mark.parametrize(
    ("source", "businesses", "shard_id", "says"),
    [
        (
            OldTenant("clinic-b-c"),
            (CLINIC, DASHED),
            "shard-1",
            "expected one business and location, got clinic b-c, clinic-b c",
        ),
        (OldTenant("clinic-main"), (), "shard-1", "its business is not in business-info"),
        (OldTenant("clinic-x-y"), (), "shard-1", "none of the possible businesses is"),
        (OldTenant("clinic-x-y"), (CLINIC,), "shard-1", "business-info has clinic, which has no such location"),
        (OldTenant("clinic-east"), (CLINIC,), "shard-1", "no such location"),
        (OldTenant("clinic"), (CLINIC,), "shard-1", "expected a business and a location"),
        (OldTenant("-"), (CLINIC,), "shard-1", "expected a business and a location"),
        (OldTenant("b" * 129 + "-x"), (), "shard-1", "expected a business and a location"),
        (OldTenant("clinic-main"), (UNTYPED,), "shard-1", "'bakery', is none of dental, gym, hotel"),
        (OldTenant("clinic-main"), ("clinic: no type",), "shard-1", "clinic: no type"),
        (OldTenant("clinic-main"), (CLINIC,), None, "it is not registered"),
        (OldTenant("clinic-main"), (CLINIC,), "shard-2", "it is routed to shard shard-2"),
        (OldTenant("['clinic','x']", "clinic", "x"), (CLINIC,), "shard-1", "no such location"),
    ],
)
def test_owner_has_a_problem_when_it_is_not_certain(
    source: OldTenant, businesses: tuple[Business | str, ...], shard_id: str | None, says: str
) -> None:
    found = owner(source, *businesses, shard_id=shard_id)
    assert says in (found.problem or "")
    assert found.tenant_id is None


def test_owners_of_one_id_are_none_when_they_are_two_pairs() -> None:
    one, other = OldTenant("1", "clinic", "b-c"), OldTenant("2", "clinic-b", "c")
    owners = without_collisions([owner(one, CLINIC), owner(other, DASHED), owner(OldTenant("clinic-main"), CLINIC)])
    assert [found.problem is None for found in owners.values()] == [False, False, True]
    assert "another business and location" in (owners["1"].problem or "")

    without_id = [Owner(OldTenant(key), problem="it is not registered") for key in "ab"]
    assert list(without_collisions(without_id).values()) == without_id


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (Owner(OldTenant("key"), "b", "l"), "b l"),
        (Owner(OldTenant("key"), "b", None), "key"),
        (Owner(OldTenant("key"), None, "l"), "key"),
    ],
)
def test_owner_is_called_by_both_ids_else_as_the_old_table_calls_it(found: Owner, name: str) -> None:
    assert found.name == name


@pytest.mark.parametrize(
    ("source", "businesses", "shard_id", "name"),
    [
        (OldTenant("clinic-main"), (UNTYPED,), "shard-1", "clinic main"),
        (OldTenant("clinic-main"), (CLINIC,), None, "clinic main"),
        (OldTenant("clinic-main"), (CLINIC,), "shard-2", "clinic main"),
        (OldTenant("nowhere-main"), (), "shard-1", "nowhere-main"),
        (OldTenant("clinic-other"), (CLINIC,), "shard-1", "clinic-other"),
        (OldTenant("k", "nowhere", "main"), (), "shard-1", "nowhere main"),
    ],
)
def test_owner_with_a_problem_is_called_by_the_ids_that_are_known(
    source: OldTenant, businesses: tuple[Business, ...], shard_id: str | None, name: str
) -> None:
    assert owner(source, *businesses, shard_id=shard_id).name == name


@pytest.mark.parametrize("half", [{"business_id": "x"}, {"location_id": "x"}])
def test_half_a_tenant_is_looked_for_by_its_key(half: dict[str, str]) -> None:
    assert OldTenant("clinic-main", **half).candidates == [("clinic", "main")]
    assert Owner(OldTenant("clinic-main"), **half).tenant_id is None


def plan(found: OldContents, *owners: Owner) -> AdoptionPlan:
    """Return a plan of a table with these owners, of one row each."""
    for one in owners:
        found.add_rows(one.source, None, 1)
    return AdoptionPlan("shard-1", Layout.JOINED_IDS, found, {one.source.key: one for one in owners})


def test_plan_refuses_only_what_was_not_chosen() -> None:
    found = OldContents(conflicting_names=["tenants"])
    found.add_rows(None, "it names no tenant", 3)
    found.add_rows(OldTenant("who-knows"), None, 41)
    for key in ("clinic-main", "who-knows"):
        found.add_duplicate(key, DuplicateRows(key, "patient", "p-1", 2, [1, 2]))
    made = plan(found, owner(OldTenant("clinic-main"), CLINIC), owner(OldTenant("who-knows")))
    assert (made.row_count, made.duplicate_count) == (1, 1)
    _, unresolved, *others = made.refusals(AdoptionChoices())
    assert ("unresolved tenants: 1, with 42 rows" in unresolved, len(others)) == (True, 1)
    (left,) = made.refusals(AdoptionChoices(leave_unresolved=True, leave_faulty=True))
    assert left.startswith("beside")
    assert plan(OldContents(), owner(OldTenant("clinic-main"), CLINIC)).refusals(AdoptionChoices()) == []


def test_plan_lists_owners_by_name() -> None:
    owners = [Owner(OldTenant(name), problem=problem) for name, problem in zip("cadb", ("p", None) * 2, strict=True)]
    made = plan(OldContents(), *owners)
    assert [one.name for one in made.resolved] == ["a", "b"]
    assert [one.name for one in made.unresolved] == ["c", "d"]


def test_contents_count_rows_and_name_a_bounded_number_of_duplicates() -> None:
    contents, source = OldContents(), OldTenant("clinic-main")
    for count in (2, 3):
        contents.add_rows(source, None, count)
        contents.add_rows(source, "bad", count)
        contents.add_rows(None, None, count)
    rows = [DuplicateRows("clinic-main", "patient", str(number), 2, []) for number in range(NAMED_MAX + 5)]
    for one in rows:
        contents.add_duplicate("clinic-main", one)
    assert (contents.row_counts, contents.fault_counts) == ({"clinic-main": 5}, {"bad": 5})
    assert contents.sources == {"clinic-main": source}
    assert (contents.duplicates, contents.duplicate_counts.total()) == (rows[:NAMED_MAX], NAMED_MAX + 5)


@pytest.mark.parametrize(
    ("facts", "expected", "of_copy"),
    [
        ({"has_ended": True, "has_owners": False}, "ENDED", "ENDED"),
        ({"has_owners": False, "copy_to": None}, "LOOKING_UP", "LOOKING_UP"),
        ({"copy_to": None, "is_caught_up": False}, "COPYING", "COPYING"),
        ({"copied_to": 8}, "COPYING", "COPYING"),
        ({"is_caught_up": False}, "CATCHING_UP", "CATCHING_UP"),
        ({"is_quiet": False}, "WATCHING", "ENDED"),
        ({}, "SWAPPING", "ENDED"),
    ],
)
def test_next_step_is_the_first_that_is_left(facts: dict[str, Any], expected: str, of_copy: str) -> None:
    done = {"copied_to": 9, "copy_to": 9, "has_owners": True, "is_caught_up": True, "is_quiet": True}
    steps = [next_step(Standing(**done | facts), copies_only=copies_only).name for copies_only in (False, True)]
    assert steps == [expected, of_copy]
