"""Measure what records made to cost as much as they can, bombs, cost the neighbours of their tenant.

    python -m benchmarks.bombs [--rate 100] [--seconds 8] [--rounds 3] [--bombs nulls,patches] [--json]

Starts the embedded stack with one Postgres shard and one stream shard, a worker and a producer, each a separate
process; so the neighbours share all with the tenant that sends the bombs. Each kind of bomb has a control just before
it: as many ordinary records of the same sizes, sent at the same times. So the control contains what Kinesis' quotas and
the sizes cost. Compared is arrival → committed of the neighbours' operations that arrived until the last bomb was
decided. At the end every row of the neighbours is compared with the records that were put. Exit status 1 when their p99
is more than twice the control's (of several rounds the median), a bomb is not decided, or a row differs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from rich.console import Console
from rich.table import Table
from support.aws.kpl_aggregates import bytes_field, packed_record, sealed
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Flow, PhaseResult, Testbed

from benchmarks.targets import (
    PerformanceTarget,
    add_kinds,
    format_number,
    print_differences,
    ratio_of,
    report_runs,
    targets_table,
)
from simplu_local.processes.loopback import poll_until
from simplu_local.workload.producer import open_client, wait_for_stream
from simplu_local.workload.workload import Tenant

P99_MOST_RATIO: Final = 2.0
WARM_UP_S: Final = 5.0
DECIDED_WITHIN_S: Final = 120.0
APPLIED_WITHIN_S: Final = 120.0
POLL_S: Final = 0.1
KIB: Final = 1024
SMALL_BYTES: Final = 63 * KIB
LARGE_BYTES: Final = 10 * KIB * KIB - 2 * KIB  # with the other members of the record and its key
MAX_RECORD_KIB: Final = 10 * KIB
BOMBER: Final = Tenant("bomber", "main", "dental")
TYPE: Final = "bomb"
ORDINARY: Final = "ordinary"  # the type of the control's resources
ORDINARY_COUNT: Final = 50
MEMBER_COUNT: Final = 60_000
PART_COUNT: Final = 160_000
PATCH_COUNT: Final = 1000
DEPTH: Final = 500
DONE_SQL: Final = "SELECT EXISTS (SELECT FROM operations WHERE tenant_id = $1 AND request_id = $2)"
STORE_SQL: Final = (
    'INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")'
    " VALUES ($1, 'dental', $2, $3, $4::text::jsonb, now(), now()) ON CONFLICT DO NOTHING"
)


class RecordMaker:
    """Makes records of the bombs' tenant, each with another request id."""

    def __init__(self) -> None:
        self.round = 0
        self._numbers = itertools.count()

    def record(
        self, operation: str, resource_id: str | None, data: str | None = None, *, filters: str | None = None
    ) -> bytes:
        """Return a record of one operation; *data* and *filters* are JSON texts."""
        return self._make(operation, TYPE, resource_id, {"data": data, "filters": filters})

    def ordinary(self, size_bytes: int) -> bytes:
        """Return an ordinary record of about that size."""
        number = next(self._numbers)
        text = f'{{"text": "{"x" * max(0, size_bytes - len(self._make("update", ORDINARY, "o-00", {"data": "{}"})))}"}}'
        return self._make("update", ORDINARY, f"o-{number % ORDINARY_COUNT}", {"data": text})

    def marker(self) -> tuple[str, bytes]:
        """Return a record that is decided behind all sent before, and its request id."""
        request_id = f"marker-{next(self._numbers)}"
        return request_id, self._make("read", "marker", "marker", {}, request_id)

    def _make(
        self,
        operation: str,
        resource_type: str,
        resource_id: str | None,
        texts: Mapping[str, str | None],
        request_id: str = "",
    ) -> bytes:
        members = {
            "operation": operation,
            "businessId": BOMBER.business_id,
            "locationId": BOMBER.location_id,
            "resourceType": resource_type,
            "resourceId": resource_id,
            "requestId": request_id or f"bomb-{next(self._numbers)}",
            "timestamp": "2026-01-01T00:00:00Z",
        }
        given = {name: json.dumps(value) for name, value in members.items() if value is not None}
        given |= {name: text for name, text in texts.items() if text is not None}
        return ("{" + ", ".join(f'"{name}": {text}' for name, text in given.items()) + "}").encode()


