from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from support.postgres.databases import PoolMaker
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, failed, fetch, writer_of

from simplu_local.workload.json_values import JsonValue, parse_json
from simplu_local.workload.lists import DayOf, day_at, in_order, passes_filters
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.vocabulary import Failure

INVALID = failed(Failure.INVALID_QUERY)
START = datetime(2026, 3, 1, tzinfo=UTC)
VALUES: list[Any] = [
    None,
    0,
    1,
    1.0,
    1.50,
    -3,
    10**20,
    "",
    "1",
    "Ana",
    "ana",
    "Zoë",
    "\U0001f600",
    True,
    False,
    [1],
    {"a": 1},
]
TIMES = ["2026-03-02", "2026-03-02T23:30:00Z", "2026-03-03T00:30:00+02:00", "2026-03-02T10:00:00", "soon", 5]
FILTERS: list[dict[str, Any]] = [
    {},
    {"v": 1},
    {"v": [1]},
    {"v": {"equals": {"a": 1}}},
    {"v": {"in": [1, "Ana", None, True]}},
    {"c.email": "a1@example.com"},
    {"c.email": {"from": "a1", "to": "a3"}},
    {"c.rank": {"from": 2}},
    {"c.rank": {"to": 2.5}, "v": {"exists": True}},
    {"c.rank": {"from": -1, "to": 3}, "c.email": {"exists": False}},
    {"v": {"from": "A"}},
    {"v": {"from": None, "to": 1}},
    {"v": {"exists": False}},
    {"c.none.deeper": {"exists": False}, "v": {"to": "b"}},
    {"date": "2026-03-02"},
    {"startDate": "2026-03-02", "endDate": "2026-03-03", "c.rank": {"from": 1}},
    {'a"b': {"equals": 2}, "x": {"in": [2]}},
]
SORTS: list[dict[str, Any] | None] = [
    None,
    {},
    {"descending": True},
    {"by": "v"},
    {"by": "v", "descending": True},
    {"by": "c.rank", "descending": True},
    {"by": "c.email"},
]


@dataclass(frozen=True)
class Stored:
    data: JsonValue
    date: datetime


def documents(count: int) -> dict[str, dict[str, Any]]:
    random = Random(7)
    found: dict[str, dict[str, Any]] = {}
    for number in range(count):
        document: dict[str, Any] = {}
        if random.random() < 0.9:
            document["v"] = random.choice(VALUES)
        if random.random() < 0.9:
            document["c"] = {"rank": random.choice([-1, 0, 1, 2, 2.5, 3, "3"]), "email": f"a{number % 5}@example.com"}
            del document["c"][random.choice(["rank", "email"])]
        if random.random() < 0.3:
            document["date"] = random.choice(TIMES)
        if random.random() < 0.1:
            document |= {"x": 2, 'a"b': 2}
        document["at"] = random.choice(TIMES)
        found[f"r{random.randrange(10**9)}-{number}"] = document
    return found


async def fill(tenant: TenantCase, count: int) -> dict[str, Stored]:
    stored: dict[str, Stored] = {}
    writer, batch = writer_of(tenant.pool), []
    for number, (resource_id, document) in enumerate(documents(count).items()):
        text, at = json.dumps(document), START + timedelta(hours=number % 100)
        stored[resource_id] = Stored(parse_json(text), at)
        batch.append(tenant.operation("create", resource_id, text, timestamp=at.isoformat()))
    for start in range(0, len(batch), 1000):
        assert await writer.apply(batch[start : start + 1000]) == [SUCCEEDED] * len(batch[start : start + 1000])
    return stored


def expected_ids(
    rows: Mapping[str, Stored], filters: dict[str, Any], sort: dict[str, Any] | None, day_of: DayOf | None = None
) -> list[str]:
    wanted: Any = parse_json(json.dumps(filters))
    found = [(resource_id, row) for resource_id, row in rows.items() if passes_filters(row, wanted, day_of)]
    return [resource_id for resource_id, _ in in_order(found, sort)]


async def listed(tenant: TenantCase, filters: Any, **pagination: Any) -> dict[str, Any]:
    asked = tenant.operation("list", None, filters=filters, pagination=pagination)
    assert await tenant.apply(asked) == [SUCCEEDED]
    result: dict[str, Any] = await tenant.result(asked)
    return result


