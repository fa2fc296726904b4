"""A producer with one of the clients beside faults of Kinesis and a `kill -9` of the worker, and an oracle of order.

Each key is a resource: changes with a number that grows, each followed by a read. So the results of the reads tell in
which order the worker has applied the key's operations, and the stream tells in which order the client has put them.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import aiohttp
import msgspec
from support.clients.packages import build_wheel, installed_typescript
from support.full_stack import LOG_SQL
from support.peers.programs import SOURCES
from support.peers.shared_stream import TENANT, SharedStream

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess

Language: TypeAlias = Literal["python", "typescript"]
STREAM_SHARDS = 4
MAX_COUNT = 1000  # records in the client's queue: senders have to wait
KILL_AT = 1 / 3  # of what is queued
# Answers of PutRecords: lost before and after the records were put, refused, failed before and after.
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "cut", "applied": True},
    {"kind": "throttle"},
    {"kind": "cut"},
    {"kind": "fail", "applied": True},
    {"kind": "fail"},
)
ROUNDS = 3  # of all faults
PER_SECOND = 100  # operations at the least, for the time until it counts as hanging
START_S = 180.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What was sent, what it took, and what is wrong with the result: the last four have to be 0."""

    operations: int
    keys: int
    seconds: float
    operations_sent_again: int
    operations_twice_in_the_stream: int
    out_of_order_in_the_stream: int
    out_of_order_as_applied: int
    lost: int
    wrong_at_the_end: int

    @property
    def violations(self) -> int:
        return self.out_of_order_in_the_stream + self.out_of_order_as_applied + self.lost + self.wrong_at_the_end


class Report(msgspec.Struct):
    """What the program prints: operations sent again, those left at the end, the result of each key's last read."""

    retries: int
    left: int
    results: list[int | None]


@dataclass(frozen=True, slots=True)
class Program:
    """A program that sends with a client, and the environment in which it finds it."""

    command: tuple[str, ...]
    env: dict[str, str]


@contextmanager
def producer(language: Language, name: str = "client_producer") -> Iterator[Program]:
    """Build and install the client's package; give the program of that name that uses it."""
    with tempfile.TemporaryDirectory() as temporary:
        if language == "python":
            wheel = build_wheel(Path(temporary))
            yield Program((sys.executable, str(SOURCES / f"{name}.py")), {"PYTHONPATH": str(wheel)})
            return
        with installed_typescript() as installed:
            program = installed / f"{name}.mjs"
            program.write_bytes((SOURCES / f"{name}.mjs").read_bytes())
            yield Program(("node", str(program)), {})


async def run_program(program: Program, shared: SharedStream, *arguments: Path, within_s: float) -> bytes:
    """Run a program, which may have a plan, to its end; return what it printed."""
    env = shared.environment() | program.env | {"PATH": os.environ["PATH"], "HOME": str(shared.stack.group.directory)}
    process = await asyncio.create_subprocess_exec(*program.command, *arguments, stdout=-1, stderr=-1, env=env)
    try:
        out, errors = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, (errors + out).decode()[-3000:]
    return out


async def run_trial(shared: SharedStream, program: Program, folder: Path, *, operations: int, keys: int) -> Figures:
    """Send *operations* of *keys* resources, with all the trouble; return what came of it."""
    await shared.create(STREAM_SHARDS)
    within_s = START_S + operations / PER_SECOND
    queued = folder / "queued"
    queued.touch()
    with shared.replica() as worker:
        await worker.wait_ready()
        run = f"note-{secrets.token_hex(3)}"
        plan = {
            "run": run,
            "stream": shared.stream,
            "tenant": {"businessId": TENANT.business_id, "locationId": TENANT.location_id},
            "operations": operations,
            "keys": keys,
            "maxCount": MAX_COUNT,
            "queued": str(queued),
            "url": worker.url,
            "token": shared.stack.env["API_TOKEN"],
            "waitS": within_s,
        }
        path = folder / "plan.json"
        path.write_text(json.dumps(plan), encoding="utf-8")
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(make_faults(shared, lambda: count_lines(queued) / operations))
            tasks.create_task(kill_worker(worker, lambda: count_lines(queued) / operations))
            report = msgspec.json.decode(await run_program(program, shared, path, within_s=within_s), type=Report)
        seconds = time.monotonic() - began
        assert (report.left, len(report.results)) == (0, keys)
        sent = [tuple(json.loads(line)) for line in queued.read_text(encoding="utf-8").splitlines()]
        assert len(sent) == operations
        return Figures(
            operations,
            keys,
            round(seconds, 1),
            report.retries,
            *await compare_stream(shared, sent),
            *await compare_log(shared, sent, run),
        )


