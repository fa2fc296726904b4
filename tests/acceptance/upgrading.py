"""Shards are upgraded to a made-up next schema under load, while workers of today and of that schema work side by side.

    python tests/acceptance/upgrading.py [--rate 300] [--seconds 5]

Starts the embedded stack and two workers, which are copies of the package: the new one has one migration more, which
is made up; the old one lacks a business type, and the last change of another. The old worker begins. Then, while
operations keep coming: the new worker beside it, a session that holds a table, an upgrade that waits for it and is
killed with -9, two others that do all between them, the old worker's end. Exit status 0 only if both workers worked on
both schemas, the upgrade named who held it up, no shard was taken for lost, the old command refuses to go back, and
every row is right in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from rich.console import Console
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Testbed
from support.postgres.upgrades import MADE_UP
from support.rows import fetch_value

import simplu_worker
from benchmarks.targets import LoadReport, PerformanceTarget
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import INHERITED, WorkerProcess
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION

PACKAGE = Path(simplu_worker.__file__).parent
SQL = Path("shards/sql")
TYPES = Path("shards/business_types")
LACKED_TYPE, CHANGED_TYPE = "hotel", "gym"  # the tenants are of neither
WORKER_ENV = {"KINESIS_LEASE_DURATION_SECONDS": "3", "PYTHONSAFEPATH": "1"}  # 1: no package of the current folder
HOLDER = "nightly-report"
APPLIED = re.compile(r"^simplu_operations_total\{[^}]*\} (\S+)", re.MULTILINE)
BLOCKED_S = 3.0  # after it was named: the upgrade gives way at least once
WITHIN_S = 60.0
LONGEST_S = 25.0  # a lock is waited for 2 s at a time, and the machine may be busy; a lost shard takes half a minute
STOP_WITHIN_S = 35.0
BEFORE, LAST = SCHEMA_VERSION, MADE_UP.version


@dataclass(frozen=True)
class Answer:
    """What `shards upgrade --json` came to."""

    status: int
    shards: list[dict[str, Any]]

    def all_of(self, name: str) -> set[Any]:
        return {repr(shard.get(name)) for shard in self.shards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=300.0, help="operations/s")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase")
    parser.add_argument("--shards", type=int, default=3)
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    console = open_console()
    testbed = Testbed(shards=arguments.shards, stream_shards=4, tenants_per_shard=3, replicas=0, worker_env=WORKER_ENV)
    async with testbed:
        scenario = Scenario(testbed, arguments, console)
        await scenario.run()
    scenario.results.print(console)
    return scenario.results.status


def copy_package(folder: Path) -> Path:
    return shutil.copytree(PACKAGE, folder / "simplu_worker", ignore=shutil.ignore_patterns("__pycache__"))


def new_package(folder: Path) -> Path:
    copy = copy_package(folder / "new")
    (copy / SQL / "migrations" / f"{LAST:04}_{MADE_UP.name}.sql").write_text(MADE_UP.text)
    return copy.parent


def old_package(folder: Path) -> Path:
    """Copy the package as an older release could be, and return what PYTHONPATH is to be."""
    copy = copy_package(folder / "old")
    (copy / TYPES / f"{LACKED_TYPE}.json").unlink()
    changed = copy / TYPES / f"{CHANGED_TYPE}.json"
    changed.write_text(f"\n{changed.read_text()}")
    return copy.parent


async def applied_by(worker: WorkerProcess) -> float:
    """Return how many operations a worker has applied, by its metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{worker.url}/metrics") as answer:
        return sum(map(float, APPLIED.findall(await answer.text())))


