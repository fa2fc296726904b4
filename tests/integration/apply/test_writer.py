from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from support.postgres.tenant_cases import ARRIVED_AT, STREAM_SHARD_ID, TenantCase, fetch, log_row

from simplu_worker.operations.json_record import parse_timestamp, utc_text
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.log import key_of_id

DATA = '{"name": "Ann", "age": 30, "address": {"city": "Oslo", "zip": "0150"}}'
STORED = {"name": "Ann", "age": Decimal(30), "address": {"city": "Oslo", "zip": "0150"}}
LATER = "2026-03-01T12:00:05.5Z"
R1 = ("patient", "r1")

# kind → members of an operation on `r1`, and `r1` afterwards
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "create": ({"data": DATA}, STORED),
    "update": ({"data": '{"a": 1}'}, {"a": Decimal(1)}),
    "patch": (
        {"data": '{"age": null, "address": {"zip": null, "street": "Main"}, "x": [null]}'},
        {"name": "Ann", "address": {"city": "Oslo", "street": "Main"}, "x": [None]},
    ),
    "delete": ({}, None),
    "read": ({}, STORED),
    "list": ({"resource_id": None}, STORED),
}


async def prepare(tenant: TenantCase, kind: str) -> None:
    if kind != "create":
        assert await tenant.apply(tenant.operation("create", data=DATA)) == [SUCCEEDED]


def of_kind(tenant: TenantCase, kind: str, **members: Any) -> Operation:
    return tenant.operation(kind, **(KINDS[kind][0] | {"timestamp": LATER} | members))


@pytest.mark.parametrize("kind", KINDS)
async def test_writer_applies_and_logs_an_operation_when_it_is_fresh(tenant: TenantCase, kind: str) -> None:
    await prepare(tenant, kind)
    arrived_at = ARRIVED_AT + timedelta(microseconds=1)
    number = "49590338271490256608559692538361571095921575989136588898"
    fresh = of_kind(tenant, kind, sequence_number=number, arrived_at=arrived_at)

    assert await tenant.apply(fresh) == [SUCCEEDED]

    assert (await tenant.resources()).get(R1) == KINDS[kind][1]
    row = await log_row(tenant, fresh.request_id)
    assert abs(datetime.now(UTC) - row.pop("completed_at")) < timedelta(minutes=5)
    assert int(row.pop("xid")) == row.pop("batch_id") > 0
    assert (row.pop("result") is not None) == (kind in {"read", "list"})
    assert row == {
        "tenant_id": tenant.tenant_id,
        "request_id": fresh.request_id,
        "operation": kind,
        "resource_type": "patient",
        "resource_id": None if kind == "list" else "r1",
        "status": "succeeded",
        "error": None,
        "digest": fresh.digest,
        "source": "kinesis",
        "stream_shard_id": STREAM_SHARD_ID,
        "sequence_number": None,
        "requested_at": datetime(2026, 3, 1, 12, 0, 5, 500_000, tzinfo=UTC),
        "received_at": arrived_at,
        "request_key": bytes.fromhex(key_of_id(fresh.request_id)),
        "position": 0,
        "xact": "committed",
    }


@pytest.mark.parametrize(
    "text",
    [
        *("2026-01-31T09:00:00Z", "2026-01-31T09:00:00.1Z", "2026-01-31T09:00:00.123Z", "2026-01-31T09:00:00.123456Z"),
        *(
            "2026-01-31T09:00:00.1234567Z",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999Z",
            "2024-02-29T23:59:59Z",
        ),
        *("2026-01-31t09:00:00Z", "2026-01-31T09:00:00", "2026-01-31T10:30:00+01:30", "2026-01-31"),
    ],
)
async def test_time_is_the_same_for_postgres_in_either_text(tenant: TenantCase, text: str) -> None:
    rows = await fetch(tenant.pool, "SELECT $1::text::timestamptz AS at", utc_text(text))

    assert rows == [{"at": parse_timestamp(text)}]
