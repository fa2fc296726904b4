"""A shard is put back to an older base backup under load: what it lacks is applied again, and how long that takes.

    python tests/acceptance/restore.py [--operations 200000] [--rate 100]

Starts the embedded stack and the worker, makes a base backup of one Postgres shard, and lets the shard apply so many
operations more. Then its server is killed with -9, and the backup starts at its address, while other operations keep
coming for it and for all other shards. Exit status 0 only if each operation that the backup lacks was applied again,
and every row of every shard is right in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from acceptance.struck_shard import left_by, request_ids, row
from rich.console import Console
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Testbed
from support.postgres.standby import CopiedServer

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until

SHARDS = 3
TENANTS_PER_SHARD = 4
LEASE_DURATION_S = 5.0
POLL_S = 0.2
EARLY_COUNT = 1000  # operations before the backup
PUT_WITHIN_S = 1800.0
COUNT_SQL = "SELECT count(*) FROM operations WHERE starts_with(request_id, $1)"
RETURNED_SQL = "SELECT count(*), max(completed_at) FROM operations WHERE request_id = ANY($1::text[])"


@dataclass(frozen=True, slots=True)
class Restore:
    """The figures of a restore; seconds are from the moment when the restored server answered."""

    backup_s: float  # to make the base backup
    age_s: float  # of the backup, at the restore
    lost: int  # operations in the lost server, and not in the backup
    missing: int  # of these, not applied again
    first_s: float | None
    caught_up_s: float | None  # until the last lost operation was applied again

    @property
    def rate(self) -> float | None:
        return self.lost / self.caught_up_s if self.caught_up_s else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=200_000, help="that the shard applies after its backup")
    parser.add_argument("--rate", type=float, default=100.0, help="operations/s, for the shard and for the others each")
    parser.add_argument("--stream-shards", type=int, default=8)
    parser.add_argument("--within", type=float, default=1800.0, help="seconds until all must be applied again")
    parser.add_argument("--log", type=Path, help="copy the worker's log there in the end")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    console = open_console(piped_width=160)
    testbed = Testbed(
        shards=SHARDS,
        stream_shards=arguments.stream_shards,
        tenants_per_shard=TENANTS_PER_SHARD,
        worker_env={"KINESIS_LEASE_DURATION_SECONDS": str(LEASE_DURATION_S)},
    )
    async with testbed:
        try:
            restore = await restore_shard(testbed, arguments)
            differences = await find_differences(testbed, arguments)
        finally:
            if arguments.log is not None:
                arguments.log.write_bytes(testbed.worker.log_path.read_bytes())
        await testbed.stop_workers()
    print_figures(console, restore, differences)
    return 1 if differences or restore.missing else 0


async def restore_shard(testbed: Testbed, arguments: argparse.Namespace) -> Restore:
    """Back a shard up, lose it, start the backup in its place, and wait until it has what it lacked."""
    shard_id, lost_server = next(iter(testbed.stack.servers.items()))
    tenants = testbed.tenants_of(lost_server)
    others = tuple(tenant for tenant in testbed.tenants_of() if tenant not in tenants)
    testbed.start_flow(ChainPlan("others", others), rate=arguments.rate)
    await put_and_applied(testbed, lost_server, ChainPlan("early", tenants), EARLY_COUNT)
    began_at = datetime.now(UTC)
    backup = await back_up(lost_server)
    backed_up_at = datetime.now(UTC)
    await put_and_applied(testbed, lost_server, ChainPlan("lost", tenants), arguments.operations)
    testbed.start_flow(ChainPlan("meanwhile", tenants), rate=arguments.rate)
    await lost_server.kill()
    backup.port = lost_server.port
    started_at = datetime.now(UTC)  # the worker may apply the first lost ones again before we see that it answers
    await backup.start()
    restored_at = datetime.now(UTC)
    testbed.stack.servers[shard_id] = backup
    lost = list(await left_by(lost_server) - await backup_ids(backup, started_at))
    found, last_at = await returned(backup, lost, within_s=arguments.within)
    first_at = await row(backup.url, "SELECT min(completed_at) FROM operations WHERE completed_at > $1", restored_at)
    return Restore(
        backup_s=(backed_up_at - began_at).total_seconds(),
        age_s=(restored_at - backed_up_at).total_seconds(),
        lost=len(lost),
        missing=len(lost) - found,
        first_s=(first_at[0] - restored_at).total_seconds(),
        caught_up_s=(last_at - restored_at).total_seconds() if found == len(lost) else None,
    )


async def back_up(server: PostgresServer) -> CopiedServer:
    """Return a base backup of *server*, as a server that is not running."""
    backup = CopiedServer(server._group, server._programs, server, name="backup")
    await backup.start()
    await backup.stop()
    return backup


async def put_and_applied(testbed: Testbed, server: PostgresServer, plan: ChainPlan, count: int) -> None:
    """Put *count* operations of *plan* as fast as the stream takes them, and wait until the shard has applied them."""
    testbed.start_flow(plan, rate=None, count=count)
    size = 0

    async def are_applied() -> bool:
        nonlocal size
        await asyncio.sleep(1)
        testbed.check_running()
        (size,) = await row(server.url, COUNT_SQL, f"{plan.name}-")
        return bool(size >= count)

    if not await poll_until(are_applied, within_s=PUT_WITHIN_S):
        raise SystemExit(f"expected {count} operations of {plan.name} within {PUT_WITHIN_S:g} s, got {size}")


async def backup_ids(backup: PostgresServer, started_at: datetime) -> set[str]:
    """Return the request ids that the backup had when it was started: what came since is later."""
    ids = await request_ids(backup.url)
    again = await row(
        backup.url, "SELECT coalesce(array_agg(request_id), '{}') FROM operations WHERE completed_at >= $1", started_at
    )
    return ids - set(again[0])


async def returned(backup: PostgresServer, lost: list[str], *, within_s: float) -> tuple[int, datetime]:
    """Wait until the lost operations are there again; return how many are, and when the last came."""
    found: tuple[int, datetime] = 0, datetime.now(UTC)

    async def are_there() -> bool:
        nonlocal found
        await asyncio.sleep(POLL_S)
        count, last_at = await row(backup.url, RETURNED_SQL, lost)
        found = count, last_at or found[1]
        return bool(count == len(lost))

    await poll_until(are_there, within_s=within_s)
    return found


async def find_differences(testbed: Testbed, arguments: argparse.Namespace) -> list[str]:
    """Stop the load, and compare every row of every shard with the operations that were put."""
    for flow in testbed.flows:
        await flow.producer.stop()
    differences = []
    if not await testbed.wait_until_applied(testbed.urls, within_s=arguments.within):
        differences.append("not all operations were applied in the end")
    differences += await testbed.find_differences()
    if testbed.dead_letters:
        differences.append(f"{len(testbed.dead_letters)} dead letters, such as {testbed.dead_letters[0]}")
    return differences


def print_figures(console: Console, restore: Restore, differences: list[str]) -> None:
    console.print(f"base backup made in {restore.backup_s:.1f} s; {restore.age_s:.0f} s old when it was restored")
    console.print(f"{restore.lost} operations lost with the server, {restore.missing} of them not applied again")
    if restore.caught_up_s is not None:
        console.print(
            f"first operation applied {restore.first_s:.1f} s after the restored server answered, the last lost one"
            f" after {restore.caught_up_s:.1f} s: {restore.rate:.0f} operations/s"
        )
    console.print(f"lost, done twice, out of order or misplaced: {len(differences) or 'nothing'}")
    for difference in differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
