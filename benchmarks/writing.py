"""Measure the cost of the row with the stream position that each batch writes along with its effects.

    python -m benchmarks.writing [--seconds 50] [--rounds 6] [--sizes 1 10 100 1000] [--least-ratio 0.9]

Starts one Postgres server, with fsync as in production: the shared one of the tests has it off. It has twins: two
shards with the same tenants, which get the same batches in turn, one of them with the reader's row and one without; one
pair with `synchronous_commit` on, as a shard should have it, and one with it off. In several rounds, by batch size,
`ShardWriter.apply` is timed, and the processor time of this process and of the backends is counted. Printed are the
median ratio of all batches, because other programs disturb single batches, and the least and the greatest median of a
round.

Then the row alone is written `--writes` times more, and the size of its table and the share of HOT updates (on the same
page) are printed. At the end the twins must have the same resources and the same log. Exit status 1 when they differ,
or when the median ratio of a batch size from 100 on is below `--least-ratio`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table
from support.load.console import log_errors_only, open_console
from support.postgres.databases import SHARD_ID, TEMPLATE, execute, make_template
from support.processes.resource_usage import cpu_seconds

from benchmarks.targets import PerformanceTarget, json_targets, targets_table
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.workload import documents
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Disposition, Operation, Origin
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.positions import attempt_claim, write_positions
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.types import PositionClaim, StreamPosition
from simplu_worker.vocabulary import Source

LEAST_RATIO = 0.9
BOUND_FROM_SIZE = 100  # smaller batches are those of a reader with few records
KINDS = ("with_row", "without")
COMMITS = ("on", "off")  # of synchronous_commit
WEIGHTS = {"create": 60, "update": 20, "patch": 15, "delete": 4, "list": 1}
TYPES = ("member", "class", "membership")
WARM_UP_SIZE = 1000
PAIRS_LEAST = 2
SEED = 7
STREAM = "bench"
STREAM_SHARD_ID = "shardId-000000000000"
FIRST_SEQUENCE_NUMBER = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898
STATISTICS_WITHIN_S = 10.0

INSERT = (
    "INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)"
    " SELECT 'bench-' || n, 'bench', n::text, 'gym', 'active', now() - interval '1 day', now() - interval '1 day'"
    " FROM generate_series(0, $1::int - 1) AS n"
)
ROW_SQL = """
SELECT n_tup_upd AS updates, n_tup_hot_upd AS hot_updates, pg_table_size(relid) AS table_bytes,
    pg_indexes_size(relid) AS index_bytes
FROM pg_stat_user_tables WHERE relname = 'stream_positions'
"""
CONTENT_SQL = """
SELECT
    (SELECT md5(string_agg(concat_ws('|', id, "resourceName", "resourceId", data, "lastUpdated"), ' '
        ORDER BY id, "resourceName", "resourceId")) FROM resources) AS resources,
    (SELECT md5(string_agg(concat_ws('|', tenant_id, request_id, operation, status, error), ' '
        ORDER BY tenant_id, request_id)) FROM operations) AS log,
    (SELECT count(*) FROM operations) AS count
