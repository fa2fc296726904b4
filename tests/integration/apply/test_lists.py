"""`list` and `read`: filters, pages, bounds, and that they see all earlier operations and no later ones."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support.postgres.tenant_cases import TenantCase, failed, fetch

from simplu_worker.shards.apply.wave_run import RESULT_MAX_BYTES
from simplu_worker.shards.apply.writer import SUCCEEDED
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import Failure

DOCUMENTS = {
    "absent": {},
    "array": {"v": [1, 2]},
    "false": {"v": False},
    "nested": {"v": {"a": 1, "b": {"c": None}}},
    "null": {"v": None},
    "one": {"v": 1},
    "text-one": {"v": "1"},
    "two-members": {"v": 1, "w": "x"},
}


async def listed(tenant: TenantCase, **members: Any) -> Any:
    """Return the result of a `list`."""
    asked = tenant.operation("list", None, **members)
    assert await tenant.apply(asked) == [SUCCEEDED]
    return await tenant.result(asked)


async def ids_listed(tenant: TenantCase, **members: Any) -> list[str]:
    """Return the ids of the items of a `list`."""
    return [item["resourceId"] for item in (await listed(tenant, **members))["items"]]


async def test_list_filters_by_equality_of_top_level_members(tenant: TenantCase) -> None:
    await tenant.apply(*(tenant.operation("create", name, data) for name, data in DOCUMENTS.items()))
    await tenant.apply(tenant.operation("create", "stranger", {"v": 1}, resource_type="other"))
    expected = {
        "{}": sorted(DOCUMENTS),
        '{"v": 1}': ["one", "two-members"],
        '{"v": 1.00}': ["one", "two-members"],
        '{"v": 10e-1}': ["one", "two-members"],
        '{"v": "1"}': ["text-one"],
        '{"v": null}': ["null"],
        '{"v": false}': ["false"],
        '{"v": [1, 2]}': ["array"],
        '{"v": [2, 1]}': [],
        '{"v": [1]}': [],
        '{"v": {"equals": {"b": {"c": null}, "a": 1.0}}}': ["nested"],
        '{"v": {"equals": {"a": 1}}}': [],
        '{"v": {"equals": {}}}': [],
        '{"v": 1, "w": "x"}': ["two-members"],
        '{"v": 1, "absent": null}': [],
        '{"v": 2, "v": 1}': ["one", "two-members"],
        '{"v\' OR true --": 1}': [],
    }

    assert {filters: await ids_listed(tenant, filters=filters) for filters in expected} == expected


async def test_list_filters_by_day_of_creation(tenant: TenantCase) -> None:
    times = {
        "a": "2026-02-28T23:59:59.999999Z",
        "b": "2026-03-01T00:00:00Z",
        "c": "2026-03-01T23:59:59.999999Z",
        "d": "2026-03-02T00:59:00+01:00",
        "e": "2026-03-02T00:00:00Z",
        "first": "0001-01-01",
        "last": "9999-12-31T23:59:59.999999Z",
    }
    await tenant.apply(*(tenant.operation("create", name, {}, timestamp=time) for name, time in times.items()))
    await tenant.apply(tenant.operation("patch", "a", {"late": 1}, timestamp="2026-03-01T12:00:00Z"))
    expected = {
        '{"date": "2026-03-01"}': ["b", "c", "d"],
        '{"date": "2026-03-01T22:00:00Z"}': ["b", "c", "d"],
        '{"startDate": "2026-03-01"}': ["b", "c", "d", "e", "last"],
        '{"endDate": "2026-03-01"}': ["a", "b", "c", "d", "first"],
        '{"startDate": "2026-03-01", "endDate": "2026-03-02"}': ["b", "c", "d", "e"],
        '{"startDate": "2026-03-02", "endDate": "2026-03-01"}': [],
        '{"startDate": "2026-03-02", "date": "2026-03-01"}': [],
        '{"date": null}': sorted(times),
        '{"date": "2026-03-01", "late": 1}': [],
        '{"date": "2026-02-28", "late": 1}': ["a"],
        '{"startDate": "0001-01-01", "endDate": "9999-12-31"}': sorted(times),
        '{"date": "0001-01-01"}': ["first"],
        '{"date": "9999-12-31"}': ["last"],
    }

    assert {filters: await ids_listed(tenant, filters=filters) for filters in expected} == expected


async def test_list_pages_in_order_of_resource_id(tenant: TenantCase) -> None:
    ids = ["r10", "r2", "R1", "é", "r1", "𝒓", "empty", " "]
    await tenant.apply(*(tenant.operation("create", name, {"n": name}) for name in ids))
    in_order = sorted(name for name in ids)

    pages = [await listed(tenant, pagination={"page": page, "limit": 3}) for page in (1, 2, 3, 4)]

    assert [[item["resourceId"] for item in page["items"]] for page in pages] == [
        in_order[:3],
        in_order[3:6],
        in_order[6:],
        [],
    ]
    assert [(page["page"], page["limit"], page["hasMore"]) for page in pages] == [
        (1, 3, True),
        (2, 3, True),
        (3, 3, False),
        (4, 3, False),
    ]
    assert [page["hasMore"] for page in (await listed(tenant, pagination={"limit": 8}), await listed(tenant))] == [
        False,
        False,
    ]


async def test_list_clamps_its_limit(tenant: TenantCase) -> None:
    await tenant.apply(*(tenant.operation("create", f"r{number}", {}) for number in range(5)))

    clamped = await listed(tenant, pagination={"limit": 10**30}, list_limit=2)
    far = await listed(tenant, pagination={"page": 10**30, "limit": 10**30})

    assert (len(clamped["items"]), clamped["limit"], clamped["hasMore"]) == (2, 2, True)
    assert (far["items"], far["hasMore"]) == ([], False)


async def test_read_and_list_show_a_resource_in_full(tenant: TenantCase) -> None:
    reading = tenant.operation("read")
    listing = tenant.operation("list", None)
    await tenant.apply(
        tenant.operation("create", data='{"b": 1.10, "a": [null]}', timestamp="2026-03-01T01:00:00.25+02:00"),
        tenant.operation("patch", data='{"c": "é"}', timestamp="2026-03-05"),
        reading,
        listing,
    )
    item = {
        "resourceId": "r1",
        "data": {"a": [None], "b": pytest.approx(1.1), "c": "é"},
        "date": "2026-02-28T23:00:00.250000Z",
        "lastUpdated": "2026-03-05T00:00:00.000000Z",
    }

    read = await tenant.result(reading)
    assert str(read["data"]["b"]) == "1.10"
    read["data"]["b"] = float(read["data"]["b"])
    assert read == item
    assert len((await tenant.result(listing))["items"]) == 1


ODD_DOCUMENTS = {
    'quote"\\': '{"\\"\\\\ ": "\\" \\\\ \\n \\u0001 \\ud83d\\ude00 漢", "": {}}',
    "漢 \n\t": "{}",
    "numbers": '{"v": [1.00, -0.0, 1e-300, 12345678901234567890.123, 1e30]}',
    "long text": '{"v": [' + ",".join(["0." + "0" * 700] * 200) + "]}",  # much longer than what is stored
    "nested": '{"v": ' + "[" * 100 + "null" + "]" * 100 + "}",
}


async def test_list_has_documents_and_ids_of_any_content_as_they_are_stored(tenant: TenantCase) -> None:
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


async def test_read_and_list_see_the_writes_before_them_and_none_after(tenant: TenantCase) -> None:
    readings = [tenant.operation("read") for _ in range(3)]
    listings = [tenant.operation("list", None, filters='{"v": 2}') for _ in range(3)]

    outcomes = await tenant.apply(
        listings[0],
        readings[0],
        tenant.operation("create", data={"v": 1}),
        readings[1],
        listings[1],
        tenant.operation("create", "r2", data={"v": 2}),
        tenant.operation("patch", data={"v": 2}),
        listings[2],
        readings[2],
        tenant.operation("delete"),
    )

    assert [outcome for outcome in outcomes if outcome != SUCCEEDED] == [failed(Failure.NOT_FOUND)]
    results = [await tenant.result(reading) for reading in readings]
    assert [result and result["data"] for result in results] == [None, {"v": 1}, {"v": 2}]
    pages = [await tenant.result(listing) for listing in listings]
    assert [[item["resourceId"] for item in page["items"]] for page in pages] == [[], [], ["r1", "r2"]]


async def test_list_fails_when_its_result_is_over_the_bound(tenant: TenantCase) -> None:
    big = {"text": "x" * 400_000}
    await tenant.apply(*(tenant.operation("create", name, big) for name in ("a", "b", "c")))
    all_three = tenant.operation("list", None)

    assert await tenant.apply(all_three) == [failed(Failure.RESULT_TOO_LARGE)]

    assert await tenant.result(all_three) is None
    assert (await tenant.log())[all_three.request_id] == ("failed", "result_too_large")
    page = await listed(tenant, pagination={"limit": 2})
    assert ([item["resourceId"] for item in page["items"]], page["hasMore"]) == (["a", "b"], True)


@pytest.mark.parametrize("others", [0, 300], ids=["one item", "ids of which each character takes six bytes"])
@pytest.mark.slow(0.3)
async def test_list_counts_the_bound_in_bytes_of_the_whole_result(tenant: TenantCase, others: int) -> None:
    await tenant.apply(tenant.operation("create", data={"text": ""}))
    for number in range(others):
        await fetch(
            tenant.pool,
            'INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")'
            " VALUES ($1, 'dental', 'patient', $2, '{}', '2026-03-01', '2026-03-01')",
            tenant.tenant_id,
            f"{number:04}" + "\x01" * 200,
        )
    frame = tenant.operation("list", None, pagination={"limit": 1000})
    await tenant.apply(frame)
    async with tenant.pool.connection() as connection:
        length = await connection.fetchval(
            "SELECT octet_length(result::text) FROM operations WHERE tenant_id = $1 AND request_id = $2",
            tenant.tenant_id,
            frame.request_id,
        )
    room = RESULT_MAX_BYTES - length

    outcomes = await tenant.apply(
        tenant.operation("update", data={"text": "é" * (room // 2) + "x" * (room % 2)}),
        tenant.operation("list", None, pagination={"limit": 1000}),
        tenant.operation("update", data={"text": "é" * (room // 2) + "x" * (room % 2 + 1)}),
        tenant.operation("list", None, pagination={"limit": 1000}),
        tenant.operation("read"),
    )

    assert outcomes == [SUCCEEDED] * 3 + [failed(Failure.RESULT_TOO_LARGE), SUCCEEDED]


@pytest.mark.slow(4)
async def test_page_of_documents_with_much_text_is_not_measured_to_its_end(tenant: TenantCase) -> None:
    numbers = '{"a": [' + ",".join(["1e999"] * 5000) + "]}"
    for first in range(0, 100, 10):
        created = [
            tenant.operation("create", f"d{number:02}", numbers, resource_type=name)
            for number in range(first, first + 10)
            for name in ("many", "few")[: 2 if first == 0 else 1]
        ]
        assert await tenant.apply(*created) == [SUCCEEDED] * len(created)

    async def seconds(resource_type: str) -> float:
        began_at = time.perf_counter()
        asked = tenant.operation("list", None, resource_type=resource_type)
        assert await tenant.apply(asked) == [failed(Failure.RESULT_TOO_LARGE)]
        return time.perf_counter() - began_at

    few = many = float("inf")
    for _ in range(10):  # a stall of a slow machine makes one of them long, and not all
        few, many = min(few, await seconds("few")), min(many, await seconds("many"))
        if many < 5 * few:
            return
    raise AssertionError(f"expected little more than {few:g} s for ten times as many documents, got {many:g} s")


SHAPES = [
    "{}",
    "[]",
    "0",
    "-1.5",
    "1e31",
    "-1e400",
    "1e-31",
    "0e-5000",
    '""',
    '"\\u0001"',
    "null",
    "true",
    '{"": 0}',
    "[[]]",
]


async def test_text_of_a_small_document_is_built_as_it_has_few_numbers(tenant: TenantCase) -> None:
    documents = [
        document
        for number in ("0", "0.0", "7", "-1e400", "1e-9")
        for count in range(200, 300)
        for document in (
            f"[{','.join([number] * count)}]",
            '{"": [' + ",".join([number] * count) + "]}",
            "[" + ",".join([f"[{number}]"] * count) + "]",
        )
    ]
    rows = await fetch(
        tenant.pool,
        "SELECT max(jsonb_array_length(jsonb_path_query_array(document, 'strict $.** ? (@.type() == \"number\")')))"
        " FROM (SELECT text::jsonb AS document FROM unnest($1::text[]) AS text) AS parsed"
        " WHERE pg_column_size(document) <= 3000",
        documents,
    )
    assert 200 < rows[0]["max"] <= 250
    assert "pg_column_size(checked.document) <= 3000\n" in QUERIES["apply_lists"]


async def test_bounds_below_the_text_of_a_document_are_below_it(tenant: TenantCase) -> None:
    documents = [
        document
        for shape in SHAPES
        for count in (1, 3, 50, 2000)
        for document in (
            '{"a": [' + ",".join([shape] * count) + "]}",
            "{" + ",".join(f'"{number}": {shape}' for number in range(count)) + "}",
            '{"a": ' + "[" * min(count, 400) + shape + "]" * min(count, 400) + "}",
        )
    ]
    before = QUERIES["apply_lists"].partition(") OVER in_order)::bigint AS least_bytes")[0]
    bound = before.rpartition("(pg_catalog.sum(")[2]
    query = f"""
        SELECT count(*) FILTER (WHERE {bound} > text_bytes OR pg_column_size(document) > 8 * text_bytes), count(*)
        FROM (
            SELECT document, octet_length(document::text) AS text_bytes, 0::bigint AS stored_bytes
            FROM (SELECT text::jsonb AS document FROM unnest($1::text[]) AS text) AS parsed
        ) AS counted"""
    async with tenant.pool.connection() as connection:
        row = await connection.fetchrow(query.replace("$14", "$2"), documents, RESULT_MAX_BYTES)
    assert row is not None
    assert tuple(row) == (0, len(documents))
