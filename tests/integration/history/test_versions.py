from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.postgres.databases import PoolMaker
from support.postgres.histories import Version, history_of, keep_history, versions
from support.postgres.tenant_cases import NO_CHECKS, TENANT, TENANT_WAIT, TenantCase, add_tenant, fetch, in_batches

from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.vocabulary import Source

UUID = "0188a0de-3c55-7a5e-9d0f-4f6a3c1b2d3e"


@pytest.fixture
async def kept(make_pool: PoolMaker) -> TenantCase:
    """Give a tenant whose patients have a history from the beginning."""
    pool = await make_pool()
    await keep_history(pool, "patient")
    await add_tenant(pool)
    return TenantCase(pool, TENANT)


def version(number: int, operation: Operation, document: Any = None) -> Version:
    return number, operation.kind, operation.request_id, document


@pytest.mark.parametrize("resource_id", ["r1", UUID])
async def test_each_operation_leaves_a_version(kept: TenantCase, resource_id: str) -> None:
    made = kept.operation("create", resource_id, {"a": 1})
    patched = kept.operation("patch", resource_id, {"b": {"c": 2}})
    changed = kept.operation("update", resource_id, {"a": 3}, source=Source.SQS)
    deleted = kept.operation("delete", resource_id)
    again = kept.operation("create", resource_id, {"a": 4})

    await kept.apply_each(made, patched, changed, deleted, again)

    assert await versions(kept, resource_id) == [
        version(1, made, {"a": 1}),
        version(2, patched, {"a": 1, "b": {"c": 2}}),
        version(3, changed, {"a": 3}),
        version(4, deleted),
        version(5, again, {"a": 4}),
    ]


async def test_operations_without_effect_leave_none(kept: TenantCase) -> None:
    made = kept.operation("create", "r1", {"a": 1})
    await kept.apply(made, kept.operation("create", "r1", {"a": 2}), kept.operation("update", "r2", {"a": 1}))
    await kept.apply(made, kept.operation("read", "r1"), kept.operation("delete", "r2"))

    assert await history_of(kept.pool, kept.tenant_id) == {("patient", "r1"): [version(1, made, {"a": 1})]}


async def test_types_without_a_history_leave_none(kept: TenantCase) -> None:
    await kept.apply(kept.operation("create", "t1", {"a": 1}, resource_type="treatment"))

    assert await history_of(kept.pool, kept.tenant_id) == {}


async def test_versions_name_the_operations_of_a_batch_in_order(kept: TenantCase) -> None:
    """Refused ones too, which are known to fail before the later ones are applied."""
    too_deep = '{"a": {"b": {"c": {"d": 1}}}}'
    operations = [
        kept.operation("create", "r1", {"a": 1}),
        kept.operation("create", "r1", {"a": 2}),
        kept.operation("patch", "r2", too_deep),
        kept.operation("patch", "r1", too_deep),
        kept.operation("update", "r1", {"a": 5}),
        kept.operation("delete", "r1"),
        kept.operation("update", "r1", {"a": 6}),
        kept.operation("create", "r1", {"a": 7}),
    ]

    await kept.apply(*operations)

    assert await versions(kept) == [
        version(1, operations[0], {"a": 1}),
        version(2, operations[3], json.loads(too_deep)),
        version(3, operations[4], {"a": 5}),
        version(4, operations[5]),
        version(5, operations[7], {"a": 7}),
    ]


CHANGES = st.tuples(
    st.sampled_from(["create", "update", "patch", "delete", "read"]),
    st.sampled_from(["r1", "r2", UUID]),
    st.dictionaries(st.sampled_from("ab"), st.none() | st.integers(0, 3) | st.fixed_dictionaries({"c": st.none()})),
)


@settings(max_examples=25, deadline=None, suppress_health_check=NO_CHECKS)
@given(st.lists(CHANGES, max_size=25), st.lists(st.integers(1, 9), min_size=1, max_size=3))
async def test_history_is_what_the_resources_were(
    kept: TenantCase, changes: list[tuple[str, str, dict[str, Any]]], sizes: list[int]
) -> None:
    await fetch(kept.pool, "DELETE FROM resources")
    await fetch(kept.pool, "DELETE FROM resource_versions")
    expected: dict[tuple[str, str], list[Version]] = {}
    writer = ShardWriter(kept.pool, tenant_wait=TENANT_WAIT)
    one_by_one = TenantCase(kept.pool, ("clinic", "other"))
    await fetch(kept.pool, "DELETE FROM tenants WHERE id = $1", one_by_one.tenant_id)
    await add_tenant(kept.pool, one_by_one.ids)
    operations = []
    for kind, resource_id, data in changes:
        sent = {} if kind in {"delete", "read"} else {"data": data}
        one = kept.operation(kind, resource_id, **sent)
        operations.append(one)
        alone = one_by_one.operation(kind, resource_id, **sent)
        (outcome,) = await one_by_one.apply(alone)
        if outcome.failure is None and kind != "read":
            documents = await one_by_one.resources()
            known = expected.setdefault(("patient", resource_id), [])
            known.append(version(len(known) + 1, one, documents.get(("patient", resource_id))))

    for batch in in_batches(operations, sizes):
        await writer.apply(batch)

    assert await history_of(kept.pool, kept.tenant_id) == expected