"""
DURABLE = {"fsync": "on"}  # as on servers of production
TOKEN_SQL = "SELECT token::text FROM stream_positions"


class BatchPair(NamedTuple):
    """The seconds of one batch with the row and without: by the clock, and of this process's processor time."""

    with_row_s: float
    without_s: float
    with_row_processor_s: float
    without_processor_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """The batches of one size that both twins got in one round.

    Of times and ratios the median counts, because other programs disturb single batches.
    """

    commit: str
    size: int
    pairs: Sequence[BatchPair]
    server_s: Mapping[str, float]  # processor time of the twins' backends

    @property
    def ratio(self) -> float:
        """Operations a second with the row ÷ without, which is the inverse ratio of the times."""
        return statistics.median(pair.without_s / pair.with_row_s for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class SizeSummary:
    """All rounds of one batch size."""

    commit: str
    size: int
    rounds: Sequence[Round]

    @property
    def pairs(self) -> list[BatchPair]:
        """The batches of all rounds."""
        return [pair for one in self.rounds for pair in one.pairs]

    @property
    def ratio(self) -> float:
        """The median ratio of all batches."""
        return statistics.median(pair.without_s / pair.with_row_s for pair in self.pairs)

    def rate(self, kind: str) -> float:
        """Operations a second."""
        return self.size / statistics.median([float(getattr(pair, f"{kind}_s")) for pair in self.pairs])

    def client_us(self, kind: str) -> float:
        """Processor time of the client an operation, in µs: the mean, because the clock may be coarse."""
        return statistics.fmean(getattr(pair, f"{kind}_processor_s") for pair in self.pairs) / self.size * 1e6

    def server_us(self, kind: str) -> float:
        """Processor time of the backend an operation, in µs; 0 without /proc."""
        return sum(one.server_s[kind] for one in self.rounds) / (len(self.pairs) * self.size) * 1e6

    def as_json(self) -> dict[str, Any]:
        """Return the summary for programs."""
        ratios = [one.ratio for one in self.rounds]
        return {
            "synchronousCommit": self.commit,
            "size": self.size,
            "batches": len(self.pairs),
            "ratio": {"median": self.ratio, "leastRound": min(ratios), "mostRound": max(ratios)},
            "operationsPerSecond": {kind: self.rate(kind) for kind in KINDS},
            "clientMicrosecondsPerOperation": {kind: self.client_us(kind) for kind in KINDS},
            "serverMicrosecondsPerOperation": {kind: self.server_us(kind) for kind in KINDS},
            "moreMillisecondsPerBatch": statistics.median(p.with_row_s - p.without_s for p in self.pairs) * 1e3,
        }


class BatchLoad:
    """Makes random operations, the same in every run."""

    def __init__(self, tenants: int) -> None:
        self._random = Random(SEED)
        self._tenants = tenants
        self._ids: dict[tuple[int, str], list[str]] = defaultdict(list)  # of existing resources
        self._number = 0

    @property
    def position(self) -> str:
        """The position of the last operation, in the format of the row."""
        return f"{FIRST_SEQUENCE_NUMBER + self._number}/0"

    def next_batch(self, size: int) -> list[Operation]:
        """Return the next *size* operations."""
        return [self._next_operation() for _ in range(size)]

    def _next_operation(self) -> Operation:
        random, now = self._random, datetime.now(UTC)
        self._number += 1
        tenant, resource_type = random.randrange(self._tenants), random.choice(TYPES)
        ids = self._ids[tenant, resource_type]
        (kind,) = random.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))
        if not ids and kind != "list":
            kind = "create"
        members = {
            "operation": kind,
            "businessId": "bench",
            "locationId": str(tenant),
            "resourceType": resource_type,
            "timestamp": now.isoformat(),
            "requestId": f"request-{self._number}",
        }
        match kind:
            case "create":
                members["resourceId"] = f"r-{self._number}"
                ids.append(members["resourceId"])
            case "update" | "patch":
                members["resourceId"] = random.choice(ids)
            case "delete":
                members["resourceId"] = ids.pop(random.randrange(len(ids)))
        texts = {name: json.dumps(value) for name, value in members.items()}
        match kind:
            case "create" | "update":
                texts["data"] = documents.document(random)
            case "patch":
                texts["data"] = documents.patch_document(random)
            case "list":
                texts["filters"], texts["pagination"] = '{"status": "planned"}', '{"page": 1, "limit": 20}'
        record = "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"
        origin = Origin(
            source=Source.KINESIS,
            name=STREAM,
            arrived_at=now,
            stream_shard_id=STREAM_SHARD_ID,
            sequence_number=str(FIRST_SEQUENCE_NUMBER + self._number),
        )
        decoded = decode_operation(record.encode(), origin, max_bytes=2**20, list_limit=1000)
        if not isinstance(decoded, Operation):
            raise TypeError(str(decoded))
        return decoded


