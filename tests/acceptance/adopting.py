"""A shard of the TypeScript worker is adopted while operations keep coming, by the commands of docs/adopting.md.

    python tests/acceptance/adopting.py [--rows 200000] [--rate 60] [--kills 2]

Starts the embedded stack with one Postgres server that has the TypeScript worker's table and rows, and a process that
works as that worker does. Operations are put on the stream all the while. The commands of the page are run as they are
written; `systemctl` is one of ours. Before them the copy is begun, and killed with -9, --kills times, also as it goes
on. Exit status 0 only if every resource is in the end what the operations made of it, every old row that can be taken
is there, what cannot be is left where it was, and there is no dead letter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from support.rows import fetch, fetch_value
from support.typescript_worker import TypescriptShard

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import INHERITED, WorkerProcess
from simplu_local.stack.aws import put_businesses
from simplu_local.stack.stack import Stack
from simplu_local.workload.producer import open_client

PAGE = Path(__file__).parents[2] / "docs" / "adopting.md"
STATUSES = [1, 0, 0, 0, 0, 0]  # of the page's commands, in order: the first plan names what has to be chosen
TENANTS = {"9f0c-11": ("hotel", ["x-2", "x-3"]), "clinic": ("dental", ["main", "b-c"]), "gym": ("gym", ["west"])}
RESOURCES = 20  # of each tenant, to which the operations are
DUPLICATES, UNKNOWN, FAULTY = 50, 7, 3
POLL_S, LIMIT = 1.0, 100  # of the TypeScript worker
COMMAND_S, CAUGHT_UP_S, STEADY_S = 120.0, 60.0, 3.0
SYSTEMCTL = """#!/bin/sh
case "$1 $2" in
"stop resources-server") kill -TERM "$(cat old.pid)"; while [ -e old.pid ]; do sleep 0.05; done ;;
"start simplu-worker") touch started ;;
*) echo "unexpected: $*" >&2; exit 64 ;;
esac
"""
ROWS_SQL = """
INSERT INTO resources (business_location_id, resource_type, resource_id, data, created_at, updated_at, shard_id)
SELECT
    ($1::text[])[1 + number % cardinality($1::text[])], 'document', 'do2402-' || number,
    jsonb_build_object('number', number, 'text', repeat(md5(number::text), 8)),
    '2026-01-01'::timestamptz + number * interval '1 second', '2026-02-01'::timestamptz + number * interval '1 second',
    'shard-1'
FROM generate_series(1, $2) AS number
"""
AGAIN_SQL = """
INSERT INTO resources (business_location_id, resource_type, resource_id, data, created_at, updated_at, shard_id)
SELECT
    business_location_id, resource_type, resource_id, '{"again": true}', created_at, updated_at + interval '1 day',
    'shard-1'
