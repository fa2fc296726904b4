"""Look after what idle Postgres shards know of the stream shards that this replica reads (architecture, idea 8).

A shard to which nothing is sent would not be missed if it lost something, and its rows would grow old: who reads the
stream shard next would have to begin there. So every shard is asked every few seconds for all rows at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage
from simplu_worker.consumers.kinesis.recovery.shard_positions import ShardPosition, ShardPositions
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import StoredPositions
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event

INTERVAL_S: Final = 10.0
REST_S: Final = 0.5  # at least, between two rounds
LOOK_WITHIN_S: Final = 3.0
ASKED_AT_ONCE: Final = 4
ASKS_PER_S: Final = 40.0


class Watched(NamedTuple):
    """A reader's row on one Postgres shard, in its turn."""

    reader: StreamShardReader
    contacts: ShardPositions
    contact: ShardPosition
    lineage: Lineage


class PositionSync:
    """Goes from shard to shard. *readers* are those at work."""

    def __init__(
        self,
        gateway: ShardGateway,
        stream_name: str,
        readers: Callable[[], Sequence[StreamShardReader]],
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._gateway = gateway
        self._stream_name = stream_name
        self._readers = readers
        self._draw = draw
        self._at_once = asyncio.Semaphore(ASKED_AT_ONCE)
        self._to_forget: set[str] = set()
        self.is_wanted = False  # soon: there is another reader

    def __repr__(self) -> str:
        return f"PositionRounds({self._stream_name}, to_forget={sorted(self._to_forget)})"

    def forget(self, stream_shard_id: str) -> None:
        """Have the rows of a stream shard removed that is past its retention, where a shard answers."""
        self._to_forget.add(stream_shard_id)

    async def run(self, stopping: asyncio.Event) -> None:
        """Go round until *stopping*."""
        while not stopping.is_set():
            self.is_wanted = False
            to_forget, self._to_forget = sorted(self._to_forget), set()
            async with asyncio.TaskGroup() as tasks:
                for shard_id in await self._gateway.list_shard_ids():
                    await self._at_once.acquire()
                    tasks.create_task(self._visit(shard_id, to_forget), name=f"position:{shard_id}")
                    if await sleep_or_event(1 / ASKS_PER_S, until=stopping):
                        break
            ends_at = loop_time() + INTERVAL_S * (0.8 + 0.4 * self._draw())
            while loop_time() < ends_at and not await sleep_or_event(min(REST_S, INTERVAL_S), until=stopping):
                if self.is_wanted:
                    break

    async def _visit(self, shard_id: str, to_forget: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                if to_forget:
                    await self._gateway.forget_positions(shard_id, self._stream_name, to_forget)
            await self._look(shard_id)
        except (RetryableError, PermanentError, TimeoutError):
            return  # whoever needs the shard says so
        finally:
            self._at_once.release()

    async def _look(self, shard_id: str) -> None:
        watched: list[Watched] = []
        try:
            for reader in self._readers():
                contacts = reader.shard_positions
                # Where something is in flight, or is being read again, the row is looked after.
                if contacts is None or contacts.position_on(shard_id).lock.locked() or reader.is_backfilling(shard_id):
                    continue
                contact = contacts.position_on(shard_id)
                await contact.lock.acquire()
                watched.append(Watched(reader, contacts, contact, contacts.lineage()))
            if watched:
                await self._compare(shard_id, watched)
        finally:
            _end_turns(watched)

    async def _compare(self, shard_id: str, watched: list[Watched]) -> None:
        """Compare what a shard knows with what the readers know; leave those in *watched* whose turn has not ended.

        Those whose row is as they left it wait for no other's: what is asked for those may take seconds.
        """
        ids = [one.reader.stream_shard_id for one in watched]
        is_first = not all(one.contact.was_read for one in watched)
        async with asyncio.timeout(LOOK_WITHIN_S):
            standing = await self._gateway.read_positions(shard_id, self._stream_name, ids, is_first=is_first)
        if standing is None:
            return
        sure: list[Watched] = []
        doubtful: list[Watched] = []
        for one in watched:
            (doubtful if _is_doubtful(one, standing) else sure).append(one)
        await self._touch(shard_id, sure)
        _end_turns(sure)
        watched[:] = doubtful
        async with asyncio.TaskGroup() as tasks:
            held = [tasks.create_task(_is_still_held(one), name=f"held:{shard_id}") for one in doubtful]
        for one, is_held in zip(doubtful, held, strict=True):
            if is_held.result():
                await self._refill(shard_id, one, standing)
        await self._touch(shard_id, doubtful)

    async def _touch(self, shard_id: str, watched: Sequence[Watched]) -> None:
        """Write the rows that would say something else now."""
        due = [one for one in watched if one.contacts.is_write_due(one.contact)]
        if due:
            async with asyncio.timeout(LOOK_WITHIN_S):
                changed = await self._gateway.write_positions(
                    shard_id, [one.contacts.prepare_claim(one.contact) for one in due]
                )
            for one in due:
                one.contact.is_current = one.contact.claim not in changed

    async def _refill(self, shard_id: str, watched: Watched, standing: StoredPositions) -> None:
        """Read again what a shard lacks. Where there is a lane to it, that does so, before its next batch."""
        reader, contacts, contact, lineage = watched
        if reader.request_row_read(shard_id):
            return
        if lineage.ancestors:
            refill = await contacts.reconcile(contact)
        else:
            refill = await contacts.reconcile_with(contact, lineage, standing)
        if reader.request_row_read(shard_id):  # there is a lane since
            contact.forget_row()
        elif refill is not None:
            reader.start_backfill(shard_id, refill)


def _is_doubtful(watched: Watched, standing: StoredPositions) -> bool:
    """Whether what is known of a row does not hold, or was never known."""
    contact = watched.contact
    return not contact.is_current or watched.contacts.must_reread(contact, watched.lineage, standing)


async def _is_still_held(watched: Watched) -> bool:
    """Whether the lease is still the reader's; else the row is for whoever took it."""
    if not watched.contact.is_current:
        return True
    watched.contact.is_current = False
    return await watched.contacts.confirm_lease()


def _end_turns(watched: Sequence[Watched]) -> None:
    for one in watched:
        one.contact.lock.release()
