"""A standby without the last commits takes its primary's place, again and again under load: nothing may stay lost.

    python tests/acceptance/promotion.py [--rounds 10] [--how citrus] [--lag-operations 300]

Starts the embedded stack and the worker. In each round the standby of one Postgres shard stops receiving, its primary
commits some hundred operations more and is killed with -9, the standby is promoted and the worker follows: Citrus names
the new address (`citrus`), the connection string has both hosts (`multi-host`), or the static map names the standby as
the replica (`replica`). Then a new standby is made of the new primary. The rounds go through --variants in turn:

loaded               operations keep coming for the shard
idle                 nobody sends it anything any more, from before the primary's end on
restarted            the worker is killed with -9 before it can know of the promotion
interrupted          it is killed as soon as the first lost operation is back
idle-restarted       both, idle and restarted
resharded            what is lost is partly in stream shards that were closed meanwhile
resharded-restarted  both
caught-up            the standby goes on receiving until the primary's end

`--kill-every` kills one replica after the other with -9 the whole time, and starts it again; with `--round-every` the
rounds begin so many seconds apart. An hour of both is the soak test before a change of who applies what:

    python tests/acceptance/promotion.py --rounds 30 --round-every 120 --kill-every 20 --replicas 2

With `--synchronous` commits wait for the standby, so that the primary stands still once that is cut off. Exit status 0
only if all that a primary had and its standby had not was applied again, and every row is right in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from acceptance.struck_shard import How, Struck, left_by, request_ids
from rich.console import Console
from rich.table import Table
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Flow, Testbed
from support.rows import fetch_row, fetch_value

from benchmarks.targets import PerformanceTarget, format_number
from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until

SHARDS = 3
TENANTS_PER_SHARD = 4
WARM_UP_S = 2.0
LAG_WITHIN_S = 60.0
CHILDREN_S = 5.0  # their leases are made and taken, and their first records applied
SETTLE_S = 2.0  # checkpoints pass what the standby lacks
APPLIED_WITHIN_S = 60.0
LEASE_DURATION_S = 5.0
POLL_S = 0.1
PLAN_COUNT_SQL = "SELECT count(*) FROM operations WHERE starts_with(request_id, $1 || '-')"
RETURNED_SQL = "SELECT count(*), max(completed_at) FROM operations WHERE request_id = ANY($1::text[])"
FIRST_SQL = "SELECT min(completed_at) FROM operations WHERE completed_at >= $1"


class Kill(StrEnum):
    """When the worker is killed with -9."""

    BEFORE = "before the promotion"
    AMID = "amid the backfill"


@dataclass(frozen=True, slots=True)
class Variant:
    """What happens beside the promotion."""

    is_idle: bool = False
    kill: Kill | None = None
    is_resharded: bool = False
    lags: bool = True


VARIANTS = {
    "loaded": Variant(),
    "idle": Variant(is_idle=True),
    "restarted": Variant(kill=Kill.BEFORE),
    "interrupted": Variant(kill=Kill.AMID),
    "idle-restarted": Variant(is_idle=True, kill=Kill.BEFORE),
    "resharded": Variant(is_resharded=True),
    "resharded-restarted": Variant(is_resharded=True, kill=Kill.BEFORE),
    "caught-up": Variant(lags=False),
}


@dataclass(frozen=True, slots=True)
class Promotion:
    """What one promotion came to; seconds are from the moment when the standby took writes."""

    variant: str
    seen: int  # on the primary for everybody to see, and not on the standby
    lost: int  # in what the primary left, and not on the standby
    missing: int  # of these, not applied again
    first_s: float | None
    backfilled_s: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--how", type=How, choices=list(How), default=How.CITRUS)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated; default: %(default)s")
    parser.add_argument("--rate", type=float, default=200.0, help="operations/s, half of them the shard's")
    parser.add_argument("--lag-operations", type=int, default=300, help="at least, that the standby does not get")
    parser.add_argument("--stream-shards", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=1, help="of the worker; the first one is killed")
    parser.add_argument("--within", type=float, default=120.0, help="seconds until what was lost must be back")
    parser.add_argument("--synchronous", action="store_true", help="let commits wait for the standby")
    parser.add_argument("--stall", type=float, default=10.0, help="with --synchronous, seconds without a standby")
    parser.add_argument("--round-every", type=float, default=0.0, metavar="SECONDS", help="from one round to the next")
    parser.add_argument("--kill-every", type=float, metavar="SECONDS", help="kill a replica with -9 so often, in turn")
    parser.add_argument("--log", type=Path, help="copy the worker's log there in the end")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    console = open_console(piped_width=160)
    testbed = Testbed(
        shards=SHARDS,
        stream_shards=arguments.stream_shards,
        tenants_per_shard=TENANTS_PER_SHARD,
        replicas=0,  # it starts when the standby is there
        worker_env={"KINESIS_LEASE_DURATION_SECONDS": str(LEASE_DURATION_S)},
    )
    async with testbed:
        try:
            shard = Struck(testbed, arguments.how, is_synchronous=arguments.synchronous)
            await shard.begin(arguments.replicas)
            scenario = Scenario(testbed, shard, arguments, console)
            await scenario.run()
        finally:
            if arguments.log is not None and testbed.workers:
                arguments.log.write_bytes(testbed.worker.log_path.read_bytes())
    scenario.print()
    return scenario.status


class Scenario:
    """The rounds, and what came of them."""

    def __init__(self, testbed: Testbed, shard: Struck, arguments: argparse.Namespace, console: Console) -> None:
        self._testbed = testbed
        self._shard = shard
        self._arguments = arguments
        self._console = console
        self._split = False
        self._promotions: list[Promotion] = []
        self._kill_count = 0
        self._bounds: list[PerformanceTarget] = []
        self._differences: list[str] = []

    async def run(self) -> None:
        """Go through the rounds while the other shards have their own load, then compare every row."""
        testbed, names = self._testbed, self._arguments.variants.split(",")
        tenants = [tenant for tenant in testbed.tenants_of() if tenant not in self._shard.tenants]
        others = testbed.start_flow(ChainPlan("others", tuple(tenants)), rate=self._arguments.rate / 2)
        killing = asyncio.create_task(self._kill_in_turn())
        loop, begin = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        try:
            for one in range(self._arguments.rounds):
                await asyncio.sleep(begin + one * self._arguments.round_every - loop.time())
                promotion = await self._round(one + 1, names[one % len(names)])
                self._promotions.append(promotion)
                self._console.print(f"{one + 1}: {promotion}")
        finally:
            killing.cancel()
        await others.producer.stop()
        applied = await testbed.wait_until_applied(testbed.urls, within_s=self._arguments.within)
        self._bounds.append(PerformanceTarget("all was applied in the end", float(applied), least=1))
        self._differences = await testbed.find_differences()
        if testbed.dead_letters:
            self._differences.append(f"{len(testbed.dead_letters)} dead letters, such as {testbed.dead_letters[0]}")
        await testbed.stop_workers()

    async def _kill_in_turn(self) -> None:
        if (every_s := self._arguments.kill_every) is None:
            return
        for worker in itertools.cycle(self._testbed.workers):
            await asyncio.sleep(every_s)
            if worker.pid is not None:  # otherwise the round has killed it, and will start it
                worker.kill()
                worker.start()
                self._kill_count += 1

    async def _round(self, one: int, name: str) -> Promotion:
        variant, shard = VARIANTS[name], self._shard
        flow = self._testbed.start_flow(ChainPlan(f"struck-{one}", shard.tenants), rate=self._arguments.rate / 2)
        await self._prepare(variant, flow)
        seen = await request_ids(shard.primary.url)
        earlier, promoted_at, kept = await self._promote(variant)
        if variant.kill is Kill.AMID:
            await self._returned(seen - kept, least=1)
            self._testbed.worker.kill()
            self._testbed.worker.start()
        lost = await left_by(earlier) - kept
        missing = len(lost) - await self._returned(lost, least=len(lost))
        await self._testbed.worker.wait_ready()
        first_at = await self._first_after(promoted_at) if lost or not variant.is_idle else None
        await flow.producer.stop()
        _, last_at = await fetch_row(shard.primary.url, RETURNED_SQL, list(lost))
        await shard.renew(earlier)
        return Promotion(
            name,
            seen=len(seen - kept),
            lost=len(lost),
            missing=missing,
            first_s=seconds_between(promoted_at, first_at),
            backfilled_s=seconds_between(promoted_at, last_at) if not missing else None,
        )

    async def _prepare(self, variant: Variant, flow: Flow) -> None:
        await asyncio.sleep(WARM_UP_S)
        if variant.lags:
            await self._shard.standby.fall_behind()
            await self._lag()
        if variant.is_resharded:
            await self._reshard()
        if variant.is_idle:
            await self._applied(flow.plan, await flow.producer.stop())
        await asyncio.sleep(SETTLE_S)

    async def _promote(self, variant: Variant) -> tuple[PostgresServer, datetime, set[str]]:
        """End the primary; return it, when its standby took writes, and what that one had."""
        await self._shard.primary.kill()
        await self._shard.standby.fall_behind()  # now at the latest: what it has is all that it will have
        kept = await request_ids(self._shard.standby.url)
        if variant.kill is Kill.BEFORE:
            self._testbed.worker.kill()
        earlier, promoted_at = await self._shard.promote()
        if variant.kill is Kill.BEFORE:
            self._testbed.worker.start()
        return earlier, promoted_at, kept

    async def _lag(self) -> None:
        kept = len(await request_ids(self._shard.standby.url))
        if self._arguments.synchronous:
            await asyncio.sleep(self._arguments.stall)
            return

        async def far_enough() -> bool:
            await asyncio.sleep(POLL_S)
            self._testbed.check_running()
            return bool(len(await request_ids(self._shard.primary.url)) - kept >= self._arguments.lag_operations)

        if not await poll_until(far_enough, within_s=LAG_WITHIN_S):
            raise SystemExit(f"less than {self._arguments.lag_operations} operations in {LAG_WITHIN_S:g} s")

    async def _first_after(self, moment: datetime) -> datetime | None:
        """Wait for the first operation that was applied after *moment*; return when that was."""
        found: datetime | None = None

        async def came() -> bool:
            nonlocal found
            await asyncio.sleep(POLL_S)
            found = await fetch_value(self._shard.primary.url, FIRST_SQL, moment)
            return found is not None

        await poll_until(came, within_s=self._arguments.within)
        return found

    async def _reshard(self) -> None:
        self._split = not self._split
        await self._testbed.reshard(self._arguments.stream_shards * (2 if self._split else 1))
        await asyncio.sleep(CHILDREN_S)

    async def _applied(self, plan: ChainPlan, count: int) -> None:
        """Wait until nothing that was put is on its way; a standby that is waited for lets nothing arrive."""

        async def arrived() -> bool:
            await asyncio.sleep(POLL_S)
            return bool(await fetch_value(self._shard.primary.url, PLAN_COUNT_SQL, plan.name) >= count)

        if not self._arguments.synchronous and not await poll_until(arrived, within_s=APPLIED_WITHIN_S):
            raise SystemExit(f"{count} operations of {plan.name} are not applied within {APPLIED_WITHIN_S:g} s")

    async def _returned(self, lost: Collection[str], *, least: int) -> int:
        """Wait until *least* of the lost operations are there again; return how many are, in the end."""
        found = 0

        async def returned() -> bool:
            nonlocal found
            await asyncio.sleep(POLL_S)
            found, _ = await fetch_row(self._shard.primary.url, RETURNED_SQL, list(lost))
            return bool(found >= min(least, len(lost)))

        await poll_until(returned, within_s=self._arguments.within)
        return found

    @property
    def status(self) -> int:
        is_right = not self._differences and all(bound.is_kept for bound in self._bounds)
        return 0 if is_right and not any(one.missing for one in self._promotions) else 1

    def print(self) -> None:
        arguments = self._arguments
        columns = ("round", "variant", "acknowledged, then lost", "lost", "applied again", "first commit", "backfilled")
        kind = "synchronous" if arguments.synchronous else "asynchronous"
        table = Table(*columns, title=f"standbys promoted without the last commits: {arguments.how}, {kind}")
        for one, each in enumerate(self._promotions, start=1):
            figures = (each.seen, each.lost, each.lost - each.missing)
            times = (format_number(each.first_s, "s"), format_number(each.backfilled_s, "s"))
            table.add_row(str(one), each.variant, *map(str, figures), *times)
        self._console.print(table)
        lost, missing = (sum(getattr(each, name) for each in self._promotions) for name in ("lost", "missing"))
        self._console.print(f"{lost} operations lost by {len(self._promotions)} promotions, {missing} gone for ever")
        if self._kill_count:
            self._console.print(f"{self._kill_count} times a replica was killed with -9 beside that")
        for bound in self._bounds:
            self._console.print(f"{bound.what}: {'yes' if bound.is_kept else 'NO'}")
        self._console.print(f"lost, done twice, out of order or misplaced: {len(self._differences) or 'nothing'}")
        for difference in self._differences:
            self._console.print(f"  {difference}", markup=False, soft_wrap=True)


def seconds_between(begin: datetime, end: datetime | None) -> float | None:
    return None if end is None else (end - begin).total_seconds()


if __name__ == "__main__":
    main()