@dataclass(frozen=True, slots=True)
class Bomb:
    """A kind of bomb: the records to send within a phase, and before all phases the data of the resources they find."""

    what: str
    make: Callable[[RecordMaker], Sequence[bytes]]
    stored: Mapping[str, Callable[[], str]] | None = None


def repeated(number: str, size_bytes: int) -> str:
    """Return a document with an array of as many of *number* as *size_bytes* have room for."""
    return f'{{"a": [{",".join([number] * ((size_bytes - 10) // (len(number) + 1)))}]}}'


def members_text(count: int, prefix: str, value: str) -> str:
    """Return an object of *count* members."""
    return "{" + ",".join(f'"{prefix}{number}":{value}' for number in range(count)) + "}"


def nested(depth: int, text: str) -> str:
    """Return *text* within *depth* objects."""
    return '{"a":' * depth + text + "}" * depth


def elements(count: int) -> str:
    """Return an array of *count* objects."""
    return json.dumps([{"x": number} for number in range(count)])


def aggregate_of_empty_parts() -> bytes:
    """Return an aggregate of 960 KB in which every part is empty."""
    return sealed(bytes_field(1, b"k") + packed_record(0, None, b"") * PART_COUNT)


BOMBS: Final[Mapping[str, Bomb]] = {
    "numbers": Bomb(
        "63 KB of 1e999, stored, read and listed",
        lambda maker: [
            one
            for _ in range(4)
            for one in (
                maker.record("update", "n", repeated("1e999", SMALL_BYTES)),
                maker.record("read", "n"),
                maker.record("list", None),
            )
        ],
        {"n": lambda: "{}"},
    ),
    "beyond": Bomb(
        "63 KB of 1e131071",
        lambda maker: [maker.record("update", "n", repeated("1e131071", SMALL_BYTES)) for _ in range(8)],
        {"n": lambda: "{}"},
    ),
    "numbers-10m": Bomb("10 MiB of 1e999", lambda maker: [maker.record("update", "n", repeated("1e999", LARGE_BYTES))]),
    "beyond-10m": Bomb(
        "10 MiB of 1e131071", lambda maker: [maker.record("update", "n", repeated("1e131071", LARGE_BYTES))]
    ),
    "nulls": Bomb(
        f"{MEMBER_COUNT} nulls onto {MEMBER_COUNT} other members",
        lambda maker: [maker.record("patch", "wide", members_text(MEMBER_COUNT, "n", "null")) for _ in range(4)],
        {"wide": lambda: members_text(MEMBER_COUNT, "m", "1")},
    ),
    "parts": Bomb(f"an aggregate of {PART_COUNT} parts", lambda _: [aggregate_of_empty_parts()] * 4),
    "patches": Bomb(
        f"{PATCH_COUNT} patches that each add a little to one document, up to the bound",
        lambda maker: [
            maker.record("create", f"grown-{maker.round}", "{}"),
            *(
                maker.record("patch", f"grown-{maker.round}", members_text(100, f"p{number}-", "1"))
                for number in range(PATCH_COUNT)
            ),
        ],
    ),
    "filters": Bomb(
        "lists with filters of 10,000 elements",
        lambda maker: [maker.record("list", None, filters=f'{{"v": {elements(10_000)}}}') for _ in range(4)],
        {"filtered": lambda: f'{{"v": {elements(10_000)}, "w": 1}}'},
    ),
    "depth": Bomb(
        f"patches {DEPTH} levels deep, with 1,000 members in the deepest",
        lambda maker: [maker.record("patch", "deep", nested(DEPTH, members_text(1000, "n", "null"))) for _ in range(8)],
        {"deep": lambda: nested(DEPTH, members_text(1000, "m", "1"))},
    ),
}