def ids_of(result: Mapping[str, Any]) -> list[str]:
    return [item["resourceId"] for item in result["items"]]


async def compare(tenant: TenantCase, rows: Mapping[str, Stored], *, limit: int) -> None:
    """Compare all filters and sorts with the model: first page, total, and the second page by number and by cursor."""
    for number, filters in enumerate(FILTERS):
        for sort in [None, SORTS[number % len(SORTS)]]:
            expected = expected_ids(rows, filters, sort)
            paging = {"limit": limit} | ({} if sort is None else {"sort": sort})
            first = await listed(tenant, filters, **paging, total=True)
            assert (ids_of(first), first["total"]) == (expected[:limit], len(expected)), (filters, sort)
            assert first["hasMore"] is ("next" in first) is (len(expected) > limit)
            second = await listed(tenant, filters, **paging, page=2)
            assert ids_of(second) == expected[limit : 2 * limit], (filters, sort)
            far = await listed(tenant, filters, **paging, page=10_000, total=True)
            assert (far["items"], far["total"], far["hasMore"]) == ([], len(expected), False), (filters, sort)
            if first["hasMore"]:
                after = await listed(tenant, filters, **paging, after=first["next"], total=True)
                assert (ids_of(after), after["hasMore"]) == (ids_of(second), second["hasMore"]), (filters, sort)
                assert after["total"] == len(expected), (filters, sort)


async def test_lists_answer_as_the_model(tenant: TenantCase) -> None:
    await compare(tenant, await fill(tenant, 300), limit=7)


@pytest.fixture
async def dated(tenant: TenantCase) -> AsyncIterator[TenantCase]:
    query = "SELECT definition FROM business_types WHERE name = 'dental'"
    (before,) = await fetch(tenant.pool, query)
    definition = json.loads(before["definition"])
    definition["resourceTypes"][0] |= {"date": "at", "filtered": ["at", "c.email"]}
    write = "UPDATE business_types SET definition = $1 WHERE name = 'dental'"
    await fetch(tenant.pool, write, json.dumps(definition))
    yield tenant
    await fetch(tenant.pool, write, before["definition"])


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
async def test_days_are_those_of_the_named_date_and_zone(dated: TenantCase, zone: str) -> None:
    rows = await fill(dated, 200)
    days: list[dict[str, Any]] = [
        {"date": "2026-03-02"},
        {"startDate": "2026-03-03"},
        {"endDate": "2026-03-02", "v": {"exists": True}},
    ]
    lists = [dated.operation("list", None, filters=one, pagination={"limit": 500}) for one in days]
    settings = dated.operation("create", "default", {"timezone": zone}, resource_type="settings")

    assert await dated.apply(settings, *lists) == [SUCCEEDED] * 4

    for filters, one in zip(days, lists, strict=True):
        expected = expected_ids(rows, filters, None, day_at("at", ZoneInfo(zone)))
        assert ids_of(await dated.result(one)) == expected, filters
    indexed = await listed(dated, {"c.email": "a1@example.com"}, limit=500)
    assert ids_of(indexed) == expected_ids(rows, {"c.email": "a1@example.com"}, None)


async def test_unknown_time_zone_is_the_outcome_of_the_list_alone(dated: TenantCase) -> None:
    settings = dated.operation("create", "default", {"timezone": "Mars/Base"}, resource_type="settings")
    asked, other = (dated.operation("list", None, filters=one) for one in ({"date": "2026-03-02"}, {"v": 1}))

    assert await dated.apply(settings, asked, other) == [SUCCEEDED, INVALID, SUCCEEDED]

    assert (await dated.result(asked))["member"] == "settings.timezone"


async def test_query_that_cannot_be_meant_has_an_outcome(tenant: TenantCase) -> None:
    await fill(tenant, 10)
    after = (await listed(tenant, {}, limit=2))["next"]
    lists = [
        tenant.operation("list", None, filters={"v": {"like": "a"}}),
        tenant.operation("list", None, filters={"v": 1}, pagination={"after": after}),
    ]

    outcomes = await tenant.apply(*lists, tenant.operation("create", "r1", {}))

    assert outcomes == [INVALID, INVALID, SUCCEEDED]
    assert [(await tenant.result(one))["member"] for one in lists] == ["filters.v", "pagination.after"]
    assert json.loads(base64.b64decode(after))[1:5] == [False, 0, "0", ""]


