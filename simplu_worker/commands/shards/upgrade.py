"""`shards upgrade`: upgrade the schemas of shards while workers run, or print what each lacks."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.commands.output import Answer, ProgressLine, shorten, table_of
from simplu_worker.commands.running import known_shard, open_known_shards
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.schema.migrations import Upgrade
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION, ensure_schema
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS, UpgradeActivity, Upgrader, read_upgrade
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.waits import run_at_once

READ_AT_ONCE, UPGRADED_AT_ONCE = 64, 4
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


async def upgrade_shards(settings: Settings, shard_ids: Sequence[str], *, apply: bool) -> Answer:
    """Return what the schemas of *shard_ids*, or of all shards, lack; with *apply* upgrade them.

    An empty shard gets its schema only if it is named: its database may be a wrong one, or one that was lost.
    """
    async with open_known_shards(settings) as (_, known), Pools(size=CONNECTIONS, timeouts=UPGRADE_TIMEOUTS) as pools:
        addresses = [known_shard(known, one) for one in sorted(set(shard_ids) or {one.shard_id for one in known})]
        run = _Run(pools, len(addresses), applies=apply, creates=bool(shard_ids))
        with run.line:
            rows = await run_at_once(run.handle, addresses, most=UPGRADED_AT_ONCE if apply else READ_AT_ONCE)
    is_plan = not apply and any(report.state is UpgradeStatus.BEHIND for report in rows)
    empty = [report.shard_id for report in rows if report.state is UpgradeStatus.EMPTY]
    parts = [
        table_of(COLUMNS, msgspec.to_builtins(rows)),
        "nothing was changed; --apply upgrades the shards, while workers run" if is_plan else None,
        *(f"shard {one} has no schema; to create it: simplu-worker shards upgrade {one} --apply" for one in empty),
    ]
    members = {"schemaVersion": SCHEMA_VERSION, "applied": apply, "shards": rows}
    return Answer(members, parts, is_failed=any(report.state in BAD for report in rows))


class _Run:
    def __init__(self, pools: Pools, total: int, *, applies: bool, creates: bool) -> None:
        self.line = ProgressLine(f"0 of {total} shards are done", every_s=REPORT_INTERVAL_S)
        self._pools = pools
        self._total, self._done_count = total, 0
        self._applies, self._creates = applies, creates

    async def handle(self, address: ShardAddress) -> UpgradeReport:
        """Return what a shard lacks, or has got."""
        try:
            report = await self._handle(address)
        except WorkerError as exc:
            error = address.without_name(scrub_text(str(exc)))
            report = UpgradeReport(address.shard_id, address.place, UpgradeStatus.FAILED, error)
        self._done_count += 1
        return report

    async def _handle(self, address: ShardAddress) -> UpgradeReport:
        pool = self._pools.ensure_pool(address)
        found = _report(address, await self._read(pool))
        if self._applies and found.state is UpgradeStatus.EMPTY and self._creates:
            await ensure_schema(pool)
            return msgspec.structs.replace(_report(address, await self._read(pool)), state=UpgradeStatus.CREATED)
        if not self._applies or found.state is not UpgradeStatus.BEHIND:
            return found

        def show(activity: UpgradeActivity) -> None:
            if self.line.is_live or activity.waits_for:  # a line now and then would tell what each try begins with
                done = f"{self._done_count} of {self._total} shards are done"
                self.line.tell(f"{done}; {address.shard_id}: {_describe_activity(activity)}")

        upgrade = await Upgrader(pool, report=show).run()
        return _report(address, upgrade, done=UpgradeStatus.UPGRADED)

    async def _read(self, pool: ShardPool) -> Upgrade | None:
        async with pool.connection() as connection:
            return await read_upgrade(connection, pool.address.shard_id)


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