FROM resources WHERE resource_type = 'document' ORDER BY id LIMIT $1
"""
MISSING_SQL = """
SELECT count(*) FROM (
    (
        SELECT DISTINCT ON (business_location_id, resource_id)
            business_location_id, resource_id, data::jsonb, created_at, updated_at
        FROM resources_before_adoption
        WHERE resource_type = 'document' AND jsonb_typeof(data) = 'object' AND business_location_id <> 'who-knows'
        ORDER BY business_location_id, resource_id, updated_at DESC
    )
    EXCEPT
    SELECT id, "resourceId", data, date, "lastUpdated" FROM resources WHERE "resourceName" = 'document'
) AS missing
"""
OURS_SQL = "SELECT count(*) FROM resources WHERE \"resourceName\" = 'document'"
LEFT_SQL = "SELECT count(*) FROM resources_before_adoption WHERE resource_type = 'document'"
STATE_SQL = """
SELECT id, "resourceId", (data ->> 'n')::int AS n FROM resources WHERE "resourceName" = 'patient'
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old-worker", help=argparse.SUPPRESS, metavar="URL")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rate", type=float, default=60.0, help="operations/s")
    parser.add_argument("--kills", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.old_worker is not None:
        asyncio.run(old_worker(arguments.old_worker))
        return
    sys.exit(asyncio.run(run(arguments)))


async def old_worker(url: str) -> None:
    """Work as the TypeScript worker does: from now on, once a second, without a checkpoint, errors passed over."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    pid_file = Path("old.pid")
    connection = await asyncpg.connect(url)
    shard = TypescriptShard(connection)
    async with open_client("kinesis", os.environ) as kinesis:
        stream = os.environ["KINESIS_STREAM_NAME"]
        listed = (await kinesis.list_shards(StreamName=stream))["Shards"]
        iterators = [
            (await kinesis.get_shard_iterator(StreamName=stream, ShardId=one["ShardId"], ShardIteratorType="LATEST"))[
                "ShardIterator"
            ]
            for one in listed
        ]
        await asyncio.to_thread(pid_file.write_text, str(os.getpid()), encoding="ascii")
        while not stopping.is_set():
            for place, iterator in enumerate(iterators):
                answer = await kinesis.get_records(ShardIterator=iterator, Limit=LIMIT)
                iterators[place] = answer["NextShardIterator"]
                for record in answer["Records"]:
                    await _work(shard, json.loads(record["Data"]))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), POLL_S)
    await connection.close()
    await asyncio.to_thread(pid_file.unlink)


async def _work(shard: TypescriptShard, message: Mapping[str, Any]) -> None:
    where = ((message["businessId"], message["locationId"]), message["resourceType"], message["resourceId"])
    try:
        if message["operation"] == "update":
            await shard.replace(*where, message["data"])
        else:
            await shard.delete(*where)
    except asyncpg.PostgresError as exc:
        print(f"passed over: {exc}", flush=True)  # noqa: T201


class Load:
    """Operations that come to the same whether they are done once, or some of them again in their order."""

    def __init__(self, tenants: Sequence[tuple[str, str]]) -> None:
        self._tenants = tenants
        self._number = 0
        self.expected: dict[tuple[str, str], int | None] = {}

    def next(self) -> dict[str, Any]:
        """Return the next operation: mostly an `update`; a tenth of the resources are deleted at their fifth."""
        self._number += 1
        tenant = self._tenants[self._number % len(self._tenants)]
        resource = self._number // len(self._tenants) % RESOURCES
        key = ("-".join(tenant), f"pa2402-{resource:05}")
        is_deleted = self.expected.get(key, 0) is None or (resource % 10 == 3 and self._number > 5 * RESOURCES)
        self.expected[key] = None if is_deleted else self._number
        return {
            "operation": "delete" if is_deleted else "update",
            "businessId": tenant[0],
            "locationId": tenant[1],
            "resourceType": "patient",
            "resourceId": key[1],
            "requestId": f"request-{self._number}",
            "timestamp": datetime.now(UTC).isoformat(),
            **({} if is_deleted else {"data": {"n": self._number}}),
        }

    async def run(self, env: Mapping[str, str], rate: float, stopping: asyncio.Event) -> None:
        async with open_client("kinesis", env) as kinesis:
            while not stopping.is_set():
                batch = [self.next() for _ in range(max(1, round(rate / 5)))]
                records = [
                    {
                        "Data": json.dumps(one).encode(),
                        "PartitionKey": f"{one['businessId']}-{one['locationId']}-patient",
                    }
                    for one in batch
                ]
                answer = await kinesis.put_records(StreamName=env["KINESIS_STREAM_NAME"], Records=records)
                assert not answer["FailedRecordCount"]
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), 0.2)


async def run(arguments: argparse.Namespace) -> int:
    async with Stack(shards=1, stream_shards=2, tenants_per_shard=20) as stack:
        server = next(iter(stack.servers.values()))
        folder = stack.group.directory / "work"
        folder.mkdir()
        tenants = [(business, location) for business, (_, places) in TENANTS.items() for location in places]
        for tenant in tenants:
            stack.citrus.registry.place("-".join(tenant), stack.citrus.registry.shards["shard-1"])
        async with stack.aws_client("dynamodb") as dynamodb:
            await put_businesses(dynamodb, stack.env["DYNAMODB_BUSINESS_INFO_TABLE"], TENANTS)
        await fill(server.url, tenants, arguments.rows)
        stack.write_env_file(folder / "worker.env")
        commands = Commands(stack, folder)
        await start_old_worker(stack, folder, server.url)
        load, load_ends = Load(tenants), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run(stack.env, arguments.rate, load_ends), name="load")
            for number in range(arguments.kills):
                await commands.killed(after_s=1.5 + 22 * number)  # the next one waits for the one before
            differences = await commands.run_page()
            env = stack.env | {"KINESIS_INITIAL_POSITION": commands.initial_position()}
            worker = WorkerProcess(stack.group, env)
            worker.start()
            await worker.wait_ready()
            await asyncio.sleep(STEADY_S)
            load_ends.set()
        differences += await caught_up(server.url, load)
        differences += await compared(server.url, arguments.rows)
        letters = await commands.run("simplu-worker dead-letters list --json --env-file worker.env")
        if (count := len(json.loads(letters[1])["letters"])) > 0:
            differences.append(f"expected no dead letter, got {count}")
        await worker.stop(within_s=35)
    print(f"{len(load.expected)} resources, lost or wrong: {differences or 'nothing'}")  # noqa: T201
    return 1 if differences else 0


async def fill(url: str, tenants: Sequence[tuple[str, str]], row_count: int) -> None:
    connection = await asyncpg.connect(url)
    shard = TypescriptShard(connection)
    await shard.make()
    await connection.execute(ROWS_SQL, ["-".join(tenant) for tenant in tenants], row_count)
    await connection.execute(AGAIN_SQL, DUPLICATES)
    for number in range(UNKNOWN):
        await shard.insert(("who", "knows"), "document", f"do-{number}", {})
    for number in range(FAULTY):
        await shard.insert(tenants[0], "document", f"bad-{number}", "[]")
    for tenant in tenants:
        for number in range(RESOURCES):
            await shard.insert(tenant, "patient", f"pa2402-{number:05}", {"n": 0})
    await connection.close()


async def start_old_worker(stack: Stack, folder: Path, url: str) -> None:
    """Start the TypeScript worker, as far as it goes, and wait until it reads."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    argv = [sys.executable, __file__, "--old-worker", url]
    stack.group.spawn(argv, log_path=folder / "old.log", env=inherited | stack.env, cwd=folder)

    async def reads() -> bool:
        return await asyncio.to_thread((folder / "old.pid").exists)

    if not await poll_until(reads, within_s=COMMAND_S):
        raise TimeoutError((folder / "old.log").read_text(encoding="utf-8"))


class Commands:
    """Commands as a person gives them, in a folder with `worker.env`."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._folder = folder
        programs = folder / "bin"
        programs.mkdir()
        systemctl = programs / "systemctl"
        systemctl.write_text(SYSTEMCTL, encoding="ascii")
        systemctl.chmod(stat.S_IRWXU)
        ours = programs / "simplu-worker"
        ours.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m simplu_worker "$@"\n', encoding="utf-8")
        ours.chmod(stat.S_IRWXU)
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ and name != "LOG_LEVEL"}
        self._env = inherited | {"PATH": f"{programs}:{os.environ['PATH']}"}
        self._stack = stack

    async def run(self, text: str) -> tuple[int, str]:
        """Run *text* in a shell; return its status and what it printed on stdout."""
        process = await self._started(text)
        async with asyncio.timeout(COMMAND_S):
            out, err = await process.communicate()
        print(f"$ {text.strip()}\n{out.decode()[-1500:]}{err.decode()[-1500:]}", flush=True)  # noqa: T201
        return process.returncode or 0, out.decode()

    async def run_page(self) -> list[str]:
        """Run every command block of the page; return what is not as it should be."""
        blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        started_at = time.monotonic()
        statuses = [(await self.run(block))[0] for block in blocks]
        print(f"all commands of the page: {time.monotonic() - started_at:.1f} s")  # noqa: T201
        differences = [] if statuses == STATUSES else [f"expected the statuses {STATUSES}, got {statuses}"]
        if not (self._folder / "started").exists():
            differences.append("expected the page to start the worker")
        return differences

    async def killed(self, *, after_s: float) -> None:
        process = await self._started("exec simplu-worker shards adopt shard-1 --prepare --env-file worker.env")
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), after_s)
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        print(f"begun, and killed after {after_s:.1f} s", flush=True)  # noqa: T201

    def initial_position(self) -> str:
        """Return where the worker is to begin, as the page has written it into its file."""
        text = (self._folder / "worker.env").read_text(encoding="utf-8")
        return str(re.findall(r"^KINESIS_INITIAL_POSITION=(.+)$", text, re.MULTILINE)[-1])

    async def _started(self, text: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-euc",
            text,
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


async def caught_up(url: str, load: Load) -> list[str]:
    """Wait until every resource is what the operations made of it; return those that are not."""
    wanted = {key: n for key, n in load.expected.items() if n is not None}
    end = time.monotonic() + CAUGHT_UP_S
    while True:
        rows = await fetch(url, STATE_SQL)
        there = {(row["id"], row["resourceId"]): row["n"] for row in rows}
        if there == wanted or time.monotonic() > end:
            break
        await asyncio.sleep(0.2)
    odd = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
    return [f"{key}: expected {wanted.get(key)}, got {there.get(key)}" for key in odd[:10]]


async def compared(url: str, row_count: int) -> list[str]:
    expected = {"missing": 0, "ours": row_count, "left": row_count + DUPLICATES + UNKNOWN + FAULTY}
    got = {
        name: await fetch_value(url, query)
        for name, query in zip(expected, (MISSING_SQL, OURS_SQL, LEFT_SQL), strict=True)
    }
    return [] if got == expected else [f"documents: expected {expected}, got {got}"]


if __name__ == "__main__":
    main()