@pytest.mark.slow(10)
async def test_list_that_looks_through_too_much_says_so(tenant: TenantCase) -> None:
    await fetch(
        tenant.pool,
        "INSERT INTO resources SELECT $1, 'dental', 'patient', 'r' || n, '{\"v\": 1}', now(), now()"
        " FROM generate_series(1, 100001) AS n",
        tenant.tenant_id,
    )
    found = tenant.operation("list", None, filters={"v": 1})
    lists = [
        tenant.operation("list", None, filters={"v": 2}),
        tenant.operation("list", None, filters={"c.email": "x"}),
        tenant.operation("list", None, pagination={"total": True}),
    ]

    assert await tenant.apply(found, *lists) == [SUCCEEDED] + [failed(Failure.QUERY_TOO_LARGE)] * 3

    assert [(await tenant.result(one))["indexWouldHelp"] for one in lists] == [["v"], ["c.email"], []]
    assert isinstance((await tenant.result(found))["limit"], Decimal)


async def test_list_that_runs_into_its_time_is_too_large(make_pool: PoolMaker) -> None:
    pool = await make_pool(batch_s=0.6, part_s=0.4)
    tenant = TenantCase(pool, TENANT)
    await add_tenant(pool, tenant.ids)
    await fetch(
        pool,
        "CREATE OR REPLACE FUNCTION simplu_timestamptz(value jsonb) RETURNS timestamptz LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$",
    )
    by_day = tenant.operation("list", None, filters={"v": 1, "date": "2026-03-02"})
    batch = [tenant.operation("create", "r1", {"v": 1, "date": "2026-03-02"}), by_day, tenant.operation("read", "r1")]

    assert await tenant.apply(*batch) == [SUCCEEDED, failed(Failure.QUERY_TOO_LARGE), SUCCEEDED]

    assert (await tenant.result(by_day))["indexWouldHelp"] == ["v"]


ODD_DOCUMENTS = {
    'quote"\\': '{"\\"\\\\ ": "\\" \\\\ \\n \\u0001 \\ud83d\\ude00 漢", "": {}}',
    "漢 \n\t": "{}",
    "numbers": '{"v": [1.00, -0.0, 1e-300, 12345678901234567890.123, 1e30]}',
    "long text": '{"v": [' + ",".join(["0." + "0" * 700] * 200) + "]}",  # much longer than what is stored
    "nested": '{"v": ' + "[" * 100 + "null" + "]" * 100 + "}",
}


async def test_list_has_documents_and_ids_of_any_content(tenant: TenantCase) -> None:
    await tenant.apply(*(tenant.operation("create", name, text) for name, text in ODD_DOCUMENTS.items()))
    asked = tenant.operation("list", None)
    assert await tenant.apply(asked) == [SUCCEEDED]
    rows = await fetch(
        tenant.pool,
        """
        SELECT "resourceId" AS id, (item -> 'data')::text = data::text AS is_equal
        FROM operations
        CROSS JOIN LATERAL jsonb_array_elements(result -> 'items') AS item
        JOIN resources ON id = tenant_id AND "resourceId" = item ->> 'resourceId'
        WHERE tenant_id = $1 AND request_id = $2
        """,
        asked.tenant_id,
        asked.request_id,
    )
    assert {row["id"]: row["is_equal"] for row in rows} == dict.fromkeys(ODD_DOCUMENTS, True)


async def test_list_fails_when_its_result_is_over_the_bound(tenant: TenantCase) -> None:
    big = {"text": "x" * 400_000}
    await tenant.apply(*(tenant.operation("create", name, big) for name in ("a", "b", "c")))
    all_three = tenant.operation("list", None)

    assert await tenant.apply(all_three) == [failed(Failure.RESULT_TOO_LARGE)]

    assert await tenant.result(all_three) is None
    assert (await tenant.log())[all_three.request_id] == ("failed", "result_too_large")
    page = await listed(tenant, None, limit=2)
    assert ([item["resourceId"] for item in page["items"]], page["hasMore"]) == (["a", "b"], True)
