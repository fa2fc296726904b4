from __future__ import annotations

from typing import Any

import pytest
from support.postgres.tenant_cases import TenantCase, failed, fetch

from simplu_worker.shards.apply.write_attempt import SUCCEEDED
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
