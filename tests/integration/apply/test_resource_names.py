from __future__ import annotations

import json

import pytest
from support.postgres.tenant_cases import TenantCase, add_tenant, failed, fetch, operation, writer_of

from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.vocabulary import Failure

SENT = "patients"  # another name of `patient`


async def stored_names(tenant: TenantCase) -> set[str]:
    return {name for name, _ in await tenant.resources()}


@pytest.mark.parametrize("careful_count", [0, 1], ids=["fast", "careful"])
async def test_operations_under_both_names_are_of_one_resource(tenant: TenantCase, careful_count: int) -> None:
    writer = writer_of(tenant.pool, careful_count=careful_count)
    created = tenant.operation("create", "r1", {"v": 1}, resource_type=SENT)
    again = tenant.operation("create", "r1", {"v": 2})
    patched = tenant.operation("patch", "r1", {"w": {"x": 2}})
    read = tenant.operation("read", "r1", resource_type=SENT)
    listed = tenant.operation("list", None, filters={"v": 1})

    outcomes = await writer.apply([created, again, patched, read, listed])

    assert outcomes == [SUCCEEDED, failed(Failure.ALREADY_EXISTS), SUCCEEDED, SUCCEEDED, SUCCEEDED]
    assert (await tenant.result(read))["data"] == {"v": 1, "w": {"x": 2}}
    assert [item["resourceId"] for item in (await tenant.result(listed))["items"]] == ["r1"]
    assert await stored_names(tenant) == {"patient"}
    query = "SELECT request_id, resource_type, source, stream_shard_id FROM operations WHERE tenant_id = $1"
    rows = await fetch(tenant.pool, query, tenant.tenant_id)
    assert {row["resource_type"] for row in rows if row["request_id"] == created.request_id} == {SENT}
    assert {row["resource_type"] for row in rows if row["request_id"] == again.request_id} == {"patient"}
    assert {(row["source"], row["stream_shard_id"]) for row in rows} == {("kinesis", created.origin.stream_shard_id)}
    assert await writer.apply([created, tenant.operation("delete", "r1", resource_type=SENT)]) == [DUPLICATE, SUCCEEDED]
    assert await tenant.resources() == {}


async def test_restaurant_is_read_as_in_the_reference(tenant: TenantCase) -> None:
    one = ("trattoria", "rome")
    await add_tenant(tenant.pool, one, business_type="restaurant")
    documents = [{"name": "Pizza", "price": 9.5}, {"name": "Old", "price": 1, "deleted_at": "2026-01-01T00:00:00Z"}]
    products = [
        operation("create", f"p{number}", json.dumps(document), tenant=one, resource_type="products")
        for number, document in enumerate(documents)
    ]
    assert await writer_of(tenant.pool).apply(products) == [SUCCEEDED] * 2

    query = "SELECT id, name, price FROM restaurant_products WHERE restaurant_id = $1 AND deleted_at IS NULL"
    found = await fetch(tenant.pool, query, "trattoria-rome")

    assert [(row["id"], row["name"], float(row["price"])) for row in found] == [("p0", "Pizza", 9.5)]
