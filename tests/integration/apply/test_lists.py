"""`list` and `read`: filters, pages, bounds, and that they see all earlier operations and no later ones."""

from __future__ import annotations

from typing import Any

import pytest
from support.postgres.tenant_cases import TenantCase, failed, fetch

from simplu_worker.shards.apply.wave_run import RESULT_MAX_BYTES
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import Failure


async def listed(tenant: TenantCase, **members: Any) -> Any:
    asked = tenant.operation("list", None, **members)
    assert await tenant.apply(asked) == [SUCCEEDED]
    return await tenant.result(asked)


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
    page = await listed(tenant, pagination={"limit": 2})
    assert ([item["resourceId"] for item in page["items"]], page["hasMore"]) == (["a", "b"], True)


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
