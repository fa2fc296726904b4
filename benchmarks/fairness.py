"""Measure what tenants that flood the stream do to the other tenants of their Postgres shard.

    python -m benchmarks.fairness [--scenario lists,patches] [--seconds 40] [--read fan-out] [--trouble] [--json]

Ten tenants are on one Postgres shard; each scenario has a stack of its own, with a worker and two producers, each a
separate process. The quiet tenants put small operations, mostly creates, at a steady rate. The loud tenants put nothing
in the control, and in the flood nine tenths of what the quotas of their stream shards allow; the local Kinesis enforces
the quotas. Compared is arrival → committed of the quiet tenants' operations that arrived in either phase, from the
shard's own rows. Their `completed_at` is the moment at which a transaction has its locks: the wait for earlier
transactions counts, the work of the operation's own does not. Once the backlog is applied, the rows of all tenants and
the order of their operations are compared with the records that were put. Exit status 1 when the quiet tenants' p99 is
more than 2.5 times the control's (with `--read fan-out`: more than 150 ms) or a row differs.

Of `orders`, order events take the place of records, and all must be applied in the end; without `--trouble`.

With `--trouble` two workers share the stream. In the middle of each flood one is killed and replaced, and the stream is
split to twice its stream shards; then only the rows decide the exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import asyncpg
from rich.console import Console
from rich.table import Table
from support.load.chain_checker import QUERY_TIMEOUT_S, count_completed
from support.load.console import open_console
from support.load.testbed import Flow, PhaseResult, Testbed
from support.postgres.faults import frozen, slowed
from support.rows import fetch

from benchmarks.flood_plan import FloodPlan
from benchmarks.targets import (
    MISSING,
    PerformanceTarget,
    add_kinds,
    format_number,
    print_differences,
    ratio_of,
    report_runs,
)
from simplu_local.aws_server.faults import SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import poll_until
from simplu_local.verify.comparison import percentile
from simplu_local.workload.order_events import OrderEvent, send_events
from simplu_local.workload.producer import open_client
from simplu_local.workload.workload import Tenant

P99_MOST_RATIO: Final = 2.5
PUSHED_P99_MOST_S: Final = 0.15
TENANTS: Final = 10
QUIET_TYPES: Final = 8
QUIET_CYCLE: Final = ("create",) * 8 + ("patch", "read")
QUIET_INTERVAL_S: Final = 0.05
LOUD_INTERVAL_S: Final = 0.1
# Of the 1,000 records and 1 MiB a second of a stream shard: the quiet tenants and what is late need room too.
LOUD_RECORDS_PER_S: Final = 900.0
UNCHECKED_RECORDS_PER_S: Final = 500.0  # smaller: a burst beyond the quota would end the producer
LOUD_BYTES_PER_S: Final = 900_000.0
LATE_MOST_S: Final = 0.1  # more at once would be beyond the quotas
SMALL_BYTES: Final = 160  # a document of about 200 bytes
DOCUMENT_BYTES: Final = 2000
LISTED_COUNT: Final = 100
STATEMENT_S: Final = 0.3
WARM_UP_S: Final = 8.0  # more than the five seconds after which a subscription may be taken
FLOODS_WITHIN_S: Final = 30.0
APPLIED_WITHIN_S: Final = 600.0
ORDER_COUNT: Final = 3000
ORDER_INTERVAL_S: Final = 0.5
ORDERS_SQL: Final = """
SELECT resource_id AS id, extract(epoch FROM completed_at - requested_at)::float8 AS late_s FROM operations
WHERE source = 'sqs' AND resource_type = 'order'
"""
LISTS_SQL: Final = """
SELECT count(*) FROM operations
WHERE operation = 'list' AND jsonb_array_length(result->'items') IS DISTINCT FROM $1
"""
# A request id ends with the number of its operation; a partition key is that of a tenant and a resource type.
ORDER_SQL: Final = """
SELECT count(*) FILTER (WHERE number < before) FROM (
    SELECT number, lag(number) OVER (PARTITION BY tenant_id, resource_type ORDER BY completed_at, position) AS before
    FROM (
        SELECT *, substring(request_id FROM '[0-9]+$')::bigint AS number FROM operations WHERE source = 'kinesis'
    ) AS numbered
) AS ordered
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of flood: what the loud tenants put. *types*: of each tenant, by default one on each stream shard.

    With *statement_s* their Postgres shard takes so much longer for each statement that writes the log. They are on the
    quiet ones' shard, or, in *shards*, on the last one; with *locations* they are one business with so many. Nothing of
    *spoiled* records, and of tenants that are not *registered*, is checked.
    """

    what: str
    cycle: tuple[str, ...]
    documents: int = 1
    document_bytes: int = SMALL_BYTES
    padding_bytes: int = SMALL_BYTES
    stream_shards: int = 4
    types: int | None = None
    statement_s: float = 0.0
    locations: int = 0
    shards: int = 1
    loud: int = 0  # tenants that flood, each a business; 0: as many as are asked for
    replicas: int = 1
    spoiled: Literal["", "json", "type", "parts"] = ""
    is_registered: bool = True

    @property
    def is_checked(self) -> bool:
        """Whether all operations of the loud tenants succeed."""
        return self.is_registered and not self.spoiled

    async def split(self, testbed: Testbed, loud_count: int) -> tuple[tuple[Tenant, ...], tuple[Tenant, ...]]:
        """Return the loud and the quiet tenants; those that the testbed has not made are made."""
        own = testbed.tenants_of(testbed.server())
        if not self.is_registered:
            return tuple(Tenant("nobody", f"shop-{one}", "dental") for one in range(self.locations)), own
        if self.locations:
            loud = tuple(Tenant("chain", f"shop-{one}", "dental") for one in range(self.locations))
            registry = testbed.stack.citrus.registry
            for tenant in loud:
                registry.place(tenant.tenant_id, registry.shards[next(iter(testbed.stack.servers))])
            await testbed.register(loud)
            return loud, own[: TENANTS - 1]
        if self.shards > 1:
            return testbed.tenants_of(testbed.server(self.shards - 1))[: self.loud or loud_count], own
        return own[: self.loud or loud_count], own[self.loud or loud_count :]

    def plan(self, tenants: tuple[Tenant, ...]) -> FloodPlan:
        """Return the operations of the loud tenants."""
        return FloodPlan(
            "loud",
            tenants,
            types=self.types or max(1, self.stream_shards // max(1, self.locations)),
            padding_bytes=self.padding_bytes,
            cycle=self.cycle,
            documents=self.documents,
            document_bytes=self.document_bytes,
            stream_shards=self.stream_shards,
            spoiled=self.spoiled,
        )

    def rate_of(self, plan: FloodPlan) -> float:
        """Return the records/s of the loud tenants together: as much as their stream shards take of such records."""
        first = plan.documents * plan.chain_count
        items = [plan.item(first + step * plan.chain_count) for step in range(len(plan.cycle))]
        record_bytes = statistics.mean(len(one.record) + len(one.partition_key) for one in items)
        flooded = min(self.stream_shards, plan.chain_count)
        records_per_s = LOUD_RECORDS_PER_S if self.is_checked else UNCHECKED_RECORDS_PER_S
        return flooded * min(records_per_s, LOUD_BYTES_PER_S / record_bytes)


LISTS_CYCLE: Final = ("list", "create", "create") * 6 + ("list", "patch", "read")
CREATES_CYCLE: Final = ("create",) * 18 + ("patch", "read")


def _lists(documents: int = LISTED_COUNT, **more: Any) -> Scenario:
    what = f"lists of {documents} documents of 2 KB, with twice as many small operations"
    told = "".join(f"; {name}: {value}" for name, value in more.items())
    return Scenario(what + told, LISTS_CYCLE, documents=documents, document_bytes=DOCUMENT_BYTES, **more)


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "lists": _lists(),
    "documents": Scenario("creates of 2 KB", CREATES_CYCLE, padding_bytes=DOCUMENT_BYTES),
    "patches": Scenario("patches of one resource", ("patch",) * 19 + ("read",), types=1),
    "small-creates": Scenario("small creates on 16 stream shards", CREATES_CYCLE, stream_shards=16),
    "slow-shard": Scenario(
        f"creates of 2 KB, on a shard that takes {STATEMENT_S:g} s longer for each write of the log",
        CREATES_CYCLE,
        padding_bytes=DOCUMENT_BYTES,
        statement_s=STATEMENT_S,
    ),
    **{f"chain-{count}": _lists(locations=count) for count in (5, 8, 12, 20)},
    "chain-100": _lists(20, locations=100),  # more would begin beyond the quotas, as those in parts
    "chain-20-replicas": _lists(locations=20, replicas=2),
    "other-shard": Scenario(
        f"ten tenants' creates of 2 KB, on another shard that takes {STATEMENT_S:g} s longer for each write of the log",
        CREATES_CYCLE,
        padding_bytes=DOCUMENT_BYTES,
        statement_s=STATEMENT_S,
        shards=2,
        loud=TENANTS,
    ),
    "lone-shard": Scenario(
        "the same of one tenant, which has the slow shard alone",
        CREATES_CYCLE,
        padding_bytes=DOCUMENT_BYTES,
        statement_s=STATEMENT_S,
        shards=2,
        loud=1,
    ),
    "no-json": Scenario("records that are no JSON", CREATES_CYCLE, spoiled="json"),
    "dead-letters": Scenario("creates without a resource type", CREATES_CYCLE, spoiled="type"),
    "nobody": Scenario(
        "creates of 3,000 tenants that do not exist", CREATES_CYCLE, locations=3000, is_registered=False
    ),
    "parts": _lists(40, spoiled="parts"),
    "orders": Scenario("3,000 order events of 150 tenants of a shard that does not answer", (), shards=2, loud=150),
}


@dataclass(frozen=True)
class FairnessRun:
    """One scenario. Rates are operations/s of the loud tenants together."""

    name: str
    read: str
    loud_count: int
    control: PhaseResult
    flood: PhaseResult
    wanted_rate: float
    put_rate: float
    applied_rate: float

    @property
    def p50_ratio(self) -> float | None:
        """The quiet tenants' p50 ÷ the control's."""
        return ratio_of(self.flood.p50_s, self.control.p50_s)

    @property
    def p99_ratio(self) -> float | None:
        """The quiet tenants' p99 ÷ the control's."""
        return ratio_of(self.flood.p99_s, self.control.p99_s)

    @property
    def target(self) -> PerformanceTarget:
        """The target of the scenario."""
        if self.read == "fan-out":  # here the control's p99 is a few milliseconds
            return PerformanceTarget(
                f"{self.name}: p99 of quiet tenants", self.flood.p99_s, PUSHED_P99_MOST_S, unit="s"
            )
        return PerformanceTarget(f"{self.name}: p99 of quiet tenants ÷ control's", self.p99_ratio, most=P99_MOST_RATIO)

    def as_json(self) -> dict[str, Any]:
        """Return the run for `--json`."""
        return {
            "scenario": self.name,
            "read": self.read,
            "loudTenants": self.loud_count,
            "phases": [one.as_json() for one in (self.control, self.flood)],
            "p50Ratio": self.p50_ratio,
            "p99Ratio": self.p99_ratio,
            "loudWantedPerSecond": self.wanted_rate,
            "loudPutPerSecond": self.put_rate,
            "loudAppliedPerSecond": self.applied_rate,
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_kinds(parser, "--scenario", SCENARIOS)
    parser.add_argument("--loud", type=int, choices=(1, 3), default=1, help="tenants that flood")
    parser.add_argument("--rate", type=float, default=15.0, help="operations/s of each quiet tenant")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each flood; its control takes half of it")
    parser.add_argument("--applied-seconds", type=float, default=APPLIED_WITHIN_S, help="maximum for the backlog")
    parser.add_argument("--read", choices=("polling", "fan-out"), default="polling", help="how the stream is read")
    parser.add_argument("--trouble", action="store_true", help="kill a worker and split the stream in each flood")
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json, piped_width=150)
    runs: list[FairnessRun] = []
    differences: list[str] = []
    for name in arguments.scenario:
        console.print(f"{name}: {SCENARIOS[name].what}")
        measured, found = await (measure_orders if name == "orders" else measure)(name, arguments)
        runs.append(measured)
        differences += [f"{name}: {line}" for line in found]
    print_results(console, runs, differences)
    targets = [] if arguments.trouble else [one.target for one in runs]
    return report_runs(runs, targets, differences, as_json=arguments.json)


async def measure(name: str, arguments: argparse.Namespace) -> tuple[FairnessRun, list[str]]:
    """Measure a control and a flood; return them, and the differences of the rows once all are applied."""
    scenario = SCENARIOS[name]
    replicas = 2 if arguments.trouble else scenario.replicas
    async with run_testbed(scenario, arguments.read, replicas=replicas) as testbed:
        loud_tenants, quiet_tenants = await scenario.split(testbed, arguments.loud)
        plan = scenario.plan(loud_tenants)
        rate = scenario.rate_of(plan)
        quiet = start_quiet(testbed, quiet_tenants, arguments.rate)
        async with contextlib.AsyncExitStack() as slow:
            if scenario.statement_s:
                server = testbed.server(scenario.shards - 1)
                await slow.enter_async_context(slowed(server, "log_rows", statement_s=scenario.statement_s))
            await asyncio.sleep(WARM_UP_S)
            async with testbed.phase("control"):
                await asyncio.sleep(arguments.seconds / 2)
            loud = testbed.start_flow(
                plan,
                rate=rate,
                interval_s=LOUD_INTERVAL_S,
                late_most_s=LATE_MOST_S,
                is_checked=scenario.is_checked,
            )
            await wait_for_first(testbed, loud)
            async with testbed.phase("flood"):
                put_before = loud.producer.put_count
                await asyncio.sleep(arguments.seconds / 2)
                if arguments.trouble:
                    await testbed.replace_killed()
                    await testbed.reshard(2 * scenario.stream_shards)
                await asyncio.sleep(arguments.seconds / 2)
                put_count = loud.producer.put_count - put_before
            await asyncio.gather(loud.producer.stop(), quiet.producer.stop())
        unchecked = () if scenario.is_checked else loud_tenants
        is_applied = await wait_until_applied(testbed, scenario, unchecked, within_s=arguments.applied_seconds)
        control, flood = [await testbed.measure_phase(one, quiet.plan, testbed.urls) for one in testbed.phases]
        applied_count = await count_completed(testbed.urls, plan, flood.phase.begin, flood.phase.end)
        await testbed.stop_workers()
        differences = await find_differences(testbed, scenario, unchecked)
        if not is_applied:
            differences.append(f"some operations were not applied {arguments.applied_seconds:g} s after the flood")
    rates = [count / flood.phase.seconds for count in (put_count, applied_count)]
    return FairnessRun(name, arguments.read, len(loud_tenants), control, flood, rate, *rates), differences


async def measure_orders(name: str, arguments: argparse.Namespace) -> tuple[FairnessRun, list[str]]:
    """Measure order events of one tenant alone, and beside those of the tenants of a shard that does not answer."""
    loud_count = SCENARIOS[name].loud
    async with run_testbed(SCENARIOS[name], arguments.read, replicas=1, tenants=loud_count) as testbed:
        quiet, loud = (testbed.tenants_of(testbed.server(one)) for one in (0, 1))
        sent: dict[str, list[str]] = {"control": [], "flood": [], "loud": []}
        async with open_client("sqs", testbed.stack.env) as sqs:

            async def send(kind: str, tenants: Sequence[Tenant]) -> None:
                events = []
                for tenant in tenants:
                    order_id = f"{kind}-{len(sent[kind])}"
                    body = json.dumps({"type": "CREATE", "orderId": order_id, "data": {}})
                    events.append(OrderEvent(tenant.tenant_id, order_id, body, tenant))
                    sent[kind].append(order_id)
                await send_events(sqs, testbed.stack.env["SQS_ORDER_EVENTS_QUEUE_URL"], events, on_sent=lambda *_: None)

            async def measure_phase(phase: str) -> None:
                async with testbed.phase(phase):
                    for _ in range(int(arguments.seconds)):
                        await send(phase, quiet[:1])
                        await asyncio.sleep(ORDER_INTERVAL_S)

            await measure_phase("control")
            async with frozen(testbed.server(1)):
                await send("loud", loud * (ORDER_COUNT // loud_count))
                await measure_phase("flood")
        done: dict[str, float] = {}

        async def are_applied() -> bool:
            done.update({row["id"]: row["late_s"] for url in testbed.urls for row in await fetch(url, ORDERS_SQL)})
            return len(done) == sum(map(len, sent.values()))

        is_applied = await poll_until(are_applied, within_s=arguments.applied_seconds)
        results = []
        for phase in testbed.phases:
            late_s = sorted(done[one] for one in sent[phase.name] if one in done)
            rate = len(late_s) / phase.seconds
            results.append(
                PhaseResult(phase, rate, percentile(late_s, 0.5), percentile(late_s, 0.99), late_s[-1], None)
            )
        await testbed.stop_workers()
    differences = [] if is_applied else ["some order events were not applied"]
    control, flood = results
    rate = ORDER_COUNT / flood.phase.seconds
    return FairnessRun(name, arguments.read, loud_count, control, flood, rate, rate, 0.0), differences


@contextlib.asynccontextmanager
async def run_testbed(
    scenario: Scenario, read: str, *, replicas: int, tenants: int = TENANTS
) -> AsyncIterator[Testbed]:
    """Run a testbed whose stream refuses what is beyond its quotas, read by polling or by `fan-out`."""
    testbed = Testbed(
        shards=scenario.shards,
        stream_shards=scenario.stream_shards,
        tenants_per_shard=tenants,
        replicas=replicas,
        worker_env={"KINESIS_READ": read},
    )
    async with testbed, asyncio.TaskGroup() as tasks:
        await send_commands(testbed.stack.kinesis_url, SetOptions(options={"write_throttling": True}))
        sampling = tasks.create_task(testbed.memory.run(), name="memory")
        yield testbed
        sampling.cancel()


def start_quiet(testbed: Testbed, tenants: tuple[Tenant, ...], rate: float) -> Flow:
    """Start the load of the quiet tenants, *rate* operations/s each."""
    plan = FloodPlan(
        "quiet",
        tenants,
        types=QUIET_TYPES,
        padding_bytes=SMALL_BYTES,
        cycle=QUIET_CYCLE,
        document_bytes=SMALL_BYTES,
    )
    return testbed.start_flow(plan, rate=rate * len(tenants), interval_s=QUIET_INTERVAL_S)


async def wait_for_first(testbed: Testbed, flow: Flow) -> None:
    """Wait until the producer of *flow* has put its first records."""

    async def has_put() -> bool:
        testbed.check_running()
        return flow.producer.put_count > 0

    if not await poll_until(has_put, within_s=FLOODS_WITHIN_S):
        raise SystemExit(f"expected the flood to begin within {FLOODS_WITHIN_S:g} s")


async def wait_until_applied(
    testbed: Testbed, scenario: Scenario, unchecked: Sequence[Tenant], *, within_s: float
) -> bool:
    """Wait until all operations are applied, but for those of the *unchecked* tenants."""
    if not unchecked:
        return await testbed.wait_until_applied(testbed.urls, within_s=within_s)

    async def is_equal() -> bool:
        return not await find_differences(testbed, scenario, unchecked)

    return await poll_until(is_equal, within_s=within_s)


async def find_differences(testbed: Testbed, scenario: Scenario, unchecked: Sequence[Tenant]) -> list[str]:
    """Return what differs from the records that were put, in the rows, in their order and in the results of lists.

    Except for the *unchecked* tenants.
    """
    differences = await testbed.find_differences([tenant.tenant_id for tenant in unchecked])
    if unchecked:
        return differences
    connection = await asyncpg.connect(testbed.urls[0], timeout=10, command_timeout=QUERY_TIMEOUT_S)
    try:
        if late := await connection.fetchval(ORDER_SQL):
            differences.append(f"{late} operations applied behind later ones of their partition key")
        if wrong := await connection.fetchval(LISTS_SQL, scenario.documents):
            differences.append(f"{wrong} lists without the {scenario.documents} documents before them")
    finally:
        await connection.close()
    if letters := testbed.dead_letters:
        differences.append(f"{len(letters)} dead letters, such as {letters[0]}")
    return differences


def print_results(console: Console, runs: Sequence[FairnessRun], differences: Sequence[str]) -> None:
    """Print a table for people."""
    table = Table("scenario", "phase", "quiet op/s", "p50 ms", "p99 ms", "longest", "loud put/s", "applied/s", "")
    table.title = "arrival → committed of quiet tenants"
    for one in runs:
        table.add_row(one.name, *_quiet_cells(one.control, None, None))
        kept = "kept" if one.target.is_kept else "[bold red]MISSED[/]"
        table.add_row(
            f"{one.loud_count} loud",
            *_quiet_cells(one.flood, one.p50_ratio, one.p99_ratio),
            f"{one.put_rate:.0f} of {one.wanted_rate:.0f}",
            f"{one.applied_rate:.0f}",
            f"{one.target} p99: {kept}",
            end_section=True,
        )
    console.print(table)
    print_differences(console, differences)


def _quiet_cells(measured: PhaseResult, p50_ratio: float | None, p99_ratio: float | None) -> list[str]:
    def cell(seconds: float | None, ratio: float | None = None) -> str:
        text = MISSING if seconds is None else f"{seconds * 1000:.0f}"
        return text if ratio is None else f"{text} ({format_number(ratio)}×)"

    return [
        measured.phase.name,
        f"{measured.rate:.0f}",
        cell(measured.p50_s, p50_ratio),
        cell(measured.p99_s, p99_ratio),
        cell(measured.longest_s),
    ]


if __name__ == "__main__":
    main()
