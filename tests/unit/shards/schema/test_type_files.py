from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.business_types import BusinessType, ResourceType, ViewColumn
from simplu_worker.shards.schema.type_files import (
    BASE_TYPES,
    FILE_MAX_BYTES,
    INDEX_PREFIX,
    Columns,
    ShardTypes,
    StoredType,
    TypeChange,
    TypeFile,
    TypeFileError,
    index_statements,
    is_type_name,
    plan_types,
    problems_between,
    read_type,
    stored_type,
    view_statements,
)
from simplu_worker.vocabulary import ColumnType, Validation

EXAMPLES = Path(__file__).parents[4] / "tests" / "support" / "business_types"
RESOURCE = {"name": "loaf", "view": "bakery_loaves", "columns": [{"name": "price", "path": ["price"]}]}


def text_of(**members: Any) -> str:
    own = {"name": "bakery", "defaultSettings": {}, "staffResourceType": "baker", "resourceTypes": [RESOURCE]}
    return json.dumps(own | members)


def with_column(**members: Any) -> str:
    return text_of(resourceTypes=[RESOURCE | {"columns": [{"name": "price", "path": ["price"]} | members]}])


def with_resource(**members: Any) -> str:
    return text_of(resourceTypes=[RESOURCE | members])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "expected a business type as JSON"),
        ("[" * 100_000, "expected a business type as JSON"),
        (text_of(sql="SELECT 1"), "unknown field `sql`"),
        (f'{{"name": "{"x" * FILE_MAX_BYTES}"}}', f"expected at most {FILE_MAX_BYTES} bytes"),
        (text_of(name="1st"), "name: expected a letter"),
        (text_of(name="x" * 64), "name: expected a letter"),
        (text_of(name="a'b"), "name: expected a letter"),
        (text_of(staffResourceType="a'b"), "staffResourceType: expected 1 to 128"),
        (text_of(defaultSettings={"a": "\0"}), "U+0000"),
        (text_of(defaultSettings={"a": [{"b\0": 1}]}), "U+0000"),
        (text_of(defaultSettings={"a": json.loads("[" * 600 + "]" * 600)}), "defaultSettings: expected"),
        (text_of(resourceTypes=[RESOURCE, {"name": "roll", "alsoNamed": ["loaf"]}]), "got 'loaf' 2 times"),
        (text_of(resourceTypes=[RESOURCE, RESOURCE | {"name": "roll"}]), "got bakery_loaves 2 times"),
        (with_resource(name="a.b"), "name: expected 1 to 128"),
        (with_resource(alsoNamed=["a'"]), "name: expected 1 to 128"),
        (with_resource(view="Loaves"), "view: expected a-z or _"),
        (with_resource(view='x" AS SELECT 1; --'), "view: expected a-z or _"),
        (with_resource(view="x" * 64), "view: expected a-z or _"),
        (with_resource(view=None), "columns: expected a view"),
        (with_resource(validation="enforce"), "expected a schema for enforce"),
        (with_resource(validation="warn"), "expected a schema for warn"),
        (with_resource(schema={"type": "txt"}), 'schema: #/type: "txt" is not'),
        (with_resource(name="settings", validation="enforce", schema={"required": ["a"]}), 'the member "a"'),
        (with_resource(validation="maybe"), "expected a business type as JSON"),
        (
            with_resource(columns=[{"name": f"c{n}", "path": ["a"]} for n in range(201)]),
            "expected at most 200, got 201",
        ),
        (with_column(name="Price"), "column: expected a-z or _"),
        (with_column(name="x" * 64), "column: expected a-z or _"),
        (with_column(name="data"), "column data: expected a name that the view does not have yet"),
        (with_column(path=[]), "expected a path of 1 to 8 members, got 0"),
        (with_column(path=["a"] * 9), "expected a path of 1 to 8 members, got 9"),
        (with_column(path=["public.tenants"]), "column price: expected members of"),
        (with_column(path=["a'"]), "column price: expected members of"),
        (with_column(path=["a\\"]), "column price: expected members of"),
        (with_column(path=[""]), "column price: expected members of"),
        (with_column(alsoAt=[["a"], ["b'"]]), "column price: expected members of"),
        (with_column(type="jsonb"), "expected a business type as JSON"),
        (with_resource(date="a..b"), "date, filtered: expected 1 to 8 members"),
        (with_resource(filtered=["a'b"]), "date, filtered: expected 1 to 8 members"),
        (with_resource(filtered=list("abcde")), "filtered: expected at most 4 members, got 5"),
        (with_resource(idColumn="data"), "tenantColumn, idColumn: expected two names other than"),
        (with_resource(tenantColumn="a'b"), "tenantColumn: expected id, or a-z or _"),
        (with_resource(idColumn="price", columns=[{"name": "price", "path": ["a"]}]), "expected a name that the view"),
        (
            text_of(staffResourceType="loaves", resourceTypes=[RESOURCE | {"alsoNamed": ["loaves"]}]),
            "staffResourceType: loaves is another name of loaf",
        ),
        (with_resource(alsoNamed=["settings"]), "the worker itself makes resources named settings"),
        (with_resource(date=".".join("a" * 9)), "date, filtered: expected 1 to 8 members"),
        (with_resource(idColumn="a'b"), "idColumn: expected resourceId, or a-z or _"),
        (
            with_resource(columns=[{"name": "price", "path": ["price"]}] * 2),
            "column price: expected a name that the view does not have",
        ),
        (json.dumps(json.loads(text_of()) | {"name": "ä" * (FILE_MAX_BYTES // 2)}), "expected at most"),
    ],
)
def test_file_is_refused_when_a_shard_could_not_have_it(text: str, problem: str) -> None:
    with pytest.raises(TypeFileError) as caught:
        read_type(text)

    assert problem in "\n".join(caught.value.problems)


def test_file_is_refused_with_all_of_its_problems() -> None:
    with pytest.raises(TypeFileError) as caught:
        read_type(with_resource(view="A", validation="warn"))

    assert len(caught.value.problems) == 2
    assert str(caught.value) == "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    "text",
    [
        text_of(resourceTypes=[{"name": "a"}, {"name": "b"}]),  # without views
        with_resource(columns=[{"name": f"c{n}", "path": ["a"] * 8} for n in range(200)]),
        with_resource(date=".".join("a" * 8), filtered=["a.b", "c", "d", "e"]),
        with_resource(tenantColumn="tenant", idColumn="loaf_id"),
        with_resource(name="settings", validation="warn", schema={"required": ["a"]}),
        with_resource(name="settings", validation="enforce", schema={"required": []}),
        with_resource(name="loaf", validation="enforce", schema={"required": ["a"]}),
        text_of() + " " * (FILE_MAX_BYTES - len(text_of())),
    ],
)
def test_file_at_the_bounds_is_accepted(text: str) -> None:
    file = read_type(text)
    assert set(file.views) == {one.view for one in file.type.resource_types if one.view is not None}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_example_is_accepted(path: Path) -> None:
    file = read_type(path.read_text())

    assert file.type.name == path.stem
    assert {Validation.ENFORCE, Validation.WARN} <= {one.validation for one in file.type.resource_types}
    assert all(view.startswith(f"{path.stem}_") for view in file.views)
    assert stored_type(file.text) == file


@pytest.mark.parametrize("definition", [None, "{", "[]", '{"name": 1}', "[" * 100_000])
def test_row_that_cannot_be_read_is_no_type(definition: str | None) -> None:
    assert stored_type(definition) is None


def test_two_types_with_one_view_are_refused() -> None:
    files = {name: read_type(text_of(name=name)) for name in ("bakery", "deli")}

    assert problems_between(files) == [
        "view bakery_loaves: expected one type that has it, got bakery, deli; rename it in all but one"
    ]
    assert problems_between({"bakery": files["bakery"]}) == []


def bakery(*columns: ViewColumn) -> BusinessType:
    return BusinessType("bakery", {}, "baker", [ResourceType("loaf", ["loaves"], "bakery_loaves", columns)])


def test_view_has_the_base_columns_then_its_own() -> None:
    business_type = bakery(
        ViewColumn("name", ["name"]),
        ViewColumn("city", ["address", "city"]),
        ViewColumn("grams", ["weight", "grams"], ColumnType.INTEGER),
        ViewColumn("price", ["price"], ColumnType.NUMBER),
        ViewColumn("fresh", ["fresh"], ColumnType.BOOLEAN),
        ViewColumn("baked_at", ["bakedAt"], ColumnType.TIMESTAMP, [["date"]]),
    )

    (statement,) = view_statements(business_type, server_version=15)

    text = "::pg_catalog.text"
    moments = [f"public.simplu_timestamptz(data -> '{member}'{text})" for member in ("bakedAt", "date")]
    assert statement.splitlines() == [
        'CREATE OR REPLACE VIEW public."bakery_loaves" WITH (security_invoker = true) AS',
        "SELECT",
        '    "id", "resourceId", "data", "date", "lastUpdated",',
        f"    data ->> 'name'{text} AS \"name\",",
        f"    data -> 'address'{text} ->> 'city'{text} AS \"city\",",
        f"    public.simplu_integer(data -> 'weight'{text} -> 'grams'{text}) AS \"grams\",",
        f"    public.simplu_numeric(data -> 'price'{text}) AS \"price\",",
        f"    public.simplu_boolean(data -> 'fresh'{text}) AS \"fresh\",",
        f'    coalesce({", ".join(moments)}) AS "baked_at"',
        "FROM public.resources",
        "WHERE \"businessType\" = 'bakery' AND \"resourceName\" = 'loaf'",
    ]


def test_view_is_of_its_type_with_its_own_columns_of_ids() -> None:
    own = ResourceType("loaf", (), "loaves", [ViewColumn("name", ["name"])], tenant_column="tenant")
    business_type = BusinessType("bakery's", {}, "baker", [ResourceType("dough"), own])
    (statement,) = view_statements(business_type, server_version=15)
    assert statement.splitlines()[2:] == [
        '    "id" AS "tenant", "resourceId", "data", "date", "lastUpdated",',
        "    data ->> 'name'::pg_catalog.text AS \"name\"",
        "FROM public.resources",
        "WHERE \"businessType\" = 'bakery''s' AND \"resourceName\" = 'loaf'",
    ]


def test_members_in_lists_have_an_index_for_texts_or_times() -> None:
    one = ResourceType("loaf", date="baked.at", filtered=["baked.at", "city"])
    other = ResourceType("roll", filtered=["city"])
    statements = index_statements(BusinessType("bakery", {}, "baker", [one, other]))
    time = "public.simplu_timestamptz(data #> '{baked,at}'::pg_catalog.text[])"
    text = "pg_catalog.left(data #>> '{city}'::pg_catalog.text[], 200) COLLATE \"C\""
    names = [INDEX_PREFIX + hashlib.sha256(value.encode()).hexdigest()[:16] for value in (time, text)]
    assert statements == {
        name: f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON public.resources\n"
        f'(id, "resourceName", ({value})) WHERE ({value}) IS NOT NULL'
        for name, value in zip(names, (time, text), strict=True)
    }


def test_view_of_an_older_server_has_no_security_invoker() -> None:
    (statement,) = view_statements(bakery(), server_version=14)

    assert statement.startswith('CREATE OR REPLACE VIEW public."bakery_loaves" AS\n')


ODD_TEXTS = st.text("ab_$- .'\"\\;\n", min_size=1, max_size=4) | st.sampled_from(["a", "public.a", "--", "ä ö"])


@given(ODD_TEXTS, ODD_TEXTS, ODD_TEXTS, ODD_TEXTS)
def test_accepted_file_ends_no_literal_and_no_name(name: str, resource: str, column: str, member: str) -> None:
    own = {"name": resource, "view": "bakery_loaves", "columns": [{"name": column, "path": [member]}]}
    try:
        file = read_type(text_of(name=name, resourceTypes=[own]))
    except TypeFileError:
        return
    (statement,) = view_statements(file.type, server_version=15)

    assert (statement.count("'"), statement.count('"')) == (6, 18)
    assert len(re.findall(r"public\.", statement)) == 2
    assert is_type_name(name)


def test_digest_is_that_of_the_text() -> None:
    first, second = read_type(text_of()), read_type(text_of() + "\n")

    assert first.digest != second.digest
    assert TypeFile(first.text, second.type).digest == first.digest


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
        (shard(stored(BAKERY, digest="x"), bakery_loaves=None), "expected a view, got a table of that name"),
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