class Twins:
    """Two shards that get the same batches, one with a reader's row and one without."""

    def __init__(self, commit: str, pools: Sequence[ShardPool], tenants: int) -> None:
        self.commit = commit
        self.pools = tuple(pools)
        self.claim = PositionClaim(STREAM, STREAM_SHARD_ID)
        writers = [ShardWriter(pool, tenant_wait=timedelta(minutes=15)) for pool in pools]
        self._turns = list(zip(KINDS, writers, strict=True))
        self._load = BatchLoad(tenants)

    async def measure(self, size: int, seconds: float) -> Round:
        """Apply batches of *size* to both, for about *seconds*."""
        pairs: list[BatchPair] = []
        before = await self._read_server_s()
        while len(pairs) < PAIRS_LEAST or sum(pair.with_row_s + pair.without_s for pair in pairs) < seconds:
            pairs.append(await self._measure_pair(self._load.next_batch(size)))
        after = await self._read_server_s()
        return Round(self.commit, size, pairs, {kind: after[kind] - before[kind] for kind in KINDS})

    async def _measure_pair(self, operations: Sequence[Operation]) -> BatchPair:
        """Apply one batch to both twins, in alternating order."""
        self.claim.position = StreamPosition(self._load.position, datetime.now(UTC))
        took = {}
        self._turns.reverse()
        for kind, writer in self._turns:
            wall_s, processor_s = time.perf_counter(), time.process_time()
            outcomes = await writer.apply(operations, self.claim if kind == "with_row" else None)
            took[f"{kind}_s"] = time.perf_counter() - wall_s
            took[f"{kind}_processor_s"] = time.process_time() - processor_s
            if any(one.disposition is not Disposition.APPLIED or one.failure for one in outcomes):
                raise SystemExit(f"expected every operation to be applied, got {set(outcomes)}")
        return BatchPair(**took)

    async def _read_server_s(self) -> dict[str, float]:
        """Return the processor time that the backends of the twins have used."""
        used = {}
        for kind, pool in zip(KINDS, self.pools, strict=True):
            async with pool.connection() as connection:
                used[kind] = float(cpu_seconds([connection.get_server_pid()], lambda _: "backend")["backend"])
        return used

    async def rewrite_row(self, count: int) -> None:
        """Write the row *count* times, without any operation."""
        for number_of_write in range(count):
            self.claim.position = StreamPosition(f"{FIRST_SEQUENCE_NUMBER + number_of_write}/0")
            with attempt_claim(self.claim) as token:
                async with self.pools[0].transaction() as connection:
                    await connection.execute(QUERIES["skip_disk_wait"])
                    changed = await write_positions(connection, [(self.claim, token)])
            if changed:
                raise SystemExit("expected the row to be unchanged since this program wrote it")

    async def find_differences(self) -> list[str]:
        """Return the differences between the twins."""
        contents = [await fetch(pool.address.connection_string, CONTENT_SQL) for pool in self.pools]
        found = [
            f"synchronous_commit {self.commit}: the {what} of the twins differ"
            for what in ("resources", "log", "count")
            if contents[0][what] != contents[1][what]
        ]
        row = await fetch(self.pools[0].address.connection_string, TOKEN_SQL)
        if [row["token"]] != self.claim.fencing_tokens:
            found.append(f"synchronous_commit {self.commit}: the row has another token than its reader wrote")
        return found


def main() -> None:
    """Run the benchmark."""
    log_errors_only()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=50.0, help="of applying, in all rounds together")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 1000], help="operations a batch")
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--writes", type=int, default=10_000, help="of the row alone, at the end")
    parser.add_argument("--least-ratio", type=float, default=LEAST_RATIO)
    parser.add_argument("--json", action="store_true")
    sys.exit(uvloop.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json)
    rounds: list[Round] = []
    async with run_twins(arguments.tenants) as all_twins:
        cells = [(twins, size) for size in arguments.sizes for twins in all_twins]
        for twins in all_twins:
            await twins.measure(WARM_UP_SIZE, 0.0)
        for number_of_round in range(1, arguments.rounds + 1):
            for twins, size in cells:
                rounds.append(await twins.measure(size, arguments.seconds / arguments.rounds / len(cells)))
            ratios = [f"{one.size}: {one.ratio:.2f}" for one in rounds[-len(cells) :] if one.commit == COMMITS[0]]
            console.print(f"round {number_of_round}, with the row ÷ without, by batch size: {', '.join(ratios)}")
        before_s = time.monotonic()
        await all_twins[0].rewrite_row(arguments.writes)
        console.print(f"{arguments.writes} more writes of the row took {time.monotonic() - before_s:.0f} s")
        row = await read_row_statistics(all_twins[0], at_least=arguments.writes)
        differences = [one for twins in all_twins for one in await twins.find_differences()]
    summaries = [
        SizeSummary(twins.commit, size, [one for one in rounds if (one.commit, one.size) == (twins.commit, size)])
        for twins, size in cells
    ]
    targets = [
        PerformanceTarget(
            f"{one.size} operations a batch, synchronous_commit {one.commit}: with the row ÷ without",
            one.ratio,
            least=arguments.least_ratio,
        )
        for one in summaries
        if one.size >= BOUND_FROM_SIZE
    ]
    show(summaries, targets, row, differences, console)
    if arguments.json:
        sys.stdout.write(as_json(summaries, targets, row, differences) + "\n")
    return 0 if not differences and all(one.is_kept for one in targets) else 1


