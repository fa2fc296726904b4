"""Provisioning killed at every step, and run twice at once while Citrus forgets and changes its answers.

    python tests/acceptance/provisioning.py [--kills 1] [--stride 1] [--rounds 20] [--seed 7]

Starts one Postgres server with two shards, and a local Citrus. `simplu-worker tenants provision` runs as a process of
its own that is killed with -9 at each of its steps: before a request to Citrus or to Postgres gets there, and before
its answer comes back. Then it is run again, to its end. Once more with shards that are empty databases. Then two at a
time make the same tenant while Citrus is well, forgets every registration, names another shard with each answer, or
both, and are killed at random. Exit status 0 only if in the end every tenant has one home, with its one row.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from rich.console import Console

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import HOST
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.__main__ import main as worker

API_KEY = "acceptance"
MOMENTS = ("before", "after")
TRIES = 6  # of a run that nobody kills: Citrus may change its answer at each
EMPTY_STRIDE = 7  # the steps on an empty shard are the same but for those that make its schema
END_S = 60.0
LATENCY_S = 0.01
FAULTS = ((True, False), (True, True), (False, True), (False, False))  # of Citrus: it wavers, it forgets
HOMES = """
SELECT id, state, state_changed_at <> created_at AS is_confirmed,
    (SELECT array_agg("resourceName" || '/' || "resourceId") FROM resources WHERE resources.id = tenants.id) AS rows
