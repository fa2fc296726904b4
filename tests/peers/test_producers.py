"""Real producers: the KPL with its native process, and the AWS SDKs for Java, Go and JavaScript."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.full_stack import LOG_SQL, Chain
from support.network.tls_front import TlsFront
from support.peers.programs import (
    GO_SDK,
    JAVA_SDK,
    JAVASCRIPT_SDK,
    KPL,
    NODE_MODULES,
    GoProgram,
    JavaProgram,
    NodeProgram,
)
from support.peers.shared_stream import TENANT, SharedStream

from simplu_local.processes.loopback import poll_until
from simplu_local.workload.workload import Item

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM_SHARDS = 2
CHAINS = 8
CHANGES = 10  # of each chain, each followed by a read
KPL_RECORDS = 300
PUT_WITHIN_S = 120.0
APPLIED_WITHIN_S = 60.0
SDKS: dict[str, JavaProgram | GoProgram | NodeProgram] = {"Java": JAVA_SDK, "Go": GO_SDK, "JavaScript": JAVASCRIPT_SDK}

PutResult = tuple[str, int]
"""A stream shard and a sequence number."""


def items_of(chains: Sequence[Chain]) -> list[Item]:
    return [item for items in zip(*(chain.next_items(CHANGES) for chain in chains), strict=True) for item in items]


def write_records(path: Path, items: Sequence[Item]) -> None:
    lines = [f"{item.partition_key} {base64.b64encode(item.record).decode()}\n" for item in items]
    path.write_text("".join(lines), encoding="ascii")


async def put(shared: SharedStream, command: Sequence[str], items: Sequence[Item], path: Path) -> list[PutResult]:
    """Have a producer put *items*; return what it was answered for each."""
    write_records(path, items)
    env = shared.environment() | {
        "PATH": os.environ["PATH"],
        "NODE_PATH": str(NODE_MODULES),
        "TMPDIR": str(shared.stack.group.directory),
        "HOME": str(shared.stack.group.directory),
    }
    producer = await asyncio.create_subprocess_exec(*command, str(path), stdout=-1, stderr=-1, env=env)
    try:
        out, errors = await asyncio.wait_for(producer.communicate(), PUT_WITHIN_S)
    finally:
        if producer.returncode is None:
            producer.kill()
            await producer.wait()
    assert producer.returncode == 0, (errors + out).decode()[-3000:]
    results = [line.split() for line in out.decode().splitlines() if line.startswith("shardId-")]
    return [(stream_shard_id, int(number)) for stream_shard_id, number in results]


async def check_applied(shared: SharedStream, chains: Sequence[Chain]) -> None:
    """Wait until all operations of *chains* are in the log; each read has found the change before it."""
    expected = {request_id: outcome for chain in chains for request_id, outcome in chain.expected.items()}
    found: dict[str, tuple[str, str | None, int | None]] = {}

    async def are_applied() -> bool:
        rows = await shared.fetch(LOG_SQL, TENANT.tenant_id)
        found.update({row["request_id"]: (row["status"], row["error"], row["n"]) for row in rows})
        return expected.keys() <= found.keys()

    is_applied = await poll_until(are_applied, within_s=APPLIED_WITHIN_S)
    assert is_applied, f"{len(expected.keys() - found.keys())} of {len(expected)} operations are missing"
    assert {request_id: found[request_id] for request_id in expected} == expected


def by_partition_key(items: Sequence[Item], results: Sequence[PutResult]) -> dict[str, list[PutResult]]:
    assert len(results) == len(items)
    found = defaultdict(list)
    for item, result in zip(items, results, strict=True):
        found[item.partition_key].append(result)
    return found


@pytest.mark.peers(2)
@pytest.mark.parametrize(
    "language", [pytest.param(name, marks=() if name == "Java" else pytest.mark.nightly) for name in SDKS]
)
async def test_operations_of_an_aws_sdk_are_applied_once_and_in_order(
    shared: SharedStream, tmp_path: Path, language: str
) -> None:
    program = SDKS[language]
    where = [shared.stack.kinesis_url] if language == "Java" else []
    command = [*program.command(), *where, shared.stream]
    chains = [Chain(TENANT) for _ in range(CHAINS)]
    await shared.create(STREAM_SHARDS)
    with shared.replica() as worker:
        await worker.wait_ready()
        items = items_of(chains)
        results = await put(shared, command, items, tmp_path / "records")
        await check_applied(shared, chains)

    for answers in by_partition_key(items, results).values():
        assert len({stream_shard_id for stream_shard_id, _ in answers}) == 1
        assert all(before < after for (_, before), (_, after) in itertools.pairwise(answers))


@pytest.mark.peers(7)
async def test_aggregates_of_the_kpl_are_applied_once(shared: SharedStream, tmp_path: Path) -> None:
    """Its native process aggregates records of many partition keys for a stream shard; it speaks TLS alone.

    The KPL promises no order, so each operation is about a resource of its own.
    """
    await shared.create(STREAM_SHARDS)
    items = shared.new_items(KPL_RECORDS)
    program = KPL.command()
    async with TlsFront(shared.stack.kinesis_url, tmp_path) as front:
        with shared.replica() as worker:
            await worker.wait_ready()
            results = await put(shared, [*program, str(front.port), shared.stream], items, tmp_path / "records")
            await shared.wait_until_read(list(shared.put_ids))

    assert len(results) == len(items)
    assert len(set(results)) < len(items) / 10
    assert {stream_shard_id for stream_shard_id, _ in results} == {"shardId-000000000000", "shardId-000000000001"}
    assert await shared.resource_counts() == Counter(shared.put_ids)
