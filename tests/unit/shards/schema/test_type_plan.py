"""What a shard needs so that it has the business types of some files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simplu_worker.operations.business_types import ResourceType
from simplu_worker.shards.schema.type_files import (
    BASE_TYPES,
    Columns,
    ShardTypes,
    StoredType,
    TypeChange,
    TypeFile,
    index_statements,
    plan_types,
    read_type,
)

PRICE = {"name": "price", "path": ["price"], "type": "number"}
NAME = {"name": "name", "path": ["name"]}


def file_of(name: str = "bakery", view: str | None = "bakery_loaves", *columns: dict[str, Any]) -> TypeFile:
    resources = [] if view is None else [{"name": "loaf", "view": view, "columns": columns}]
    members = {"name": name, "defaultSettings": {}, "staffResourceType": "baker", "resourceTypes": resources}
    return read_type(json.dumps(members))


def stored(file: TypeFile, *, digest: str | None = None, is_applied: bool = True, tenant_count: int = 0) -> StoredType:
    return StoredType(file.type.name, digest or file.digest, is_applied, tenant_count, list(file.views))


def shard(*types: StoredType, **relations: Columns | None) -> ShardTypes:
    return ShardTypes({one.name: one for one in types}, relations)


BAKERY = file_of("bakery", "bakery_loaves", NAME)
BASE = [*zip(ResourceType("loaf").base_columns, BASE_TYPES, strict=True)]
HAS_NAME = [*BASE, ("name", "text")]


@pytest.mark.parametrize(
    ("types", "change"),
    [
        ([], TypeChange.NEW),
        ([stored(BAKERY)], TypeChange.CURRENT),
        ([stored(BAKERY, digest="x")], TypeChange.CHANGED),
        ([stored(BAKERY, digest="x", is_applied=False)], TypeChange.CHANGED),
        ([stored(BAKERY, is_applied=False)], TypeChange.CURRENT),
    ],
)
def test_change_of_a_type_follows_from_its_row(types: list[StoredType], change: TypeChange) -> None:
    plan = plan_types(shard(*types, bakery_loaves=HAS_NAME) if types else shard(), {"bakery": BAKERY})

    assert plan.changes == {"bakery": change}
    assert plan.to_write == ([] if change is TypeChange.CURRENT else ["bakery"])
    assert plan.is_needed == (change is not TypeChange.CURRENT)
    assert (plan.refusals, plan.dropped_views) == ([], [])


@pytest.mark.parametrize(
    ("row", "written"),
    [
        (None, ["bakery"]),
        (stored(BAKERY, is_applied=False), []),
        (stored(BAKERY, digest="x", is_applied=False), ["bakery"]),
        (stored(BAKERY, digest="x"), []),
    ],
)
def test_upgrade_leaves_what_types_apply_wrote(row: StoredType | None, written: list[str]) -> None:
    types = [] if row is None else [row]
    plan = plan_types(shard(*types, bakery_loaves=HAS_NAME) if types else shard(), {"bakery": BAKERY}, by_upgrade=True)

    assert (plan.to_write, plan.refusals) == (written, [])


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ([NAME], None),
        ([NAME, PRICE], None),
        ([PRICE, NAME], "expected name, text, as column 6, got price, numeric"),
        ([], "expected name, text, as column 6, got none"),
        ([NAME | {"type": "integer"}], "expected name, text, as column 6, got name, bigint"),
        ([NAME | {"path": ["title"]}], None),
    ],
)
def test_columns_of_a_view_stay_and_new_ones_come_last(columns: list[dict[str, Any]], problem: str | None) -> None:
    file = file_of("bakery", "bakery_loaves", *columns)
    plan = plan_types(shard(stored(BAKERY, digest="x"), bakery_loaves=HAS_NAME), {"bakery": file})

    assert len(plan.refusals) == (problem is not None)
    assert problem is None or problem in plan.refusals[0]


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (shard(bakery_loaves=HAS_NAME), "bakery_loaves is there, and no view of a business type"),
        (shard(bakery_loaves=None), "bakery_loaves is there, and no view of a business type"),
        (
            shard(stored(file_of("deli", "bakery_loaves", NAME)), bakery_loaves=HAS_NAME),
            "the view bakery_loaves is one of the type deli",
        ),
        (
            shard(stored(BAKERY, digest="x"), bakery_loaves=None),
            "expected a view, got a table of that name",
        ),
    ],
)
def test_what_is_not_of_the_type_is_not_replaced(there: ShardTypes, problem: str) -> None:
    plan = plan_types(there, {"bakery": BAKERY})

    assert [problem in refusal for refusal in plan.refusals] == [True]


def test_view_that_no_file_has_any_more_goes() -> None:
    deli = file_of("deli", "bakery_loaves", NAME)
    there = shard(stored(BAKERY), stored(deli, digest="x"), bakery_loaves=HAS_NAME)
    assert plan_types(there, {"bakery": file_of("bakery", None)}).dropped_views == []  # deli has it

    there = shard(stored(BAKERY), bakery_loaves=HAS_NAME)
    assert plan_types(there, {"bakery": file_of("bakery", None)}).dropped_views == ["bakery_loaves"]
    handed_over = plan_types(there, {"bakery": file_of("bakery", None), "deli": deli})
    assert (handed_over.dropped_views, handed_over.refusals) == ([], [])


def test_type_without_a_file_is_left_alone() -> None:
    plan = plan_types(shard(stored(BAKERY, tenant_count=3)), {})

    assert (plan.changes, plan.dropped_views, plan.is_needed) == ({}, [], False)


@pytest.mark.parametrize(("tenant_count", "refusal_count"), [(0, 0), (1, 1)])
def test_type_is_removed_when_no_tenant_has_it(tenant_count: int, refusal_count: int) -> None:
    plan = plan_types(shard(stored(BAKERY, tenant_count=tenant_count)), {}, remove=["bakery", "deli"])

    assert plan.changes == {"bakery": TypeChange.REMOVED, "deli": TypeChange.ABSENT}
    assert (plan.to_remove, plan.dropped_views) == (["bakery"], ["bakery_loaves"])
    assert len(plan.refusals) == refusal_count
    assert all("got 1; move or destroy them first" in refusal for refusal in plan.refusals)


def with_lists(name: str, *filtered: str) -> TypeFile:
    resources = [{"name": "loaf", "filtered": filtered}]
    members = {"name": name, "defaultSettings": {}, "staffResourceType": "baker", "resourceTypes": resources}
    return read_type(json.dumps(members))


def test_indexes_are_built_once_and_go_with_the_last_type_that_wants_them() -> None:
    city, price = with_lists("bakery", "city"), with_lists("deli", "city", "price")
    ((built, statement),) = index_statements(city.type).items()
    both = index_statements(price.type)
    assert plan_types(shard(), {"bakery": city}).index_statements == [statement]
    assert plan_types(shard(), {"bakery": city}, by_upgrade=True).index_statements == []
    assert plan_types(shard(), {"bakery": city, "deli": price}).index_statements == [both[one] for one in sorted(both)]

    there = ShardTypes({"bakery": StoredType("bakery", city.digest, True, indexes={built: statement})}, {}, [built])
    plan = plan_types(there, {"bakery": city})
    assert (plan.index_statements, plan.is_needed) == ([], False)
    plan = plan_types(there, {"bakery": with_lists("bakery")})
    assert plan.index_statements == [f"DROP INDEX CONCURRENTLY IF EXISTS public.{built}"]
    plan = plan_types(there, {"deli": price})
    assert plan.index_statements == [text for name, text in sorted(both.items()) if name != built]
    plan = plan_types(ShardTypes({}, {}, ["simplu_list_old"]), {})
    assert (plan.to_write, plan.to_remove, plan.is_needed) == ([], [], True)
    assert plan_types(there, {}, remove=["bakery"]).is_needed
