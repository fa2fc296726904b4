from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.postgres.tenant_cases import TENANT_WAIT, TenantCase, failed, fetch

from simplu_worker.bulkheads import current_troubles
from simplu_worker.shards.apply.judging import REREAD_S, ShardRules
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.vocabulary import Failure, Source, TargetKind

INVALID_DATA = failed(Failure.INVALID_DATA)
SCHEMA = {
    "type": "object",
    "properties": {"v": {"type": "number", "maximum": 9}, "inner": {"properties": {"a": {"type": "string"}}}},
    "required": ["v"],
}
TYPE_FOUND = {"schemaPath": "#/properties/v/type", "expected": 'type "number"', "documentPath": "/v"}


async def define(pool: ShardPool, *types: Mapping[str, Any], name: str = "dental") -> None:
    definition = {"name": name, "defaultSettings": {}, "staffResourceType": "dentist", "resourceTypes": types}
    await write_definition(pool, json.dumps(definition), name=name)


async def write_definition(pool: ShardPool, definition: str | None, *, name: str = "dental") -> None:
    await fetch(pool, "UPDATE public.business_types SET definition = $2 WHERE name = $1", name, definition)


def patient(validation: str, schema: Any = SCHEMA) -> dict[str, Any]:
    return {"name": "patient", "alsoNamed": ["client"], "validation": validation, "schema": schema}


@pytest.fixture(autouse=True)
async def only_written_definitions(tenant: TenantCase) -> AsyncIterator[None]:
    before = await fetch(tenant.pool, "SELECT name, definition FROM public.business_types")
    await fetch(tenant.pool, "UPDATE public.business_types SET definition = NULL")
    yield
    for row in before:
        await write_definition(tenant.pool, row["definition"], name=row["name"])


@pytest.fixture
async def judged(tenant: TenantCase) -> TenantCase:
    await define(tenant.pool, patient("enforce"))
    return tenant


def counted(path: str, validation: str, resource_type: str = "patient") -> float:
    labels = {
        "business_type": "dental",
        "resource_type": resource_type,
        "schema_path": path,
        "validation": validation,
    }
    return REGISTRY.get_sample_value("simplu_schema_findings_total", labels) or 0.0


@pytest.mark.parametrize("source", list(Source))
@pytest.mark.parametrize("kind", ["create", "update", "patch"])
async def test_operation_is_refused_alone_when_it_does_not_fit(judged: TenantCase, kind: str, source: Source) -> None:
    await judged.apply(judged.operation("create", "old", {"v": 1}))
    bad = judged.operation(kind, "new" if kind == "create" else "old", {"v": "secret"}, source=source)
    before = counted("#/properties/v/type", "enforce")

    outcomes = await judged.apply(
        judged.operation("create", "r1", {"v": 1}), bad, judged.operation("create", "r2", {"v": 2})
    )

    assert outcomes == [SUCCEEDED, INVALID_DATA, SUCCEEDED]
    assert (await judged.log())[bad.request_id] == ("failed", "invalid_data")
    assert await judged.result(bad) == TYPE_FOUND
    assert {key[1]: data for key, data in (await judged.resources()).items()} == {
        "old": {"v": 1},
        "r1": {"v": 1},
        "r2": {"v": 2},
    }
    assert await judged.apply(bad) == [DUPLICATE]
    assert counted("#/properties/v/type", "enforce") == before + 1


@pytest.mark.parametrize("kind", ["create", "update", "patch"])
async def test_operation_is_counted_when_its_type_only_warns(tenant: TenantCase, kind: str) -> None:
    await define(tenant.pool, patient("warn"))
    await tenant.apply(tenant.operation("create", "old", {"v": 1}))
    bad = tenant.operation(kind, "new" if kind == "create" else "old", {"v": 10})
    before = counted("#/properties/v/maximum", "warn")

    assert await tenant.apply(bad) == [SUCCEEDED]
    assert await tenant.apply(bad) == [DUPLICATE]

    assert counted("#/properties/v/maximum", "warn") == before + 1
    assert await tenant.result(bad) is None
    assert (await tenant.resources())["patient", "new" if kind == "create" else "old"] == {"v": 10}