FROM tenants
"""
processes = multiprocessing.get_context("forkserver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1, help="in a row, at the same step, before it may end")
    parser.add_argument("--stride", type=int, default=1, help="kill at every so many steps")
    parser.add_argument("--rounds", type=int, default=20, help="of two at a time")
    parser.add_argument("--seed", type=int, default=7)
    processes.set_forkserver_preload(["simplu_worker.commands.tenants.show", "simplu_worker.daemon"])
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    console = Console(soft_wrap=True, highlight=False)
    with ProcessGroup() as group:
        ground = Ground(
            PostgresServer(group, PostgresPrograms.find(group.directory), database="shards"), group.directory
        )
        await ground.server.start()
        async with ground.opened():
            await ground.add_shard("shard-1")
            await ground.add_shard("shard-2")
            await killed_at_every_step(ground, "killed", arguments.kills, arguments.stride, console)
            await two_at_a_time(ground, arguments.rounds, Random(arguments.seed), console)
            await strangers(ground)
            await ground.check(console)
            await killed_at_every_step(ground, "empty", arguments.kills, arguments.stride * EMPTY_STRIDE, console)
            await ground.check(console)
    for problem in ground.problems:
        console.print(problem)
    console.print("wrong" if ground.problems else "every tenant has one home, with its one row")
    return 1 if ground.problems else 0


@dataclass
class Steps:
    """Counts what one process asks of anybody, and kills it at the step that was chosen."""

    number: int | None = None
    moment: str = ""
    victim: ForkServerProcess | None = None
    count: int = 0

    def reached(self, moment: str) -> bool:
        """Note a request, or its answer; tell whether the process is killed by that."""
        if moment == "before":
            self.count += 1
        if self.victim is None or (self.count, moment) != (self.number, self.moment):
            return False
        self.victim.kill()
        return True


class Tap:
    """A TCP line to somebody, for processes that may be killed by what passes."""

    def __init__(self, port: int, ground: Ground) -> None:
        self._target = port
        self._ground = ground
        self.port = 0

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Tap]:
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(HOST, self._target)
        ways = [self._pass(client, to_server, "before"), self._pass(server, to_client, "after")]
        passing = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for task in passing:
            task.cancel()
        for writer in (to_client, to_server):
            writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, moment: str) -> None:
        with contextlib.suppress(OSError):
            while part := await source.read(65536):
                if self._ground.steps.reached(moment):
                    return
                await asyncio.sleep(self._ground.latency_s)
                target.write(part)


def work(arguments: Sequence[str], environ: dict[str, str], output: str) -> None:
    """Be `simplu-worker` with these arguments, in a process that was forked for it."""
    end = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(end, 1)
    os.dup2(end, 2)
    os.environ.update(environ)
    sys.argv = ["simplu-worker", *arguments]
    worker()


@dataclass
class Ground:
    """The shards, and Citrus in front of them; each at the end of a tap."""

    server: PostgresServer
    folder: Path
    steps: Steps = field(default_factory=Steps)
    tenants: dict[str, tuple[str, str]] = field(default_factory=dict)  # by id
    problems: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    latency_s: float = 0.0  # of every request, and of every answer

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self.citrus = CitrusServer(api_key=API_KEY, make_shard=self._make_shard, max_businesses=10**6)
        async with AsyncExitStack() as self._stack:
            url = urlsplit(await self._stack.enter_async_context(self.citrus.serve()))
            tap = await self._stack.enter_async_context(Tap(int(url.port or 0), self).opened())
            self._environ = {
                "CITRUS_SERVER_URL": f"http://{HOST}:{tap.port}",
                "CITRUS_API_KEY": API_KEY,
                "CITRUS_RETRY_ATTEMPTS": "1",
            }
            yield

    async def add_shard(self, shard_id: str) -> None:
        self.citrus.add_shard(*await self._make_shard(shard_id))

    async def _make_shard(self, shard_id: str | None = None) -> tuple[str, str]:
        shard_id = shard_id or f"shard-{len(self.urls) + 1}"
        url = await self.server.create_database(shard_id)
        self.urls.append(url)
        tap = await self._stack.enter_async_context(Tap(self.server.port, self).opened())
        parts = urlsplit(url)
        return shard_id, urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{tap.port}"))

    def start(self, tenant: tuple[str, str], *, name: str = "worker") -> ForkServerProcess:
        self.tenants["-".join(tenant)] = tenant
        arguments = ["tenants", "provision", *tenant, "--type", "gym"]
        process = processes.Process(target=work, args=(arguments, self._environ, str(self.folder / f"{name}.out")))
        process.start()
        return process

    async def end_of(self, process: ForkServerProcess) -> int | None:
        """Wait for a process to end; return its exit status."""
        await asyncio.to_thread(process.join, END_S)
        if process.exitcode is None:
            process.kill()
            self.problems.append(f"a process did not end within {END_S:g} s")
        return process.exitcode

    async def finish(self, tenant: tuple[str, str], *, name: str = "worker") -> None:
        for _ in range(TRIES):
            if await self.end_of(self.start(tenant, name=name)) == 0:
                return
        said = (self.folder / f"{name}.out").read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        self.problems.append(f"{tenant}: not done after {TRIES} tries: {' | '.join(said)}")

    async def check(self, console: Console) -> None:
        found: dict[str, list[dict[str, Any]]] = {tenant_id: [] for tenant_id in self.tenants}
        for url in self.urls:
            connection = await asyncpg.connect(url)
            try:
                if await connection.fetchval("SELECT to_regclass('tenants')") is None:
                    continue
                for row in await connection.fetch(HOMES):
                    found[row["id"]].append(dict(row))
            finally:
                await connection.close()
        for tenant_id, rows in found.items():
            whole = [{"id": tenant_id, "state": "active", "is_confirmed": True, "rows": ["settings/default"]}]
            if rows != whole:
                self.problems.append(f"{tenant_id}: expected one home with its row, got {rows}")
        console.print(f"{len(found)} tenants looked at on {len(self.urls)} shards")


async def killed_at_every_step(ground: Ground, name: str, kills: int, stride: int, console: Console) -> None:
    """Kill a process at each of its steps in turn, and let another one go on, until one has no such step."""
    number = count = 0
    is_over = False
    while not is_over:
        number += stride
        for moment in MOMENTS:
            if name == "empty":
                ground.citrus.registry.shards.clear()
                await ground.add_shard(f"shard-{len(ground.urls) + 1}")
            tenant = (name, f"{number}-{moment}")
            for _ in range(kills):
                process = ground.start(tenant)
                ground.steps = Steps(number, moment, process)
                exit_status = await ground.end_of(process)
                ground.steps.victim = None
                count += 1
                is_over |= exit_status == 0
                if exit_status not in {0, -9}:
                    ground.problems.append(f"{tenant}: expected to be killed, got exit status {exit_status}")
            await ground.finish(tenant)
    console.print(f"{name}: {count} runs, killed at each of {number // stride - 1} steps, before and after")


async def two_at_a_time(ground: Ground, rounds: int, random: Random, console: Console) -> None:
    """Make the same tenant twice at once under each fault of Citrus, every other time with one of the two killed.

    Slowly, so that both have asked for other homes before one is made.
    """
    kills = 0
    for number in range(rounds):
        faults = ground.citrus.faults
        faults.rotates_shards, faults.drops_registrations = FAULTS[number % len(FAULTS)]
        tenant = ("twice", str(number))
        ground.latency_s = LATENCY_S
        both = [ground.start(tenant, name=name) for name in ("one", "other")]
        if number % (2 * len(FAULTS)) >= len(FAULTS):
            ground.steps = Steps(random.randrange(10, 80), random.choice(MOMENTS), random.choice(both))
        statuses = [await ground.end_of(process) for process in both]
        kills += statuses.count(-9)
        ground.steps = Steps()
        ground.latency_s = 0.0
        faults.drops_registrations = faults.rotates_shards = False
        await asyncio.gather(*(ground.finish(tenant, name=name) for name in ("one", "other")))
    logs = [(ground.folder / f"{name}.out").read_text(encoding="utf-8") for name in ("one", "other")]
    undone = sum(log.count("tenant.undone") for log in logs)
    console.print(f"twice: {rounds} rounds, {kills} processes killed, {undone} second homes undone")


async def strangers(ground: Ground) -> None:
    """Register `a-b` `c`; `a` `b-c` has the same id, meets a 409 and is made first: the other one is refused."""
    shard = ground.citrus.registry.shards["shard-1"]
    ground.citrus.registry.place("a-b-c", shard)
    await ground.finish(("a", "b-c"), name="stranger")
    if await ground.end_of(ground.start(("a-b", "c"), name="stranger")) != 1:
        ground.problems.append("expected the second of two tenants with one id to be refused")
    said = (ground.folder / "stranger.out").read_text(encoding="utf-8")
    if "is taken by another business and location" not in said:
        ground.problems.append(f"expected to be told why, got {said}")


if __name__ == "__main__":
    main()
