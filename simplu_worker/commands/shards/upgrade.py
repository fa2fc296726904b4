"""`shards upgrade`: upgrade the schemas of shards while workers run, or print what each lacks."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, ProgressLine, print_note, shorten, table_of
from simplu_worker.commands.running import known_shard
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.shard_query import LIMITS, query_with_causes
from simplu_worker.shards.schema.migrations import Upgrade
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION, ensure_schema
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS, UpgradeActivity, Upgrader, read_upgrade
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.waits import run_at_once

SHARDS_AT_ONCE: Final = 4
REPORT_INTERVAL_S: Final = 10.0  # between two lines, where there is no terminal
TITLE_MAX_LENGTH: Final = 70
COLUMNS: Final = {
    "shardId": "shard",
    "place": "place",
    "state": "state",
    "schemaVersion": "schema",
    "targetVersion": "to",
    "migrations": "migrations",
    "businessTypes": "business types",
    "worksFrom": "workers from",
    "error": "error",
}


class UpgradeStatus(StrEnum):
    """The state of a shard's schema."""

    CURRENT = "current"
    BEHIND = "behind"
    EMPTY = "empty"  # its first tenant creates the newest schema, or this command where the shard is named
    CREATED = "created"
    UPGRADED = "upgraded"
    REFUSED = "refused"
    FAILED = "failed"


BAD: Final = {UpgradeStatus.REFUSED, UpgradeStatus.FAILED}


class UpgradeReport(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One shard, the upgrade that it needs or got, and the error."""

    shard_id: str
    place: str
    state: UpgradeStatus
    error: str | None = None
    schema_version: int | None = None
    target_version: int | None = None
    migrations: list[str] | None = None
    business_types: list[str] | None = None
    works_from: int | None = None


async def upgrade_shards(settings: Settings, shard_ids: Sequence[str], *, apply: bool, timeout_s: float) -> Answer:
    """Return what the schemas of *shard_ids*, or of all shards, lack; with *apply* upgrade them.

    An empty shard gets its schema only if it is named: its database may be a wrong one, or one that was lost.
    """
    async with open_shards(settings) as shards:
        known = await shards.locator.list_shards()
    addresses = [known_shard(known, one) for one in sorted(set(shard_ids) or {one.shard_id for one in known})]
    async with Pools(size=CONNECTIONS, timeouts=UPGRADE_TIMEOUTS) as pools:
        reports = await _read_upgrades(pools, addresses)
        if apply:
            reports |= await _upgrade_shards(pools, reports, addresses, timeout_s=timeout_s)
            for address in addresses if shard_ids else ():
                if reports[address.shard_id].state is UpgradeStatus.EMPTY:
                    reports[address.shard_id] = await _reported(address, _create_schema(pools, address))
    rows = [reports[address.shard_id] for address in addresses]
    is_plan = not apply and any(report.state is UpgradeStatus.BEHIND for report in rows)
    empty = [report.shard_id for report in rows if report.state is UpgradeStatus.EMPTY]
    parts = [
        table_of(COLUMNS, msgspec.to_builtins(rows)),
        "nothing was changed; --apply upgrades the shards, while workers run" if is_plan else None,
        *(f"shard {one} has no schema; to create it: simplu-worker shards upgrade {one} --apply" for one in empty),
    ]
    members = {"schemaVersion": SCHEMA_VERSION, "applied": apply, "shards": rows}
    return Answer(members, parts, is_failed=any(report.state in BAD for report in rows))


async def _read_upgrades(pools: Pools, addresses: Sequence[ShardAddress]) -> dict[str, UpgradeReport]:

    async def read(address: ShardAddress) -> UpgradeReport:
        async with pools.ensure_pool(address).connection() as connection:
            return _report(address, await read_upgrade(connection, address.shard_id))

    answers, silent = await query_with_causes(addresses, read)
    late, places = f"no answer within {LIMITS.answer_s:g} s", {one.shard_id: one.place for one in addresses}
    return answers | {
        shard_id: UpgradeReport(shard_id, places[shard_id], UpgradeStatus.FAILED, cause or late)
        for shard_id, cause in silent.items()
    }


async def _upgrade_shards(
    pools: Pools, reports: Mapping[str, UpgradeReport], addresses: Sequence[ShardAddress], *, timeout_s: float
) -> dict[str, UpgradeReport]:
    behind = [address for address in addresses if reports[address.shard_id].state is UpgradeStatus.BEHIND]
    done: dict[str, UpgradeReport] = {}

    async def upgrade(address: ShardAddress) -> None:
        shard_id = address.shard_id

        def show(activity: UpgradeActivity) -> None:
            if line.is_live or activity.waits_for:  # a line now and then would tell what each try begins with
                line.tell(f"{len(done)} of {len(behind)} shards are done; {shard_id}: {_describe_activity(activity)}")

        async def run() -> UpgradeReport:
            upgrader = Upgrader(pools.ensure_pool(address), report=show, patience_s=timeout_s)
            return _report(address, await upgrader.run(), done=UpgradeStatus.UPGRADED)

        done[shard_id] = report = await _reported(address, run())
        print_note(f"{shard_id}: {report.state} ({len(done)} of {len(behind)})")

    with ProgressLine(f"0 of {len(behind)} shards are done", every_s=REPORT_INTERVAL_S) as line:
        await run_at_once(upgrade, behind, most=SHARDS_AT_ONCE)
    return done


async def _create_schema(pools: Pools, address: ShardAddress) -> UpgradeReport:
    pool = pools.ensure_pool(address)
    await ensure_schema(pool)
    async with pool.connection() as connection:
        upgrade = await read_upgrade(connection, address.shard_id)
    return msgspec.structs.replace(_report(address, upgrade), state=UpgradeStatus.CREATED)


async def _reported(address: ShardAddress, running: Awaitable[UpgradeReport]) -> UpgradeReport:
    try:
        return await running
    except WorkerError as exc:
        error = address.without_name(scrub_text(str(exc)))
        return UpgradeReport(address.shard_id, address.place, UpgradeStatus.FAILED, error)


def _report(
    address: ShardAddress, upgrade: Upgrade | None, *, done: UpgradeStatus = UpgradeStatus.BEHIND
) -> UpgradeReport:
    if upgrade is None:
        return UpgradeReport(address.shard_id, address.place, UpgradeStatus.EMPTY)
    state = done if upgrade.is_needed else UpgradeStatus.CURRENT
    return UpgradeReport(
        address.shard_id,
        address.place,
        state if upgrade.refusal is None else UpgradeStatus.REFUSED,
        upgrade.refusal,
        upgrade.schema.version,
        upgrade.version,
        [f"{one.version:04} {one.name}" for one in upgrade.migrations],
        list(upgrade.business_types),
        upgrade.works_from,
    )


def _describe_activity(activity: UpgradeActivity) -> str:
    share = "" if activity.share is None else f" {activity.share:.0%}"
    waits = f", waits for {', '.join(map(str, activity.waits_for))}" if activity.waits_for else ""
    return f"{shorten(activity.title, TITLE_MAX_LENGTH)}{share}{waits}"