@asynccontextmanager
async def run_twins(tenants: int) -> AsyncIterator[list[Twins]]:
    """Run a server with two shards for each value of synchronous_commit."""
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database="writing", settings=DURABLE)
        await server.start()
        await make_template(server)
        await execute(server.url_of(TEMPLATE), INSERT, tenants)
        async with AsyncExitStack() as exits:
            all_twins = []
            for commit in COMMITS:
                pools = []
                for kind in KINDS:
                    url = await server.create_database(f"{kind}_{commit}", template=TEMPLATE)
                    await execute(url, f"ALTER DATABASE {kind}_{commit} SET synchronous_commit = {commit}")
                    pools.append(ShardPool(ShardAddress(SHARD_ID, url), size=1))
                    exits.push_async_callback(pools[-1].close)
                all_twins.append(Twins(commit, pools, tenants))
            yield all_twins


async def read_row_statistics(twins: Twins, *, at_least: int) -> Mapping[str, float]:
    """Return Postgres's statistics of the row. Closes the pool, because a backend reports the last ones at its end."""
    pool = twins.pools[0]
    await pool.close()

    async def is_counted() -> bool:
        return bool((await fetch(pool.address.connection_string, ROW_SQL))["updates"] >= at_least)

    if not await poll_until(is_counted, within_s=STATISTICS_WITHIN_S):
        raise SystemExit(f"expected Postgres to count {at_least} updates of the row within {STATISTICS_WITHIN_S:g} s")
    return dict(await fetch(pool.address.connection_string, ROW_SQL))


async def fetch(url: str, query: str) -> asyncpg.Record:
    """Fetch one row on a new connection."""
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(query)
    finally:
        await connection.close()
    if row is None:
        raise SystemExit("expected a row, got none")
    return row


def show(
    summaries: Sequence[SizeSummary],
    targets: Sequence[PerformanceTarget],
    row: Mapping[str, float],
    differences: Sequence[str],
    console: Console,
) -> None:
    """Print tables for people."""
    table = Table(
        "synchronous_commit", "a batch", "operations/s", "ratio (rounds)", "more a batch", "client's µs", "server's µs"
    )
    table.title = "with the reader's row, without; fsync on; processor time an operation"
    for one in map(SizeSummary.as_json, summaries):
        rates, ratio = one["operationsPerSecond"], one["ratio"]
        client, server = one["clientMicrosecondsPerOperation"], one["serverMicrosecondsPerOperation"]
        table.add_row(
            one["synchronousCommit"],
            str(one["size"]),
            f"{rates['with_row']:.0f}, {rates['without']:.0f}",
            f"{ratio['median']:.3f} ({ratio['leastRound']:.2f} to {ratio['mostRound']:.2f})",
            f"{one['moreMillisecondsPerBatch']:.2f} ms",
            *(f"{used['with_row']:.0f}, {used['without']:.0f}" for used in (client, server)),
        )
    console.print(table)
    console.print(targets_table(targets))
    hot = row["hot_updates"] / row["updates"]
    sizes = f"{row['table_bytes'] / 1024:.0f} KiB and {row['index_bytes'] / 1024:.0f} KiB of index"
    console.print(f"the row after {row['updates']} writes: {hot:.1%} of them HOT, its table has {sizes}")
    console.print(f"differences between twins: {len(differences) or 'none'}")
    for difference in differences:
        console.print(f"  {difference}")


def as_json(
    summaries: Sequence[SizeSummary],
    targets: Sequence[PerformanceTarget],
    row: Mapping[str, float],
    differences: Sequence[str],
) -> str:
    """Return the results as JSON for programs."""
    return json.dumps(
        {
            "sizes": [one.as_json() for one in summaries],
            "bounds": json_targets(targets),
            "row": dict(row),
            "differences": list(differences),
        },
        indent=2,
    )


if __name__ == "__main__":
    main()
