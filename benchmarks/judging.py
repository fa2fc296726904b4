"""Measure the cost of schemas: a batch's creates in pure code, and whole batches of creates and patches on Postgres.

    python -m benchmarks.judging [--rounds 20] [--size 1000]

Printed are microseconds an operation: first of processor time for the judging alone, for documents of several sizes,
without a schema, and with one for another type or for theirs; then the time of batches on two databases of one server,
without and with a schema that all documents fit. Of the judging the quickest round counts, since other programs only
add to it; of the batches the median of the rounds, in which the two take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.markdown import Markdown
from support.load.console import log_errors_only, open_console
from support.postgres.databases import SHARD_ID, TEMPLATE, execute, make_template

from benchmarks.throughput.page import markdown_table
from benchmarks.writing import DURABLE, INSERT
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.operations.business_types import BusinessType, ResourceType
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Operation, Origin
from simplu_worker.operations.schema_judge import judges_of
from simplu_worker.shards.apply.judging import BatchJudges, TypeRules
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.vocabulary import Source, Validation

TENANTS: Final = 20
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "startsAt"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 200},
        "startsAt": {"type": "string", "pattern": "^\\d{4}-\\d\\d-\\d\\dT"},
        "status": {"enum": ["open", "done", "cancelled"]},
        "price": {"type": "number", "minimum": 0},  # a `multipleOf` of cents alone would take two microseconds more
        "email": {"type": ["string", "null"]},
        "address": {"$ref": "#/$defs/address"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
    },
    "$defs": {
        "address": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}},
        "item": {
            "type": "object",
            "required": ["sku"],
            "properties": {"sku": {"type": "string"}, "count": {"type": "integer", "minimum": 1}},
        },
    },
}
DOCUMENT: Final = {
    "name": "Ana Maria Lopez",
    "startsAt": "2026-03-02T10:30:00+01:00",
    "status": "open",
    "price": 49.90,
    "email": "ana@simplu.example",
    "address": {"street": "Main street 5", "city": "Berlin", "zip": "10115"},
    "items": [],
    "comment": "the usual one, by the window",
}
ORIGIN: Final = Origin(Source.KINESIS, "bench", datetime.now(UTC), "shardId-000000000000", "1")


def document(items: int) -> dict[str, Any]:
    """Return a document with so many items."""
    return DOCUMENT | {"items": [{"sku": f"A-{number}", "count": number + 1} for number in range(items)]}


def operation(kind: str, number: int, run: str, data: dict[str, Any]) -> Operation:
    """Return an operation on the resource *number* of a run."""
    record = {
        "operation": kind,
        "businessId": "bench",
        "locationId": str(number % TENANTS),
        "resourceType": "booking",
        "resourceId": f"{run}-{number}",
        "requestId": f"{kind}-{run}-{number}",
        "timestamp": "2026-03-01T12:00:00Z",
        "data": data,
    }
    decoded = decode_operation(json.dumps(record).encode(), ORIGIN, 2**24, 100)
    if not isinstance(decoded, Operation):
        raise SystemExit(f"expected an operation, got {decoded}")
    return decoded


def judge_alone(size: int, rounds: int) -> list[list[str]]:
    """Return a line of the table for each size of documents."""
    types = [ResourceType("booking", validation=Validation.ENFORCE, schema=SCHEMA)]
    judges, problems = judges_of(BusinessType("gym", {}, "trainer", types))
    if problems:
        raise SystemExit(str(problems))
    tenants = {f"bench-{number}": "gym" for number in range(TENANTS)}
    ways = [BatchJudges({}, {}), BatchJudges({"gym": TypeRules({"other": judges["booking"]}, {}, {})}, tenants)]
    ways.append(BatchJudges({"gym": TypeRules(judges, {}, {})}, tenants))
    lines = []
    for items in (0, 5, 50):
        batch = [operation("create", number, "alone", document(items)) for number in range(size)]
        took_us = [min(time_of(way, batch) for _ in range(rounds)) for way in ways]
        lines.append([f"{len(json.dumps(document(items))):,} bytes", *(f"{one / size:.2f}" for one in took_us)])
    return lines


def time_of(judges: BatchJudges, batch: Sequence[Operation]) -> float:
    """Return the microseconds for a batch, in which nothing may be found."""
    began = time.thread_time()
    found = judges.judge_sent(batch)
    took_us = (time.thread_time() - began) * 1e6
    if found:
        raise SystemExit(f"expected no findings, got {found}")
    return took_us


async def write_batches(size: int, rounds: int) -> list[list[str]]:
    """Return a line of the table for each kind of operation."""
    booking = {"name": "booking", "validation": "enforce", "schema": SCHEMA}
    definition = {"name": "gym", "defaultSettings": {}, "staffResourceType": "trainer", "resourceTypes": [booking]}
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database="judging", settings=DURABLE)
        await server.start()
        await make_template(server)
        await execute(server.url_of(TEMPLATE), INSERT, TENANTS)
        async with AsyncExitStack() as exits:
            writers = []
            for name in ("plain", "judged"):
                url = await server.create_database(name, template=TEMPLATE)
                if name == "judged":
                    query = "UPDATE business_types SET definition = $1 WHERE name = 'gym'"
                    await execute(url, query, json.dumps(definition))
                pool = ShardPool(ShardAddress(SHARD_ID, url), size=1)
                exits.push_async_callback(pool.close)
                writers.append(ShardWriter(pool, tenant_wait=timedelta(minutes=15)))
            took_us: dict[tuple[str, int], list[float]] = {}
            for number in range(rounds):
                for kind, data in (("create", document(5)), ("patch", {"status": "done"})):
                    for which, writer in enumerate(writers):
                        batch = [operation(kind, one, f"run{number}", data) for one in range(size)]
                        began = time.perf_counter()
                        outcomes = await writer.apply(batch)
                        took_us.setdefault((kind, which), []).append((time.perf_counter() - began) * 1e6)
                        if set(outcomes) != {SUCCEEDED}:
                            raise SystemExit(f"expected all to succeed, got {set(outcomes)}")
    return [
        [kind, *(f"{statistics.median(took_us[kind, which]) / size:.1f}" for which in (0, 1))]
        for kind in ("create", "patch")
    ]


def main(console: Console) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, default=1000, help="operations of a batch")
    arguments = parser.parse_args()
    head = ["µs a create, judging alone", "no schema", "of another type", "of its type"]
    console.print(Markdown(markdown_table(head, judge_alone(arguments.size, arguments.rounds))))
    written = uvloop.run(write_batches(arguments.size, arguments.rounds))
    console.print(Markdown(markdown_table(["µs an operation, written", "no schema", "schema"], written)))


if __name__ == "__main__":
    log_errors_only()
    main(open_console())