async def test_batch_in_one_statement_is_judged(judged: TenantCase) -> None:
    writer = ShardWriter(judged.pool, tenant_wait=TENANT_WAIT)
    for number in range(20):
        assert await writer.apply([judged.operation("create", f"r{number}", {"v": 1})]) == [SUCCEEDED]

    bad, good = judged.operation("create", "bad", {"v": "x"}), judged.operation("create", "good", {"v": 1})

    assert await writer.apply([bad, good]) == [INVALID_DATA, SUCCEEDED]
    assert await writer.apply([judged.operation("patch", "good", {"v": "x"})]) == [INVALID_DATA]
    assert await judged.result(bad) == TYPE_FOUND


async def test_patches_are_judged_by_the_document_that_each_leaves(judged: TenantCase) -> None:
    batch = [
        judged.operation("create", "r1", {"v": 1}),
        judged.operation("patch", "r1", {"v": None}),
        judged.operation("patch", "r1", {"v": 10}),
        judged.operation("patch", "r1", {"inner": {"a": "b"}}),
        judged.operation("patch", "r1", {"inner": {"a": 1}}),
        judged.operation("read", "r1"),
        judged.operation("create", "r2", {}),
        judged.operation("patch", "r2", {"v": 1}),
        judged.operation("patch", "r3", {"v": 1}),
    ]

    assert await judged.apply(*batch) == [
        SUCCEEDED,
        INVALID_DATA,
        INVALID_DATA,
        SUCCEEDED,
        INVALID_DATA,
        SUCCEEDED,
        INVALID_DATA,
        failed(Failure.NOT_FOUND),
        failed(Failure.NOT_FOUND),
    ]
    assert (await judged.result(batch[5]))["data"] == {"v": 1, "inner": {"a": "b"}}
    assert (await judged.result(batch[1]))["schemaPath"] == "#/required"
    assert (await judged.result(batch[4]))["documentPath"] == "/inner/a"
    assert await judged.resources() == {("patient", "r1"): {"v": 1, "inner": {"a": "b"}}}


async def test_schema_is_read_again_while_the_writer_runs(tenant: TenantCase, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("simplu_worker.shards.apply.judging.loop_time", lambda: now)
    judges = ShardRules(tenant.pool)
    await define(tenant.pool, patient("warn"), name="gym")
    await judges.refresh()
    gym = judges.by_type["gym"]

    await define(tenant.pool, patient("enforce"))
    now += REREAD_S / 2
    await judges.refresh()
    assert set(judges.by_type) == {"gym"}
    now += REREAD_S
    await judges.refresh()
    assert set(judges.by_type) == {"gym", "dental"}
    assert judges.by_type["gym"] is gym

    await write_definition(tenant.pool, None, name="gym")
    now += REREAD_S
    await judges.refresh()
    assert set(judges.by_type) == {"dental"}


async def test_broken_definition_is_the_trouble_of_its_type_alone(tenant: TenantCase) -> None:
    await write_definition(tenant.pool, '{"name": "gym"}', name="gym")
    remote = patient("enforce", {"$ref": "http://127.0.0.1:1/x"})
    await define(tenant.pool, remote, {"name": "room", "validation": "enforce", "schema": {"required": ["v"]}})
    writer = ShardWriter(tenant.pool, tenant_wait=TENANT_WAIT)

    with capture_logs() as logs:
        (first, *others) = await asyncio.gather(
            *(writer.apply([tenant.operation("create", f"r{number}", {})]) for number in range(3))
        )
        assert others == [first] * 2
        second = await writer.apply([tenant.operation("create", "r1", {}, resource_type="room")])

    assert first + second == [SUCCEEDED, INVALID_DATA]
    named = {one["business_type"]: one["error"] for one in logs if one["event"] == "business_type.unusable"}
    assert len([one for one in logs if one["event"] == "business_type.unusable"]) == 2
    assert named["dental"].startswith("patient: #/$ref: expected the place of a subschema of the same schema")
    assert "defaultSettings" in named["gym"]
    shard_id = tenant.pool.address.shard_id
    assert [
        one.count
        for one in current_troubles()
        if (one.target, one.name, one.loop) == (TargetKind.SHARD, shard_id, "schemas")
    ] == [2]