class Scenario:
    """The upgrade, step by step, and what came of it."""

    def __init__(self, testbed: Testbed, arguments: argparse.Namespace, console: Console) -> None:
        self._testbed = testbed
        self._seconds: float = arguments.seconds
        self._rate: float = arguments.rate
        self._console = console
        folder = testbed.stack.group.directory
        self._old = {"PYTHONPATH": str(old_package(folder))}
        self._new = {"PYTHONPATH": str(new_package(folder))}
        self.results = LoadReport("shards upgraded under load")

    async def run(self) -> None:
        testbed = self._testbed
        await testbed.start_worker(self._old)
        await testbed.register(testbed.tenants_of())
        flow = testbed.start_flow(ChainPlan("steady", testbed.tenants_of()), rate=self._rate)
        async with testbed.phase("old worker, schema before"):
            await asyncio.sleep(self._seconds)
        await testbed.start_worker(self._new)
        await self._both_work("schema before")
        await self._plan()
        async with testbed.phase("upgrade"):
            await self._blocked_and_killed()
            await self._upgraded()
        await self._both_work("last schema")
        self._say("the old worker goes")
        old = testbed.workers.pop(0)
        await old.stop(within_s=STOP_WITHIN_S)
        async with testbed.phase("new worker, last schema"):
            await asyncio.sleep(self._seconds)
        await testbed.start_worker(self._old)
        await self._both_work("last schema, the old worker again")
        await flow.producer.stop()
        self.results.differences += await testbed.find_last_differences(within_s=WITHIN_S)
        await self._judge(flow.plan)
        for worker in (old, testbed.worker):
            text = worker.log_path.read_text(encoding="utf-8")
            self.results.differences += [line for line in text.splitlines() if '"shard.cut_off"' in line][:3]
        await testbed.stop_workers()

    async def _both_work(self, schema: str) -> None:
        before = [await applied_by(worker) for worker in self._testbed.workers]

        async def both_applied() -> bool:
            counts = [await applied_by(worker) for worker in self._testbed.workers]
            return all(count > one for count, one in zip(counts, before, strict=True))

        async with self._testbed.phase(f"old and new worker, {schema}"):
            self._expect(f"both apply, {schema}", met=await poll_until(both_applied, within_s=WITHIN_S))
            await asyncio.sleep(self._seconds)

    async def _plan(self) -> None:
        plan = await self._upgrade()
        self._expect("the plan changes nothing", met=await self._versions() == {BEFORE})
        self._expect("the plan names every shard", met=plan.all_of("state") == {"'behind'"} and plan.status == 0)
        self._expect("and what it lacks", met=plan.all_of("businessTypes") == {repr([CHANGED_TYPE, LACKED_TYPE])})
        self._expect("and the migration", met=plan.all_of("migrations") == {repr([f"{LAST:04} {MADE_UP.name}"])})
        self._expect("and the last version", met=plan.all_of("targetVersion") == {repr(LAST)})

    async def _blocked_and_killed(self) -> None:
        holder = await asyncpg.connect(self._testbed.urls[0], server_settings={"application_name": HOLDER})
        await holder.execute("BEGIN; LOCK TABLE transfers IN ROW SHARE MODE")
        log = self._testbed.stack.group.directory / "upgrade-killed.log"
        argv = [sys.executable, "-m", "simplu_worker", "shards", "upgrade", "--apply"]
        process = self._testbed.stack.group.spawn(argv, log_path=log, env=self._env(self._new))

        async def is_named() -> bool:
            return HOLDER in log.read_text(encoding="utf-8")

        self._expect("who held it up is named", met=await poll_until(is_named, within_s=WITHIN_S))
        await asyncio.sleep(BLOCKED_S)
        process.kill()
        process.wait()
        self._say("upgrade killed with -9 while it waited")
        await holder.close()

    async def _upgraded(self) -> None:
        """Upgrade everything, in two processes at once; a third time there is nothing to do, and never a way back."""
        both = await asyncio.gather(self._upgrade("--apply"), self._upgrade("--apply"))
        self._say(f"upgraded: {[one.all_of('state') for one in both]}")
        self._expect("two upgrades at once", met=all(one.status == 0 for one in both))
        self._expect("all are of the last version", met=await self._versions() == {LAST})
        again = await self._upgrade("--apply")
        self._expect("nothing left", met=again.status == 0 and again.all_of("state") == {"'current'"})
        back = await self._upgrade("--apply", env=self._old)
        self._expect("no way back", met=back.status == 1 and back.all_of("state") == {"'refused'"})

    async def _upgrade(self, *options: str, env: Mapping[str, str] | None = None) -> Answer:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simplu_worker", "shards", "upgrade", "--json", *options),
            env=self._env(env or self._new),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
        return Answer(process.returncode or 0, json.loads(out)["shards"])

    def _env(self, env: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return inherited | self._testbed.stack.env | WORKER_ENV | dict(env)

    async def _versions(self) -> set[int]:
        query = "SELECT max(version) FROM schema_migrations"
        return {await fetch_value(url, query) for url in self._testbed.urls}

    async def _judge(self, plan: ChainPlan) -> None:
        testbed = self._testbed
        self.results.phases = [await testbed.measure_phase(phase, plan, testbed.urls) for phase in testbed.phases]
        for measured in self.results.phases[1:]:
            what = f"longest, {measured.phase.name}"
            self.results.targets.append(PerformanceTarget(what, measured.longest_s, LONGEST_S, unit="s"))

    def _expect(self, what: str, *, met: bool) -> None:
        self.results.targets.append(PerformanceTarget(what, float(met), least=1))

    def _say(self, text: str) -> None:
        self._console.print(text)


if __name__ == "__main__":
    main()
