"""`shards upgrade`: upgrade the schemas of shards while workers run, or print what each lacks."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, ProgressLine, print_note, shorten, table_of
from simplu_worker.commands.running import known_shard
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.shard_query import LIMITS, query_all_shards
from simplu_worker.shards.schema.migrations import Upgrade
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION, ensure_schema
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS, UpgradeActivity, Upgrader, read_upgrade
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.transfers.patience import run_at_once

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


class UpgradeReport(msgspec.Struct, frozen=True):
    """One shard, the upgrade that it needs or got, and the error."""

    address: ShardAddress
    status: UpgradeStatus
    upgrade: Upgrade | None = None
    error: str | None = None


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
            reports = await _upgrade_shards(pools, reports, timeout_s=timeout_s)
            if shard_ids:
                reports = [await _create_schema(pools, report) for report in reports]
    is_plan = not apply and any(report.status is UpgradeStatus.BEHIND for report in reports)
    empty = [report.address.shard_id for report in reports if report.status is UpgradeStatus.EMPTY]
    rows = [_members(report) for report in reports]
    parts = [
        table_of(COLUMNS, rows),
        "nothing was changed; --apply upgrades the shards, while workers run" if is_plan else None,
        *(f"shard {one} has no schema; to create it: simplu-worker shards upgrade {one} --apply" for one in empty),
    ]
    members = {"schemaVersion": SCHEMA_VERSION, "applied": apply, "shards": rows}
    return Answer(members, parts, is_failed=any(report.status in BAD for report in reports))


async def _read_upgrades(pools: Pools, addresses: Sequence[ShardAddress]) -> list[UpgradeReport]:

    async def ask(address: ShardAddress) -> UpgradeReport:
        try:
            async with pools.ensure_pool(address).connection() as connection:
                return _report(address, await read_upgrade(connection, address.shard_id))
        except WorkerError as exc:
            return _failure(address, exc)

    answers = await query_all_shards(addresses, ask)
    late = f"no answer within {LIMITS.answer_s:g} s"
    return [
        answers.get(address.shard_id, UpgradeReport(address, UpgradeStatus.FAILED, error=late)) for address in addresses
    ]


async def _upgrade_shards(pools: Pools, reports: Sequence[UpgradeReport], *, timeout_s: float) -> list[UpgradeReport]:
    behind = [report.address for report in reports if report.status is UpgradeStatus.BEHIND]
    done: dict[str, UpgradeReport] = {}

    async def upgrade(address: ShardAddress) -> None:
        shard_id = address.shard_id

        def show(activity: UpgradeActivity) -> None:
            if line.is_live or activity.waits_for:  # a line now and then would tell what each try begins with
                line.tell(f"{len(done)} of {len(behind)} shards are done; {shard_id}: {_describe_activity(activity)}")

        try:
            upgrader = Upgrader(pools.ensure_pool(address), report=show, patience_s=timeout_s)
            report = _report(address, await upgrader.run(), is_done=True)
        except WorkerError as exc:
            report = _failure(address, exc)
        done[shard_id] = report
        print_note(f"{shard_id}: {report.status} ({len(done)} of {len(behind)})")

    with ProgressLine(f"0 of {len(behind)} shards are done", every_s=REPORT_INTERVAL_S) as line:
        await run_at_once(upgrade, behind, most=SHARDS_AT_ONCE)
    return [done.get(report.address.shard_id, report) for report in reports]


async def _create_schema(pools: Pools, report: UpgradeReport) -> UpgradeReport:
    if report.status is not UpgradeStatus.EMPTY:
        return report
    address = report.address
    pool = pools.ensure_pool(address)
    try:
        await ensure_schema(pool)
        async with pool.connection() as connection:
            upgrade = await read_upgrade(connection, address.shard_id)
    except WorkerError as exc:
        return _failure(address, exc)
    return UpgradeReport(address, UpgradeStatus.CREATED, upgrade)


def _report(address: ShardAddress, upgrade: Upgrade | None, *, is_done: bool = False) -> UpgradeReport:
    if upgrade is None:
        return UpgradeReport(address, UpgradeStatus.EMPTY)
    if upgrade.refusal is not None:
        return UpgradeReport(address, UpgradeStatus.REFUSED, upgrade, upgrade.refusal)
    if not upgrade.is_needed:
        return UpgradeReport(address, UpgradeStatus.CURRENT, upgrade)
    return UpgradeReport(address, UpgradeStatus.UPGRADED if is_done else UpgradeStatus.BEHIND, upgrade)


def _failure(address: ShardAddress, exc: WorkerError) -> UpgradeReport:
    error = address.without_name(scrub_text(str(exc)))
    return UpgradeReport(address, UpgradeStatus.FAILED, error=error)


def _members(report: UpgradeReport) -> dict[str, Any]:
    members: dict[str, Any] = {
        "shardId": report.address.shard_id,
        "place": report.address.place,
        "state": report.status,
        "error": report.error,
    }
    if (upgrade := report.upgrade) is not None:
        members |= {
            "schemaVersion": upgrade.schema.version,
            "targetVersion": upgrade.version,
            "migrations": [f"{one.version:04} {one.name}" for one in upgrade.migrations],
            "businessTypes": list(upgrade.business_types),
            "worksFrom": upgrade.works_from,
        }
    return {name: value for name, value in members.items() if value is not None}


def _describe_activity(activity: UpgradeActivity) -> str:
    share = "" if activity.share is None else f" {activity.share:.0%}"
    waits = f", waits for {', '.join(map(str, activity.waits_for))}" if activity.waits_for else ""
    return f"{shorten(activity.title, TITLE_MAX_LENGTH)}{share}{waits}"
