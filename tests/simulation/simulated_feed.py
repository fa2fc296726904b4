"""The feed of a simulated world: the worker's own publishers, receivers with faults, and what they hold in the end.

A receiver keeps to docs/feed.md (`support.feed.follower`); what it has to hold is told by the simulated logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import cast

import msgspec
from simulation.simulated_log import Address, Batch, LogRow, SimulatedPools
from simulation.simulated_network import Network
from simulation.simulated_shards import SHARD_IDS, PostgresShards
from support.feed.expected_events import Change, changes_of, find_differences
from support.feed.follower import Event, Follower

from simplu_worker.aws.sending import Producer, RequestBounds, Unsent
from simplu_worker.errors import RetryableError
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.destinations import AwsDestination
from simplu_worker.feed.feed import ConfiguredDestination
from simplu_worker.feed.types import DestinationTerms
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.vocabulary import FeedBeginning

TIMEOUT_S = 15.0
EVENT_MAX_BYTES = 256 * 1024


class Locations:
    async def list_shards(self) -> list[Address]:
        return [Address(shard_id) for shard_id in SHARD_IDS]


LOCATOR = cast("Locator", Locations())


class ReceiverFaults(msgspec.Struct, frozen=True):
    """Chances: of an event that is put off, of a request that comes twice, and of one whose answer takes too long."""

    put_off: float = 0.0
    repeated: float = 0.0
    hanging: float = 0.0


class SimulatedReceiver:
    """A service to which all publishers send; what came is kept in its order."""

    max_events = 40

    def __init__(self, name: str, network: Network, draws: Random) -> None:
        self.name = name
        self.came: list[bytes] = []
        self.faults = ReceiverFaults()
        self._network = network
        self._draws = draws
        producer = Producer(
            name, name, RequestBounds(10, EVENT_MAX_BYTES), self.put, key_of=lambda _: None, size_of=len
        )
        self.publish = AwsDestination(producer, lambda event: encode_event(event, EVENT_MAX_BYTES)).publish

    def __repr__(self) -> str:
        return f"SimulatedReceiver({self.name}, {len(self.came)} came)"

    async def put(self, entries: Sequence[bytes]) -> dict[int, Unsent]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._network.ask(self.name, lambda: self._take(entries), lost=_no_answer)
        except TimeoutError:
            raise RetryableError("no answer in time") from None

    def _take(self, entries: Sequence[bytes]) -> dict[int, Unsent]:
        draw, faults = self._draws.random, self.faults
        answer = {
            index: Unsent("not now") for index in range(len(entries)) if faults.put_off and draw() < faults.put_off
        }
        taken = [entry for index, entry in enumerate(entries) if index not in answer]
        self.came += taken
        if faults.repeated and draw() < faults.repeated:
            self._network.loop.call_later(
                draw() * 3.0, self.came.extend, taken, context=self._network.nobody
            )  # what lies between sends it again
        if faults.hanging and draw() < faults.hanging:
            raise RetryableError("no answer in time")
        return answer

    def configured(self) -> ConfiguredDestination:
        @asynccontextmanager
        async def opened() -> AsyncIterator[SimulatedReceiver]:
            yield self

        terms = DestinationTerms(self.name, begin=FeedBeginning.OLDEST)
        return ConfiguredDestination(terms, opened)


def pools_of(shards: PostgresShards) -> SimulatedPools:
    return SimulatedPools(shards.network, shards.servers)


def changes_in(shards: PostgresShards) -> list[Change]:
    found = [(batch.committed, shard_id, batch) for shard_id, log in shards.logs.items() for batch in log.batches]
    return [change for _, shard_id, batch in sorted(found) for change in _changes_of(shard_id, batch)]


def _changes_of(shard_id: str, batch: Batch) -> list[Change]:
    rows: list[LogRow | None] = [*batch.rows]
    return [change for row in rows or [None] for change in changes_of(shard_id, _members(batch, row))]


def _members(batch: Batch, row: LogRow | None) -> dict[str, object]:
    return {
        "batch_id": batch.number,
        "batch_kind": batch.kind,
        "batch_origin": batch.origin,
        "position": 0 if row is None else row.position,
        "kind": None if row is None else row.kind,
        "type": None if row is None else row.resource_type,
        "origin": batch.origin,
        "resource_id": None if row is None else row.resource_id,
        "request": None if row is None else row.request_id,
        "is_failed": False if row is None else row.is_failed,
        "tenant_id": batch.tenant_ids[0] if row is None else row.tenant_id,
    }


def feed_problems(receiver: SimulatedReceiver, shards: PostgresShards) -> list[str]:
    follower = Follower()
    for body in receiver.came:
        follower.take(Event.of(msgspec.json.decode(body)))
    gone_back = frozenset() if shards.is_replicated else frozenset(SHARD_IDS)
    found = find_differences(receiver.name, follower, changes_in(shards), lambda _: None, gone_back)
    lost = {batch.token for log in shards.logs.values() for batch in log.lost}
    known = {**follower.holding, **follower.taken_back}
    if shards.is_replicated and (unsafe := [event_id for event_id in known if event_id.rpartition("-")[0] in lost]):
        found.append(f"{receiver.name}: {unsafe} of lost commits, though commits are awaited")
    return found


def _no_answer() -> Exception:
    return RetryableError("no answer")