@dataclass(frozen=True)
class BombRun:
    """One bomb in one round."""

    name: str
    control: PhaseResult
    during: PhaseResult
    is_decided: bool

    @property
    def ratio(self) -> float | None:
        """The neighbours' p99 ÷ the control's."""
        return ratio_of(self.during.p99_s, self.control.p99_s)

    def as_json(self) -> dict[str, Any]:
        """Return the run for `--json`."""
        phases = (self.control, self.during)
        return {"bomb": self.name, "phases": [one.as_json() for one in phases], "p99Ratio": self.ratio}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, help="operations/s of the neighbours")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each control, and of each kind of bomb")
    parser.add_argument("--rounds", type=int, default=3)
    add_kinds(parser, "--bombs", BOMBS)
    parser.add_argument("--p99-ratio", type=float, default=P99_MOST_RATIO, help="maximum, relative to the control")
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json, piped_width=150)
    runs, differences = await measure(arguments, console)
    targets = list(make_targets(runs, most_ratio=arguments.p99_ratio))
    print_results(console, runs, targets, differences)
    return report_runs(runs, targets, differences, as_json=arguments.json)


async def measure(arguments: argparse.Namespace, console: Console) -> tuple[list[BombRun], list[str]]:
    """Send all bombs, round after round; return the runs, and the differences of the neighbours' rows."""
    async with Testbed(shards=1, stream_shards=1, replicas=0) as testbed, asyncio.TaskGroup() as tasks:
        async with open_thrower(testbed) as thrower:
            await testbed.start_worker()
            sampling = tasks.create_task(testbed.memory.run(), name="memory")
            neighbours = testbed.tenants_of()
            await testbed.register([*neighbours, BOMBER])
            steady = testbed.start_flow(ChainPlan("steady", neighbours), rate=arguments.rate)
            for name in arguments.bombs:
                await thrower.store(BOMBS[name])
            await asyncio.sleep(WARM_UP_S)
            runs = []
            for thrower.maker.round in range(arguments.rounds):
                for name in arguments.bombs:
                    runs.append(await measure_bomb(testbed, steady, thrower, name, arguments.seconds))
                    console.print(
                        f"{name}: {format_number(runs[-1].ratio)} times the control's p99; {BOMBS[name].what}"
                    )
            put_count = await steady.producer.stop()
            is_applied = await thrower.wait_for_marker()
        await testbed.stop_workers()
        sampling.cancel()
        differences = await testbed.find_differences(ignored={BOMBER.tenant_id})
        if not is_applied:
            differences.append(f"some of {put_count} operations were not applied after {DECIDED_WITHIN_S:g} s")
        return runs, differences


