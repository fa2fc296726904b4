from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from itertools import product
from typing import Any

import asyncpg
import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import ARRIVED_AT, TENANT, TenantCase, add_tenant, failed, fetch
from support.postgres.trouble import waiters

from simplu_worker.cache.invalidations import ResourceKey
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.tenants.resource_changes import ResourceChanges
from simplu_worker.shards.types import AdminAccount, ChangeResult, ResourceRename, UnknownBusinessTypeError
from simplu_worker.vocabulary import Failure

pytestmark = pytest.mark.slow


REQUESTED_AT = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
async def routed(routed: RoutedShards) -> RoutedShards:
    routed.register(TENANT, "shard-1")
    await add_tenant(routed.pool())
    return routed


def case_of(routed: RoutedShards, tenant: tuple[str, str] = TENANT) -> TenantCase:
    return TenantCase(routed.pool(), tenant)


async def rename(
    routed: RoutedShards,
    old_id: str = "old",
    new_id: str = "new",
    additional_data: str | None = None,
    *,
    tenant: tuple[str, str] = TENANT,
) -> ChangeResult:
    return await routed.changes.rename(
        ResourceRename(*tenant, "patient", old_id, new_id, additional_data, REQUESTED_AT)
    )


async def add_admin(
    routed: RoutedShards, business_type: str = "dental", *, tenant: tuple[str, str] = TENANT
) -> ChangeResult:
    return await routed.changes.add_admin(
        AdminAccount(*tenant, business_type, "ann.lee@clinic.example", "u-1", REQUESTED_AT)
    )


async def made(routed: RoutedShards, *resource_ids: str, data: str = '{"name": "Ann", "tags": {"a": 1}}') -> TenantCase:
    case = case_of(routed)
    operations = [case.operation("create", resource_id, data) for resource_id in resource_ids]
    assert await case.apply(*operations) == [SUCCEEDED] * len(operations)
    return case


async def enforce(routed: RoutedShards, resource_type: str, schema: dict[str, Any], how: str = "enforce") -> None:
    resource = {"name": resource_type, "validation": how, "schema": schema}
    definition = {"name": "dental", "defaultSettings": {}, "staffResourceType": "medic", "resourceTypes": [resource]}
    query = "UPDATE public.business_types SET definition = $1 WHERE name = 'dental'"
    await fetch(case_of(routed).pool, query, json.dumps(definition))


# Renaming


async def test_rename_gives_the_resource_another_id_and_merges(routed: RoutedShards) -> None:
    case = await made(routed, "old", data='{"name": "Ann", "tags": {"a": 1, "b": 2}, "drop": 1}')
    more = '{"tags": {"a": null, "c": 1.000000000000000000000000000001}, "drop": null, "number": "ap2403-00017"}'

    assert await rename(routed, additional_data=more) is ChangeResult.APPLIED

    query = 'SELECT "resourceId", "businessType", data::text, date, "lastUpdated" FROM resources'
    (row,) = await fetch(case.pool, query)
    assert row == {
        "resourceId": "new",
        "businessType": "dental",
        "data": '{"name": "Ann", "tags": {"b": 2, "c": 1.000000000000000000000000000001}, "number": "ap2403-00017"}',
        "date": ARRIVED_AT,
        "lastUpdated": REQUESTED_AT,
    }
    assert len(await case.log()) == 1  # only operations write there


async def test_rename_finds_the_resource_by_any_name_of_its_type(routed: RoutedShards) -> None:
    case = await made(routed, "old")
    touched: list[ResourceKey] = []
    changes = ResourceChanges(routed.directory, routed.pools, on_change=touched.extend)

    one = ResourceRename(*TENANT, "patients", "old", "new", None, REQUESTED_AT)
    assert await changes.rename(one) is ChangeResult.APPLIED

    assert await case.resources() == {("patient", "new"): {"name": "Ann", "tags": {"a": 1}}}
    named = product(("patient", "patients"), ("old", "new"))
    assert set(touched) == {ResourceKey(case.tenant_id, *key) for key in named}
    query = "SELECT types FROM log_batches WHERE origins = '{rename}'"
    assert [row["types"] for row in await fetch(case.pool, query)] == [["patient", "patient"]]


async def test_rename_is_refused_when_the_schema_refuses_its_result(routed: RoutedShards) -> None:
    case = await made(routed, "old", data='{"age": 7}')
    await enforce(routed, "patient", {"properties": {"age": {"maximum": 9}}})

    with pytest.raises(
        PermanentError, match=r"^additionalData: .*#/properties/age/maximum: expected maximum 9 at /age"
    ):
        await rename(routed, additional_data='{"age": 4711}')
    assert await case.resources() == {("patient", "old"): {"age": 7}}

    await enforce(routed, "patient", {"properties": {"age": {"maximum": 9}}}, how="warn")
    assert await rename(routed, additional_data='{"age": 4711}') is ChangeResult.APPLIED


async def test_rename_is_refused_when_there_is_a_resource_of_each_id(routed: RoutedShards) -> None:
    case = await made(routed, "old", "new")
    before = await case.everything()
    with pytest.raises(PermanentError, match="got one of each id; delete one of them"):
        await rename(routed)
    assert await case.everything() == before