async def test_version_0_is_what_was_before_the_history(make_pool: PoolMaker) -> None:
    tenant = TenantCase(await make_pool(), TENANT)
    await add_tenant(tenant.pool)
    await tenant.apply(tenant.operation("create", "r1", {"a": 1}), tenant.operation("create", "r2", {"a": 2}))
    await keep_history(tenant.pool, "patient")
    changed, made = tenant.operation("update", "r1", {"a": 3}), tenant.operation("create", "r3", {"a": 4})

    await tenant.apply(changed, made)

    assert await history_of(tenant.pool, tenant.tenant_id) == {
        ("patient", "r1"): [(0, None, None, {"a": 1}), version(1, changed, {"a": 3})],
        ("patient", "r2"): [(0, None, None, {"a": 2})],
        ("patient", "r3"): [version(1, made, {"a": 4})],
    }


async def test_what_is_no_operation_leaves_versions_with_its_source(kept: TenantCase) -> None:
    made = kept.operation("create", "r1", {"a": 1})
    await kept.apply(made)
    await fetch(kept.pool, "UPDATE resources SET data = '{\"a\": 2}'")
    await fetch(kept.pool, "UPDATE resources SET \"resourceId\" = 'r2'")
    await fetch(kept.pool, "DELETE FROM resources")

    assert await versions(kept, "r1") == [
        version(1, made, {"a": 1}),
        (2, "update", None, {"a": 2}),
        (3, "delete", None, None),
    ]
    assert await versions(kept, "r2") == [(1, "create", None, {"a": 2}), (2, "delete", None, None)]
    rows = await fetch(kept.pool, "SELECT DISTINCT source FROM resource_history WHERE request_id IS NULL")
    assert [row["source"] for row in rows] == ["administrator"]


async def test_history_keeps_the_members_of_its_file(make_pool: PoolMaker) -> None:
    pool = await make_pool()
    await keep_history(pool, "patient", members=["a"])
    await add_tenant(pool)
    case = TenantCase(pool, TENANT)
    made, changed = case.operation("create", "r1", {"a": 1, "b": 2}), case.operation("update", "r1", {"b": 3})

    await case.apply_each(made, changed)

    assert await versions(case) == [version(1, made, {"a": 1}), version(2, changed, {})]


async def test_rows_that_a_move_brings_leave_no_versions(kept: TenantCase) -> None:
    await kept.set_state("incoming")

    await fetch(
        kept.pool, "INSERT INTO resources VALUES ($1, 'dental', 'patient', 'r1', '{}', now(), now())", kept.tenant_id
    )

    assert await versions(kept) == [(0, None, None, {})]


async def test_versions_are_later_than_those_before_them(kept: TenantCase) -> None:
    await kept.apply(kept.operation("create", "r1", {"a": 1}))
    await fetch(kept.pool, "UPDATE resource_versions SET applied_at = now() + interval '1 hour'")

    await kept.apply(kept.operation("update", "r1", {"a": 2}), kept.operation("update", "r1", {"a": 3}))

    query = "SELECT applied_at, replaced_at FROM resource_history ORDER BY version"
    rows = await fetch(kept.pool, query)
    times = [row["applied_at"] for row in rows]
    assert times == sorted(set(times))
    assert [row["replaced_at"] for row in rows] == [*times[1:], None]


async def test_history_that_has_begun_stays(kept: TenantCase) -> None:
    without = await keep_history(kept.pool)
    of_members = await keep_history(kept.pool, "patient", members=["a"])
    longer = await keep_history(kept.pool, "patient", "treatment")

    assert [len(plan.refusals) for plan in (without, of_members, longer)] == [1, 1, 0]


async def test_shard_without_histories_has_no_triggers(make_pool: PoolMaker) -> None:
    assert await fetch(await make_pool(), "SELECT tgname FROM pg_trigger WHERE tgrelid = 'resources'::regclass") == []