class Thrower:
    """The sender of bombs and of ordinary records to the stream shard of the neighbours."""

    def __init__(self, kinesis: Any, stream: str, connection: asyncpg.Connection) -> None:
        self._kinesis = kinesis
        self._stream = stream
        self._connection = connection
        self.maker = RecordMaker()

    async def store(self, bomb: Bomb) -> None:
        """Store the resources that *bomb* finds, as a worker without bounds would."""
        for resource_id, data in (bomb.stored or {}).items():
            await self._connection.execute(STORE_SQL, BOMBER.tenant_id, TYPE, resource_id, data())

    async def throw(self, records: Sequence[bytes], seconds: float) -> bool:
        """Send *records* evenly within *seconds*, wait until all are decided, and return whether they are."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        for number, record in enumerate(records):
            await asyncio.sleep(max(0.0, began_at + number * seconds / len(records) - loop.time()))
            await self._put(record)
        await asyncio.sleep(max(0.0, began_at + seconds - loop.time()))
        return await self.wait_for_marker()

    async def wait_for_marker(self) -> bool:
        """Return whether all records sent so far, of the neighbours too, are decided in time."""
        request_id, record = self.maker.marker()
        await self._put(record)

        async def is_decided() -> bool:
            await asyncio.sleep(POLL_S)
            return bool(await self._connection.fetchval(DONE_SQL, BOMBER.tenant_id, request_id))

        return await poll_until(is_decided, within_s=DECIDED_WITHIN_S)

    async def _put(self, record: bytes) -> None:
        await self._kinesis.put_record(StreamName=self._stream, Data=record, PartitionKey="k")


@asynccontextmanager
async def open_thrower(testbed: Testbed) -> AsyncIterator[Thrower]:
    """Open the sender, and have the stream take records of up to 10 MiB."""
    stream = testbed.stack.env["KINESIS_STREAM_NAME"]
    connection = await asyncpg.connect(testbed.urls[0])
    try:
        async with open_client("kinesis", testbed.stack.env) as kinesis:
            await kinesis.delete_stream(StreamName=stream)  # the stack's, with records of up to 1 MiB
            await kinesis.get_waiter("stream_not_exists").wait(StreamName=stream, WaiterConfig={"Delay": 1})
            await kinesis.create_stream(StreamName=stream, ShardCount=1, MaxRecordSizeInKiB=MAX_RECORD_KIB)
            await wait_for_stream(kinesis, stream)
            yield Thrower(kinesis, stream, connection)
    finally:
        await connection.close()


async def measure_bomb(testbed: Testbed, steady: Flow, thrower: Thrower, name: str, seconds: float) -> BombRun:
    """Send ordinary records, then bombs of one kind, and measure the neighbours."""
    records = BOMBS[name].make(thrower.maker)
    async with testbed.phase("control"):
        is_control_decided = await thrower.throw([thrower.maker.ordinary(len(one)) for one in records], seconds)
    async with testbed.phase(name):
        is_decided = await thrower.throw(records, seconds)
    control, during = [await testbed.measure_phase(one, steady.plan, testbed.urls) for one in testbed.phases[-2:]]
    return BombRun(name, control, during, is_control_decided and is_decided)


def make_targets(runs: Sequence[BombRun], *, most_ratio: float) -> Iterator[PerformanceTarget]:
    """Yield the targets of each bomb: the median of its rounds."""
    for name in dict.fromkeys(one.name for one in runs):
        same = [one for one in runs if one.name == name]
        ratios = [one.ratio for one in same if one.ratio is not None]
        ratio = statistics.median(ratios) if len(ratios) == len(same) else None
        yield PerformanceTarget(f"{name}: p99 of the neighbours ÷ control's", ratio, most=most_ratio)
        decided = float(all(one.is_decided for one in same))
        yield PerformanceTarget(f"{name}: all decided within {DECIDED_WITHIN_S:g} s", decided, least=1)


def print_results(
    console: Console, runs: Sequence[BombRun], targets: Sequence[PerformanceTarget], differences: Sequence[str]
) -> None:
    """Print tables for people."""
    table = Table("phase", "seconds", "neighbours' op/s", "p50", "p99", "longest", "worker MiB", "worker, Postgres")
    for one in runs:
        for measured in (one.control, one.during):
            processors = measured.phase.processors
            table.add_row(
                measured.phase.name,
                f"{measured.phase.seconds:.1f}",
                f"{measured.rate:.0f}",
                format_number(measured.p50_s, "s"),
                f"{format_number(measured.p99_s, 's')} ({format_number(ratio_of(measured.p99_s, one.control.p99_s))}×)",
                format_number(measured.longest_s, "s"),
                "–" if measured.rss_bytes is None else f"{measured.rss_bytes.most / KIB**2:.0f}",
                f"{processors.get('worker', 0):.2f}, {processors.get('Postgres', 0):.2f}",
                end_section=measured is one.during,
            )
    console.print(table)
    console.print(targets_table(targets))
    print_differences(console, differences)


if __name__ == "__main__":
    main()
