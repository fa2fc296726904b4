"""How long records wait while a worker comes or goes: a fleet of the KCL 3.5 and one of ours, one after the other.

    python3 run.py peers; python3 run.py bench kcl [--write]

Each fleet shares the stream shards of the same local Kinesis, with leases of the default of ten seconds. Some records a
second are put; the longest wait from a put until the record was read (given to the KCL's application, or committed by
ours) is that of the stream shards that changed hands. `--write` puts the table into docs/engines.md.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from support.peers.kcl_worker import KclWorker
from support.peers.programs import KCL_3
from support.peers.shared_stream import SharedStream, provision_tenant, read_duplicates, stop_replica

from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack

STREAM_SHARDS: Final = 8
LEASE_S: Final = 10
PUT_COUNT: Final = 24  # records at a time, with as many partition keys
PUT_INTERVAL_S: Final = 1.0
USUAL_WAIT_S: Final = 3.0  # of a record; while one waits for longer, a stream shard is not read
WELL_FOR_S: Final = 12.0  # until an event counts as over
EVENT_MAX_S: Final = 240.0
STARTS_WITHIN_S: Final = 240.0
PAGE: Final = Path(__file__).parents[1] / "docs" / "engines.md"
REGION: Final = re.compile(r"(<!-- figures: kcl -->\n).*?(<!-- end -->)", re.DOTALL)


class Figure(msgspec.Struct, frozen=True):
    """The result of one event."""

    event: str
    fleet: str
    longest_wait_s: float
    read_twice: int


class BenchedFleet(ABC):
    """The workers of one kind, by the names that the benchmark gives them."""

    label: str

    def __init__(self, shared: SharedStream, stack: AsyncExitStack) -> None:
        self.shared = shared
        self._stack = stack

    @abstractmethod
    async def start(self, name: str) -> None:
        """Start a worker."""

    @abstractmethod
    async def stop(self, name: str) -> None:
        """Stop a worker in order."""

    @abstractmethod
    async def kill(self, name: str) -> None:
        """End a worker with SIGKILL."""

    @abstractmethod
    async def read_ids(self) -> set[str]:
        """Return the ids of all records that were read."""

    @abstractmethod
    async def read_twice(self) -> int:
        """Return how many records were read more than once so far."""


class KclFleet(BenchedFleet):
    """Workers of the KCL 3.5."""

    label = f"KCL {KCL_3.version}"

    def __init__(self, shared: SharedStream, stack: AsyncExitStack) -> None:
        super().__init__(shared, stack)
        self._workers: dict[str, KclWorker] = {}

    async def start(self, name: str) -> None:
        """Start a worker."""
        context = self.shared.kcl(KCL_3, name, metrics_interval="30000")
        self._workers[name] = self._stack.enter_context(context)

    async def stop(self, name: str) -> None:
        """Stop a worker in order."""
        await self._workers[name].stop()

    async def kill(self, name: str) -> None:
        """End a worker with SIGKILL."""
        self._workers[name].kill()

    async def read_ids(self) -> set[str]:
        """Return the ids of all records that were read."""
        return set().union(*(worker.request_ids for worker in self._workers.values()))

    async def read_twice(self) -> int:
        """Return how many records were read more than once so far."""
        counts = Counter(record.request_id for worker in self._workers.values() for record in worker.records)
        return counts.total() - len(counts)


class OurFleet(BenchedFleet):
    """Replicas of ours."""

    label = "ours"

    def __init__(self, shared: SharedStream, stack: AsyncExitStack) -> None:
        super().__init__(shared, stack)
        self._replicas: dict[str, WorkerProcess] = {}
        self._gone = 0  # duplicates that replicas had counted when they were stopped

    async def start(self, name: str) -> None:
        """Start a replica."""
        self._replicas[name] = self._stack.enter_context(self.shared.replica())

    async def stop(self, name: str) -> None:
        """Stop a replica in order."""
        await self._forget(name)
        await stop_replica(self._replicas.pop(name))

    async def _forget(self, name: str) -> None:
        self._gone += int(await read_duplicates(self._replicas[name]))

    async def kill(self, name: str) -> None:
        """End a replica with SIGKILL."""
        await self._forget(name)
        self._replicas.pop(name).kill()

    async def read_ids(self) -> set[str]:
        """Return the ids of all records that were read."""
        return await self.shared.applied_ids()

    async def read_twice(self) -> int:
        """Return how many records were read more than once so far."""
        return self._gone + int(sum([await read_duplicates(one) for one in self._replicas.values()]))


class Load:
    """Puts records all the time, and knows how long each one waits."""

    def __init__(self, fleet: BenchedFleet) -> None:
        self._fleet = fleet
        self._unread: dict[str, float] = {}
        self.longest_s = 0.0
        self.waits_s = 0.0  # the oldest record that is not read

    async def run(self) -> None:
        """Put and look until cancelled."""
        while True:
            ids = await self._fleet.shared.put(PUT_COUNT)
            now = time.monotonic()
            self._unread |= dict.fromkeys(ids, now)
            read = await self._fleet.read_ids()
            now = time.monotonic()
            for request_id in self._unread.keys() & read:
                self.longest_s = max(self.longest_s, now - self._unread.pop(request_id))
            self.waits_s = now - min(self._unread.values(), default=now)
            await asyncio.sleep(PUT_INTERVAL_S)

    async def settle(self) -> float:
        """Wait until no record waits for long, for a while; return the longest wait since `longest_s` was reset."""
        started_at = well_since = time.monotonic()
        while (now := time.monotonic()) - well_since < WELL_FOR_S:
            if now - started_at > EVENT_MAX_S:
                raise AssertionError(f"records wait for {self.waits_s:.0f} s after {EVENT_MAX_S:g} s")
            if self.waits_s > USUAL_WAIT_S:
                well_since = now
            await asyncio.sleep(0.1)
        return self.longest_s


async def measure(fleet: BenchedFleet) -> list[Figure]:
    """Start two workers, then add one, stop it, kill the second, start another one, and kill the first."""
    shared, figures = fleet.shared, list[Figure]()
    await shared.create(STREAM_SHARDS)
    load = Load(fleet)
    await fleet.start("first")  # of the KCL, the leader
    await shared.wait_for_owners([STREAM_SHARDS], within_s=STARTS_WITHIN_S)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(load.run())
        await fleet.start("second")
        await shared.wait_for_owners([4, 4], within_s=STARTS_WITHIN_S)
        await load.settle()

        async def note(event: str, change: Callable[[], Awaitable[None]]) -> None:
            before, load.longest_s = await fleet.read_twice(), 0.0
            await change()
            longest_s = await load.settle()
            figures.append(Figure(event, fleet.label, longest_s, await fleet.read_twice() - before))
            print(figures[-1], flush=True)

        await note("a worker is added", partial(_add, fleet, "third", [2, 3, 3]))
        await note("it is stopped (SIGTERM)", partial(fleet.stop, "third"))
        await note("a worker is killed", partial(fleet.kill, "second"))
        await _add(fleet, "fourth", [4, 4])
        await load.settle()
        await note("the first worker is killed, the KCL's leader", partial(fleet.kill, "first"))
        running.cancel()
    return figures


async def _add(fleet: BenchedFleet, name: str, counts: Sequence[int]) -> None:
    await fleet.start(name)
    await fleet.shared.wait_for_owners(counts, within_s=STARTS_WITHIN_S)


def render(figures: Sequence[Figure], *, on: datetime) -> str:
    """Return the table: a row for each event, and for each fleet the longest wait and the records read twice."""
    labels = list(dict.fromkeys(figure.fleet for figure in figures))
    by = {(figure.event, figure.fleet): figure for figure in figures}
    lines = [
        "| what happens | " + " | ".join(f"{label}: longest wait | {label}: read twice" for label in labels) + " |",
        "|---|" + "---|---|" * len(labels),
    ]
    for event in dict.fromkeys(figure.event for figure in figures):
        cells = [by[event, label] for label in labels]
        lines.append(
            f"| {event} | " + " | ".join(f"{one.longest_wait_s:.1f} s | {one.read_twice}" for one in cells) + " |"
        )
    note = (
        f"Measured on {on:%Y-%m-%d} by `python3 run.py bench kcl --write`: {STREAM_SHARDS} stream shards, leases of "
        f"{LEASE_S} s, {PUT_COUNT / PUT_INTERVAL_S:g} records a second, both fleets one after the other."
    )
    return "\n".join([*lines, "", note, ""])


async def run(*, write: bool) -> None:
    """Measure both fleets, and print or write the table."""
    figures: list[Figure] = []
    async with Stack(shards=1, stream_shards=1) as stack:
        await provision_tenant(stack)
        for kind in (OurFleet, KclFleet):
            async with AsyncExitStack() as workers:
                figures += await measure(kind(SharedStream(stack, failover_s=LEASE_S), workers))
    text = render(figures, on=datetime.now(UTC))
    print(text)
    if write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(REGION.sub(lambda found: found[1] + text + found[2], page), encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engines.md")
    asyncio.run(run(write=parser.parse_args().write))


if __name__ == "__main__":
    main()
