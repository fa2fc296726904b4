"""`tenants restore`: put one tenant back to a backup on its shard, while workers run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from simplu_worker.assembly.aws import open_leases, open_stream
from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.moves import clear_cache, find_home, show_status, wait_for_killed
from simplu_worker.commands.output import Answer, Facts, Line, Part, TransferProgress, print_note
from simplu_worker.commands.running import given_address, parse_tenant_id, require_settings
from simplu_worker.commands.tenants.rules import (
    BackupFacts,
    missing_ages,
    refusal_of_database,
    refusal_of_positions,
    refusal_of_repetition,
    refusal_of_rows,
)
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.positions import read_position_rows
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.schema.migrations import refusal_of
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION, read_schema
from simplu_worker.shards.settling import Transfer, read_transfer
from simplu_worker.shards.types import StreamPosition
from simplu_worker.timing.clock import utc_now
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.places import check_copy, count_rows, require_schema
from simplu_worker.transfers.restoring import Restore, RestoreCertificate, RestoreMode, Restorer
from simplu_worker.vocabulary import TenantState, TransferKind, TransferStep

BACKUP_CONNECTIONS = 2
IN_DOUBT = timedelta(minutes=1)  # a transaction that is not in the backup may have a time from before its last one


async def restore_tenant(
    settings: Settings, tenant: tuple[str, str], mode: RestoreMode, export: Path | None = None, *, apply: bool
) -> Answer:
    """Return what a restore would do; with *apply* do it and return a certificate. Raises `PermanentError`.

    *export* is the file for the overwritten rows.
    """
    require_settings(settings, routes=True, stream=mode is RestoreMode.CATCH_UP)
    tenant_id = parse_tenant_id(*tenant)
    async with AsyncExitStack() as stack:
        shards = await stack.enter_async_context(open_shards(settings))
        live = shards.pools.pool_of(await find_home(shards, tenant_id))
        await require_schema(live)
        await check_copy(live)
        backups = await stack.enter_async_context(Pools(size=BACKUP_CONNECTIONS))
        backup = backups.ensure_pool(given_address(settings, "BACKUP_URL", "a restored backup", live.address.shard_id))
        try:
            plan = await _plan(settings, tenant_id, mode, export, live, backup)
            if not apply:
                return Answer({"plan": plan}, _describe_plan(plan))
            if plan["repeats"] is not None:
                raise PermanentError(f"{tenant_id}: {plan['repeats']}")
            kept = timedelta(hours=settings.operation_retention_hours)
            restore = Restore(tenant_id, plan["shard"], mode, Path(plan["export"]), kept)
            await wait_for_killed(shards.pools.pool_of(plan["shard"]), tenant_id, TransferKind.RESTORE)
            with TransferProgress() as progress:
                show = partial(show_status, progress, tenant_id)
                restorer = Restorer(shards.locator, shards.pools, backup, shards.commits, restore, show=show)
                certificate = await _run(settings, restorer)
        except WorkerError as exc:
            text = backup.address.without_name(str(exc))
            raise (RetryableError if isinstance(exc, RetryableError) else PermanentError)(text) from None
        warning = await clear_cache(settings)
    members = {"certificate": certificate, "warning": warning}
    return Answer(members, [*_describe_plan(plan), _describe_certificate(certificate), warning])


async def _run(settings: Settings, restorer: Restorer) -> RestoreCertificate:
    """Run a restore; where it is interrupted, print the state of the tenant on stderr.

    Nobody runs it again once the tenant was released, so the cache is cleared also where that was not confirmed.
    """
    try:
        return await restorer.run()
    except BaseException as exc:
        if isinstance(exc, asyncio.CancelledError):
            print_note(restorer.describe_state())
        if restorer.is_released and (warning := await clear_cache(settings)) is not None:
            print_note(warning)
        raise


async def _plan(
    settings: Settings, tenant_id: str, mode: RestoreMode, export: Path | None, live: ShardPool, backup: ShardPool
) -> dict[str, Any]:
    """Return what a restore would do; None is what takes long to count. `repeats` says why `--apply` is refused."""
    stream_name = (settings.kinesis_stream_name or "").rpartition("/")[2]
    async with backup.connection() as of_backup, live.connection() as of_live:
        schema = await read_schema(of_backup, live.address.shard_id)
        if schema is None:
            raise PermanentError("BACKUP_URL: expected a shard, got an empty database; restore the backup again")
        refusal = refusal_of(schema, worker_version=SCHEMA_VERSION)
        (content,) = await of_backup.fetch(QUERIES["describe_content"])
        positions = await read_position_rows(of_backup, stream_name) if stream_name else {}
        databases = [dict(await one.fetchrow(QUERIES["describe_database"]) or {}) for one in (of_backup, of_live)]
        if (wrong := refusal_of_database(*databases)) is not None:
            raise PermanentError(f"BACKUP_URL: {wrong}")
        in_backup, now = await _read_tenant(of_backup, tenant_id), await _read_tenant(of_live, tenant_id)
        if now is None:
            raise RetryableError(f"{tenant_id}: its row has gone from shard {live.address.shard_id}")
        refusal = refusal or refusal_of_rows(in_backup, now, mode)
        if refusal is not None:
            raise PermanentError(f"{tenant_id}: {refusal}")
        journal = await read_transfer(of_live, tenant_id, TransferKind.RESTORE)
    there, here = [await count_rows(one, tenant_id) for one in (backup, live)]
    last_at = there.get("last_applied_at", content["last_applied_at"] and content["last_applied_at"] - IN_DOUBT)
    since = await live.count(QUERIES["count_logged_since"], tenant_id, last_at)
    async with live.connection() as connection:
        erased = await connection.fetch(QUERIES["find_erased_since"], tenant_id, last_at)
    has_begun = journal is not None and journal.step in {TransferStep.REPLACING, TransferStep.COPIED}
    goes_on = has_begun and now["state"] == TenantState.FENCED
    return {
        "tenant": tenant_id,
        "shard": live.address.shard_id,
        "mode": mode,
        "backup": backup.address.place,
        "lastOperationInBackup": there.get("last_applied_at"),
        "resourcesInBackup": there.get("resources"),
        "resourcesNow": here.get("resources"),
        "sinceBackup": None if since is None else {row["source"]: row["operation_count"] for row in since},
        "erasedSinceBackup": [f"{row['resource_type']} {row['resource_id']}" for row in erased],
        "readAgainSeconds": await _judge_stream(
            settings, mode, tenant_id, positions, content["first_tenant_at"], goes_on=goes_on
        ),
        "export": str(_export_path(export, tenant_id, journal if goes_on else None)),
        "goesOn": goes_on,
        "repeats": refusal_of_repetition(journal, mode, export),
    }


async def _judge_stream(
    settings: Settings,
    mode: RestoreMode,
    tenant_id: str,
    positions: Mapping[str, StreamPosition],
    first_tenant_at: datetime | None,
    *,
    goes_on: bool,
) -> float | None:
    """Return the age of the oldest record that will be read again; None if none will. Raises `PermanentError`.

    A restore that goes on is not refused any more: its tenant is fenced.
    """
    if mode is not RestoreMode.CATCH_UP:
        return None
    kept = timedelta(hours=settings.operation_retention_hours)
    async with open_stream(settings) as stream, open_leases(settings) as (table, _):
        retention = (await stream.describe()).retention
        facts = BackupFacts(
            rows=positions,
            first_tenant_at=first_tenant_at,
            stream_shards=await stream.list_stream_shards(),
            leases={lease.lease_key: lease for lease in await table.scan()},
            tenant_wait=timedelta(seconds=settings.tenant_wait_seconds),
            now=utc_now(),
        )
    ages = missing_ages(facts)
    refusal = refusal_of_positions(ages, retention=retention, log_kept=kept)
    if refusal is not None:
        if not goes_on:
            raise PermanentError(f"{tenant_id}: {refusal}")
        print_note(
            f"{refusal}. The restore continues; workers may then hold the shard: simplu-worker shards accept-gap"
        )
    return round(max(ages.values(), default=timedelta()).total_seconds(), 1)


async def _read_tenant(connection: Connection, tenant_id: str) -> dict[str, Any] | None:
    rows = await connection.fetch(QUERIES["find_tenants"], [tenant_id])
    return dict(rows[0]) if rows else None


def _export_path(chosen: Path | None, tenant_id: str, journal: Transfer | None) -> Path:
    if journal is not None and journal.export is not None:
        return Path(journal.export)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", tenant_id)[:100]
    return (chosen or Path(f"restore-{name}-{utc_now():%Y%m%dT%H%M%SZ}.jsonl")).absolute()


FACTS: Final = {
    "tenant": "tenant",
    "shard": "shard",
    "mode": "mode",
    "backup": "backup",
    "lastOperationInBackup": "last operation in it",
    "resourcesInBackup": "resources in it",
    "resourcesNow": "resources now",
    "sinceBackup": "operations since",
    "readAgainSeconds": "read again, seconds",
    "export": "overwritten rows",
}


def _describe_plan(plan: Mapping[str, Any]) -> Iterator[Part]:
    yield Facts({title: plan[name] for name, title in FACTS.items()})
    for erased in plan["erasedSinceBackup"]:
        yield (
            f"{erased} was erased since the backup and may come back; "
            "after the restore run: simplu-worker tenants erase-resource"
        )
    if plan["goesOn"]:
        yield "an earlier command has started to overwrite the tenant's rows; the restore continues"
    if plan["repeats"] is not None:
        yield f"--apply is refused: {plan['repeats']}"


def _describe_certificate(certificate: RestoreCertificate) -> Line:
    return Line(
        f"{certificate.tenant}: restored on shard {certificate.shard}, {certificate.mode}, epoch {certificate.epoch}, "
        f"{certificate.rows_restored} rows; {certificate.resources_before} resources and "
        f"{certificate.operations_before} operations overwritten are in {certificate.export}; "
        f"paused for {certificate.paused_s:.1f} s"
    )
