"""The model of the contract, the records made for it, and the comparison that finds differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from simplu_local.verify.comparison import (
    ShardContent,
    StoredDeadLetter,
    StoredOperation,
    StoredRow,
    StoredTenant,
    StoredVersion,
    compare,
)
from simplu_local.workload.json_values import JsonValue
from simplu_local.workload.producer import Position
from simplu_local.workload.reference_model import Effect, LogEntry, TenantModel
from simplu_local.workload.workload import Item, Tenant, Workload, make_tenants

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def test_compare_finds_nothing_when_shards_have_what_models_have() -> None:
    workload, put, shards, letters = _perfect_run()
    report = compare(workload.model, shards, put, letters)
    assert report.differences == []
    assert report.operations_compared == workload.model.logged_count()
    assert report.rows_compared == sum(len(shard.rows) for shard in shards)
    assert report.versions_compared == sum(len(shard.versions) for shard in shards) > 0
    assert sum(report.dead_letters.values()) == len(letters)


SPOILT: dict[str, Callable[[list[ShardContent]], object]] = {
    "a lost row": lambda shards: shards[0].rows.pop(),
    "other data": lambda shards: _put(shards[0].rows, replace(shards[0].rows[-1], data='{"other": 1}')),
    "another date": lambda shards: _put(shards[0].rows, replace(shards[0].rows[-1], last_updated=NOON)),
    "a lost operation": lambda shards: shards[0].operations.pop(),
    "another error": lambda shards: _put(shards[0].operations, replace(shards[0].operations[-1], error="surprise")),
    "two homes": lambda shards: shards[1].tenants.append(shards[0].tenants[0]),
    "a strange tenant": lambda shards: shards[1].tenants.append(replace(shards[0].tenants[0], tenant_id="who-knows")),
    "a lost version": lambda shards: shards[0].versions.pop(),
    "a version too many": lambda shards: shards[0].versions.append(replace(shards[0].versions[-1], version=99)),
    "another document": lambda shards: _put(shards[0].versions, replace(shards[0].versions[-1], document='{"b": 1}')),
    "another request": lambda shards: _put(shards[0].versions, replace(shards[0].versions[-1], request_id="other")),
    "another change": lambda shards: _put(shards[0].versions, replace(shards[0].versions[-1], change="surprise")),
    "a history that began late": lambda shards: shards[0].versions.clear(),
    "a stray row": lambda shards: shards[1].rows.append(replace(shards[0].rows[-1], tenant_id="who-knows")),
}


def _put(items: list[Any], last: object) -> None:
    items[-1] = last


@pytest.mark.slow
@pytest.mark.parametrize("name", SPOILT)
def test_compare_finds_the_difference_when_a_shard_is_wrong(name: str) -> None:
    workload, put, shards, letters = _perfect_run()
    SPOILT[name](shards)
    assert compare(workload.model, shards, put, letters).differences != []


def test_compare_finds_the_difference_when_letters_are_wrong() -> None:
    workload, put, shards, letters = _perfect_run()

    def differences(changed: list[StoredDeadLetter]) -> int:
        return len(compare(workload.model, shards, put, changed).differences)

    logged = next(position for position, item in put.items() if item.verdict.effect is Effect.LOGGED)
    assert differences(letters[1:]) == 1
    assert differences([replace(letters[0], reason="surprise"), *letters[1:]]) == 1
    assert differences([replace(letters[0], record=b"another"), *letters[1:]]) == 1
    assert differences([*letters, StoredDeadLetter("invalid_json", logged, None)]) == 1
    assert differences([*letters, letters[0]]) == 0


def _spelt(value: JsonValue) -> str:
    match value:
        case Decimal():
            return str(value)
        case list():
            return f"[{' , '.join(map(_spelt, value))}]"
        case dict():
            return f"{{{','.join(f'{json.dumps(name)} : {_spelt(member)}' for name, member in value.items())}}}"
        case _:
            return json.dumps(value)


def _workload() -> Workload:
    return Workload(7, make_tenants(4, run="t"), unregistered=[Tenant("no", "body", "gym")])


def _perfect_run() -> tuple[Workload, dict[Position, Item], list[ShardContent], list[StoredDeadLetter]]:
    workload = _workload()
    put = {("shard", str(number)): item for number, item in enumerate(workload.items(400))}
    letters = [
        StoredDeadLetter(min(item.verdict.reasons), position, item.record)
        for position, item in put.items()
        if item.verdict.effect is Effect.REJECTED
    ]
    shards = [ShardContent("one"), ShardContent("two")]
    for number, (tenant_id, tenant) in enumerate(workload.model.tenants.items()):
        _fill(shards[number // 2], tenant_id, tenant)
    return workload, put, shards, letters


def _fill(shard: ShardContent, tenant_id: str, tenant: TenantModel) -> None:
    kind = tenant.business_type
    shard.tenants.append(StoredTenant(tenant_id, tenant.business_id, tenant.location_id, kind, "active"))
    shard.rows.append(StoredRow(tenant_id, kind, "settings", "default", "{}", NOON, NOON))
    derived = {(name, f"simplu:{number}"): row for number, (name, row) in enumerate(tenant.derived_rows)}
    for (name, resource_id), row in (tenant.rows | derived).items():
        stored = StoredRow(tenant_id, kind, name, resource_id, _spelt(row.data), row.date, row.last_updated)
        shard.rows.append(stored)
    shard.histories |= {(kind, name) for name, _ in tenant.versions}
    shard.versions += [
        StoredVersion(tenant_id, *key, number, one.kind, one.request_id, None if row is None else _spelt(row))
        for key, versions in tenant.versions.items()
        for number, one in enumerate(versions, 1)
        for row in (one.data if one.kind != "delete" else None,)
    ]
    named = tenant.log | {f"simplu:{number}": entry for number, entry in enumerate(tenant.derived)}
    shard.operations += [_stored(tenant_id, request_id, entry) for request_id, entry in named.items()]


def _stored(tenant_id: str, request_id: str, entry: LogEntry) -> StoredOperation:
    resource_id = request_id if entry.kind == "create" and entry.resource_id is None else entry.resource_id
    return StoredOperation(
        tenant_id,
        request_id,
        entry.kind,
        entry.resource_type,
        resource_id,
        entry.status,
        entry.error,
        None if entry.result is None else _spelt(entry.result),
        entry.requested_at,
        0.01,
    )
