"""SIGHUP to a worker under load: it goes by the new map from then on, a bad one changes nothing, no row is amiss.

Also where the map names a server for a shard that a dump was restored into.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.postgres.databases import execute
from support.postgres.dumps import TAKE_NUMBERS, dumped

from simplu_local.demo.trial import Trial, TrialLoad, TrialResult, TrialSnapshot
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import INHERITED, WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids

SHARD_IDS = ("shard-1", "shard-2", "shard-3")
PATIENCE_S = 60.0


def place_of(key: str, count: int, retired: frozenset[int]) -> int:
    """Return the place of *key* in a list of shards (docs/shards.md), in the words of the paper's C++."""
    attempt = 0
    while True:
        digest = hashlib.md5((f"{key}#{attempt}" if attempt else key).encode()).digest()
        state, b, j = int.from_bytes(digest[:8], "big"), -1, 0
        while j < count:
            b = j
            state = ctypes.c_uint64(state * 2862933555777941757 + 1).value
            j = int((b + 1) * (float(1 << 31) / float((state >> 33) + 1)))
        if b not in retired:
            return b
        attempt += 1


def write_map(
    path: Path, urls: Mapping[str, str], *names: str, retired: Sequence[str] = (), was_retired: Sequence[str] = ()
) -> None:
    """Put a map in place by rename, as a careful person does."""
    shards = [
        {
            "shardId": name,
            "connectionString": urls[name],
            "retired": name in retired,
            "wasRetired": name in was_retired,
        }
        for name in names
    ]
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"shards": shards}))
    new.replace(path)