async def make_faults(shared: SharedStream, progress: Callable[[], float]) -> None:
    """Have PutRecords fail in all ways, spread over the time in which operations are queued."""
    faults = [fault for _ in range(ROUNDS) for fault in FAULTS]
    async with aiohttp.ClientSession() as http:
        for number, fault in enumerate(faults):
            assert await poll_until(_is_reached(progress, number / len(faults)), within_s=float("inf"))
            command = {"do": "fault", "action": "PutRecords", **fault}
            async with http.post(f"{shared.stack.kinesis_url}/_control", json=command) as answer:
                assert answer.status == 200, await answer.text()


async def kill_worker(worker: WorkerProcess, progress: Callable[[], float]) -> None:
    assert await poll_until(_is_reached(progress, KILL_AT), within_s=float("inf"))
    worker.kill()
    worker.start()
    await worker.wait_ready()


def _is_reached(progress: Callable[[], float], due: float) -> Any:
    async def is_reached() -> bool:
        return progress() >= due

    return is_reached


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


async def compare_stream(shared: SharedStream, sent: Sequence[tuple[int, int, str]]) -> tuple[int, int]:
    """Return how many operations the stream has twice, and how many keys in another order than they were queued."""
    put = await read_stream(shared)
    by_key: dict[int, list[str]] = defaultdict(list)
    key_of = {request_id: key for key, _, request_id in sent}
    for request_id in dict.fromkeys(put):
        by_key[key_of[request_id]].append(request_id)
    queued: dict[int, list[str]] = defaultdict(list)
    for key, _, request_id in sent:
        queued[key].append(request_id)
    return len(put) - len(set(put)), sum(by_key[key] != ids for key, ids in queued.items())


async def read_stream(shared: SharedStream) -> list[str]:
    """Return the request ids of all operations: in the order of each stream shard, one after the other."""
    found: list[str] = []
    async with shared.stack.aws_client("kinesis") as kinesis:
        for shard in (await kinesis.list_shards(StreamName=shared.stream))["Shards"]:
            where = {"StreamName": shared.stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator = (await kinesis.get_shard_iterator(**where))["ShardIterator"]
            while True:
                try:
                    page = await kinesis.get_records(ShardIterator=iterator, Limit=10_000)
                except kinesis.exceptions.ProvisionedThroughputExceededException:
                    await asyncio.sleep(0.2)  # the worker reads too
                    continue
                found += [
                    json.loads(one)["requestId"] for record in page["Records"] for one in record["Data"].splitlines()
                ]
                iterator = page["NextShardIterator"]
                if page["MillisBehindLatest"] == 0 and not page["Records"]:
                    break
    return found


async def compare_log(shared: SharedStream, sent: Sequence[tuple[int, int, str]], run: str) -> tuple[int, int, int]:
    """Return how many operations were applied out of order, are not in the log, and how many resources are wrong."""
    rows = {row["request_id"]: row for row in await shared.fetch(LOG_SQL, TENANT.tenant_id)}
    lost = [request_id for _, _, request_id in sent if request_id not in rows]
    astray = 0
    for _, step, request_id in sent:
        if row := rows.get(request_id):
            expected = ("succeeded", step // 2 if step % 2 else None)
            astray += (row["status"], row["n"]) != expected
    documents = await shared.fetch(
        """SELECT "resourceName" AS name, (data->>'n')::int AS n FROM resources WHERE "resourceName" LIKE $1""",
        f"{run}-%",
    )
    found = Counter((row["name"], row["n"]) for row in documents)
    expected_last = {key: step // 2 for key, step, _ in sent}
    right = Counter((f"{run}-{key}", n) for key, n in expected_last.items())
    return astray, len(lost), (found - right).total() + (right - found).total()