@pytest.mark.parametrize("text", ['{"a": "\\u0000"}', '{"a": 1e999999}', '{"a": "\\ud800"}'])
async def test_rename_is_refused_when_data_cannot_be_stored(routed: RoutedShards, text: str) -> None:
    case = await made(routed, "old")
    before = await case.everything()
    with pytest.raises(
        PermanentError, match=r"additionalData: expected (texts without U\+0000|at most 100,000 values)"
    ):
        await rename(routed, additional_data=text)
    assert await case.everything() == before


async def test_rename_and_operations_come_one_after_the_other(routed: RoutedShards) -> None:
    """A batch that waits for the rename finds the new id alone: no row is lost, and none is there twice.

    On a slow machine the rename's wait is over first, and it tries again behind the batch.
    """
    case = await made(routed, "old")
    rival = await asyncpg.connect(case.pool.address.connection_string)
    watcher = await asyncpg.connect(case.pool.address.connection_string)
    await rival.execute("BEGIN")
    await rival.execute("UPDATE resources SET data = data || '{\"n\": 1}'")
    async with asyncio.TaskGroup() as tasks:
        renaming = tasks.create_task(rename(routed))
        await waiters(watcher)
        patching = tasks.create_task(case.apply(case.operation("patch", "old", {"late": True})))
        await waiters(watcher, count=2)
        await rival.execute("COMMIT")
    await rival.close()
    await watcher.close()

    assert renaming.result() is ChangeResult.APPLIED
    patched = patching.result() == [SUCCEEDED]
    assert patched or patching.result() == [failed(Failure.NOT_FOUND)]
    ((key, data),) = (await case.resources()).items()
    assert isinstance(data, dict)
    assert (key, sorted(data)) == (("patient", "new"), ["late"] * patched + ["n", "name", "tags"])


# The administrator


@pytest.mark.parametrize(("business_type", "staff"), [("dental", "medic"), ("gym", "trainer"), ("hotel", "staff")])
async def test_admin_gets_a_role_and_a_staff_resource(make_shard: ShardMaker, business_type: str, staff: str) -> None:
    async with routed_shards([await make_shard("shard-1")]) as routed:
        routed.register(TENANT, "shard-1")
        case = case_of(routed)
        await add_tenant(case.pool, business_type=business_type)

        assert await add_admin(routed) is ChangeResult.APPLIED

        assert await case.resources() == {
            ("role", "u-1"): {"name": "Administrator", "status": "active", "permissions": ["*"]},
            (staff, "u-1"): {
                f"{staff}Name": "ann.lee",
                "email": "ann.lee@clinic.example",
                "phone": "",
                "role": "Administrator",
                "status": "active",
            },
        }
        query = 'SELECT DISTINCT "businessType", date, "lastUpdated" FROM resources'
        assert await fetch(case.pool, query) == [
            {"businessType": business_type, "date": REQUESTED_AT, "lastUpdated": REQUESTED_AT}
        ]
        assert await case.log() == {}


async def test_admin_is_never_overwritten(routed: RoutedShards) -> None:
    case = case_of(routed)
    await add_admin(routed)
    patch = case.operation("patch", "u-1", {"phone": "123"}, resource_type="medic")
    delete = case.operation("delete", "u-1", resource_type="role")
    assert await case.apply(patch, delete) == [SUCCEEDED] * 2

    assert await add_admin(routed) is ChangeResult.APPLIED
    resources: Any = await case.resources()
    assert (resources["medic", "u-1"]["phone"], ("role", "u-1") in resources) == ("123", True)
    assert await add_admin(routed) is ChangeResult.EXISTED


async def test_admin_waits_when_the_shard_lacks_the_business_type(routed: RoutedShards) -> None:
    with pytest.raises(UnknownBusinessTypeError, match=r"expected one of dental, .*, which shard shard-1 has"):
        await add_admin(routed, "spa")
    with pytest.raises(PermanentError, match="businessType: expected a letter"):
        await add_admin(routed, "no type")


# Where the tenant is


@pytest.mark.parametrize("change", [rename, add_admin])
async def test_change_goes_by_the_state_of_the_tenant(routed: RoutedShards, change: Any) -> None:
    case = await made(routed, "old")
    before = await case.resources()
    for state in ("destroying", "destroyed"):
        await case.set_state(state)
        assert await change(routed) is ChangeResult.TENANT_DESTROYED
    for state in ("fenced", "incoming", "ready"):
        await case.set_state(state)
        with pytest.raises(RetryableError, match="moved"):
            await change(routed)
        with pytest.raises(RetryableError, match="not active, or the tenant is being moved"):
            await change(routed)  # by then the directory knows
    assert await case.resources() == before

    assert await change(routed, tenant=("no", "one")) is ChangeResult.UNKNOWN_TENANT
    routed.register(("not", "here"), "shard-1")
    assert await change(routed, tenant=("not", "here")) is ChangeResult.UNKNOWN_TENANT