class Told:
    """What the worker logs, from where it was last looked."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._seen = 0

    async def after_hangup(self, event: str) -> dict[str, Any]:
        """Send SIGHUP, and wait for *event*."""
        self._seen = self._worker.log_path.stat().st_size
        self._worker.send_signal(signal.SIGHUP)
        found: list[dict[str, Any]] = []

        async def is_said() -> bool:
            self._worker.check_running()
            text = self._worker.log_path.read_bytes()[self._seen :].decode()
            lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
            found.extend(line for line in lines if line["event"] == event)
            return bool(found)

        assert await poll_until(is_said, within_s=PATIENCE_S), log_tail(self._worker.log_path)
        return found[0]


async def routes_of(env: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    """Return what `shards route` says of *keys*, which it reads from stdin."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "simplu_worker", "shards", "route", "-", "--json"),
        env=inherited | dict(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate("\n".join(keys).encode())
    assert process.returncode == 0
    return {route["key"]: route["shardId"] for route in json.loads(out)["routes"]}


async def homes_of(urls: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the shards that have a row of each tenant."""
    homes: dict[str, list[str]] = {}
    for shard_id in SHARD_IDS:
        for tenant_id in await read_tenant_ids([urls[shard_id]]):
            homes.setdefault(tenant_id, []).append(shard_id)
    return homes


@pytest.mark.slow(12)
async def test_worker_goes_by_a_new_map_when_it_gets_sighup(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    async with Stack(shards=3, stream_shards=2) as stack:
        urls = {name: stack.servers[name].url for name in SHARD_IDS}
        urls["spare"] = await stack.servers["shard-1"].create_database("spare")
        write_map(path, urls, "shard-1", "shard-2", "spare", retired=["spare"])
        env = stack.env | {"CITRUS_SERVER_URL": "", "CITRUS_API_KEY": "", "SHARD_MAP_FILE": str(path)}
        worker = WorkerProcess(stack.group, env | {"SQS_ORDER_EVENTS_QUEUE_URL": "", "SQS_PRIORITY_QUEUE_URL": ""})
        worker.start()
        await worker.wait_ready()
        told = Told(worker)

        async def run(load: TrialLoad, is_under_way: asyncio.Event, may_go_on: asyncio.Event) -> TrialResult:
            async def note(snapshot: TrialSnapshot) -> None:
                if snapshot.progress is not None and snapshot.progress.finished_count > load.operations // 4:
                    is_under_way.set()

            return await Trial(load, lambda: env, on_tick=note, at_half=may_go_on.wait).run()

        # The second half is put once the worker goes by the new map: on a slow machine, too, there is more to apply.
        is_under_way, is_reloaded = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            load = TrialLoad(500, seed=3, run="before", tenants=12, rate=150)
            first = tasks.create_task(run(load, is_under_way, is_reloaded))
            await asyncio.wait_for(is_under_way.wait(), 2 * PATIENCE_S)
            path.write_text(path.read_text()[:-20])
            refused = await told.after_hangup("shard_map.refused")
            write_map(path, urls, *SHARD_IDS, retired=["shard-2"], was_retired=["shard-3"])
            reloaded = await told.after_hangup("shard_map.reloaded")
            assert not first.done()
            is_reloaded.set()
        before = await homes_of(urls)
        second = await run(TrialLoad(100, seed=4, run="after", tenants=12), asyncio.Event(), is_reloaded)
        homes = await homes_of(urls)
        made_after = homes.keys() - before.keys()
        routes = await routes_of(env, sorted(homes))
        log = worker.log_path.read_text()
        await worker.stop(within_s=PATIENCE_S)

    assert (first.result().report.differences, second.report.differences) == ([], [])
    assert (refused["level"], reloaded["added"], reloaded["left"]) == ("error", ["shard-3"], ["spare"])
    assert before == {key: [SHARD_IDS[place_of(key, 3, frozenset({2}))]] for key in before}
    assert routes == {key: SHARD_IDS[place_of(key, 3, frozenset({1}))] for key in homes}
    assert {key: homes[key] for key in made_after} == {key: [routes[key]] for key in made_after}
    assert {home for key in made_after for home in homes[key]} == {"shard-1", "shard-3"}
    assert [url for url in urls.values() if url.partition("@")[0].rpartition(":")[2] in log] == []


@pytest.mark.slow(12)
async def test_worker_goes_on_on_a_server_that_a_dump_was_restored_into(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    async with Stack(shards=1, stream_shards=2) as stack:
        old = stack.servers["shard-1"]
        await execute(old.url, TAKE_NUMBERS)
        new = PostgresServer(stack.group, PostgresPrograms.find(stack.group.directory), database="other")
        await new.start()
        url = await new.create_database("restored", template="template0")
        write_map(path, {"shard-1": old.url}, "shard-1")
        env = stack.env | {"CITRUS_SERVER_URL": "", "CITRUS_API_KEY": "", "SHARD_MAP_FILE": str(path)}
        worker = WorkerProcess(stack.group, env | {"SQS_ORDER_EVENTS_QUEUE_URL": "", "SQS_PRIORITY_QUEUE_URL": ""})
        worker.start()
        await worker.wait_ready()
        told = Told(worker)
        is_under_way, is_reloaded = asyncio.Event(), asyncio.Event()

        async def note(snapshot: TrialSnapshot) -> None:
            if snapshot.progress is not None and snapshot.progress.finished_count > 100:
                is_under_way.set()

        # The second half is put once the worker goes to the new server: on a slow machine, too, it has more to apply.
        load = TrialLoad(400, seed=5, run="dump", tenants=6, rate=50)
        trial = asyncio.create_task(Trial(load, lambda: env, on_tick=note, at_half=is_reloaded.wait).run())
        await asyncio.wait_for(is_under_way.wait(), 2 * PATIENCE_S)
        await dumped(old.url, url)
        write_map(path, {"shard-1": url}, "shard-1")
        env["STACK_POSTGRES_URLS"] = url  # what the trial compares
        await old.stop()
        await told.after_hangup("shard_map.reloaded")
        is_reloaded.set()
        held = await eventually_logged(worker, "shards raise-numbers shard-1")
        assert not trial.done()
        await raise_numbers(env)
        result = await trial
        await worker.stop(within_s=PATIENCE_S)

    assert held
    assert result.report.differences == []


async def eventually_logged(worker: WorkerProcess, text: str) -> bool:
    """Wait until the worker's log has *text*."""

    async def is_said() -> bool:
        return text in worker.log_path.read_text()

    return await poll_until(is_said, within_s=PATIENCE_S)


async def raise_numbers(env: Mapping[str, str]) -> None:
    """Raise the numbers of the shard, as its error says."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    command = ("shards", "raise-numbers", "shard-1", "--apply")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simplu_worker", *command, env=inherited | dict(env)
    )
    assert await process.wait() == 0
