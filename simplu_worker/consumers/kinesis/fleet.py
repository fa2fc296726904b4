"""This replica's part in reading a stream: which leases it holds, and one reader for each.

A lease is the right to read a stream shard and to move its checkpoint. It is renewed every third of its duration, in
the same write as the checkpoint; who cannot renew it for its whole duration stops reading. Two readers for a while do
no harm (architecture, idea 2): each applies in order, and the log drops what the other applied.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import structlog

from simplu_worker.consumers.dead_letters import DeadLetterQueue
from simplu_worker.consumers.kinesis.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases import Lease, Observation, observe, takeable
from simplu_worker.consumers.kinesis.positions import AT_TIMESTAMP, LATEST, SHARD_END, TRIM_HORIZON, Position
from simplu_worker.consumers.kinesis.reader import ReadingRules, StreamShardReader
from simplu_worker.consumers.kinesis.stream import Stream, StreamShard
from simplu_worker.consumers.pauses import pause
from simplu_worker.errors import RefusedError, TryAgainLaterError
from simplu_worker.metrics import instruments
from simplu_worker.shards.router import Router

SCANS_PER_DURATION: Final = 10
RENEWALS_PER_DURATION: Final = 3
LISTING_INTERVAL_S: Final = 30.0
TROUBLE_PAUSE_S: Final = 1.0

log = structlog.get_logger(__name__)


class _LeaseLostError(Exception):
    """The lease is another's now, or could not be renewed for its whole duration."""


class Fleet:
    """Takes leases and reads the stream shards they stand for, until told to stop."""

    def __init__(
        self,
        stream: Stream,
        table: LeaseTable,
        *,
        me: str,
        lease_duration_s: float,
        initial_position: str | datetime,
        create_stream: bool,
        stream_shard_count: int,
        router: Router,
        dead_letters: DeadLetterQueue,
        rules: ReadingRules,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._stream = stream
        self._table = table
        self._me = me
        self._lease_duration_s = lease_duration_s
        self._initial = _initial_checkpoint(initial_position)
        self._create_stream = create_stream
        self._stream_shard_count = stream_shard_count
        self._router = router
        self._dead_letters = dead_letters
        self._rules = rules
        self._draw = draw
        self._observations: dict[str, Observation] = {}
        self._readers: dict[str, StreamShardReader] = {}
        self._listed_at = float("-inf")
        self.is_set_up = False
        self.trouble: str | None = None
        self.last_turn = time.monotonic()

    def __repr__(self) -> str:
        return f"Fleet({self._stream.name}, me={self._me}, reading={sorted(self._readers)})"

    @property
    def stream_name(self) -> str:
        """The name of the stream."""
        return self._stream.name

    def readers(self) -> Sequence[StreamShardReader]:
        """Return the readers at work, in order of their stream shards."""
        return [self._readers[lease_key] for lease_key in sorted(self._readers)]

    def held_by_others(self) -> list[dict[str, Any]]:
        """Return the leases this replica does not hold, for the status."""
        return [
            {
                "streamShard": lease_key,
                "state": "ended" if one.lease.checkpoint == SHARD_END else f"owner {one.lease.owner or 'nobody'}",
                "checkpoint": one.lease.checkpoint.checkpoint,
            }
            for lease_key, one in sorted(self._observations.items())
            if lease_key not in self._readers
        ]

    async def run(self, stopping: asyncio.Event) -> None:
        """Scan, take and read until *stopping*; then every reader drains and gives its lease back."""
        async with asyncio.TaskGroup() as tasks:
            while not stopping.is_set():
                self.last_turn = time.monotonic()
                pause_s = self._lease_duration_s / SCANS_PER_DURATION
                try:
                    await self._turn(tasks, stopping)
                    self.trouble = None
                except (TryAgainLaterError, RefusedError) as exc:
                    self.trouble = str(exc)
                    log.error("stream.unavailable", stream=self._stream.name, error=str(exc))  # noqa: TRY400  (theirs)
                    pause_s = max(pause_s, TROUBLE_PAUSE_S)
                await pause(pause_s, until=stopping)

    async def _turn(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        if not self.is_set_up:
            await self._stream.ensure(create=self._create_stream, shard_count=self._stream_shard_count)
            await self._table.ensure()
            self.is_set_up = True
        leases = await self._table.scan()
        if time.monotonic() - self._listed_at >= LISTING_INTERVAL_S:
            leases += await self._create_missing(leases)
            self._listed_at = time.monotonic()
        now = time.monotonic()
        self._observations = observe(self._observations, leases, now=now)
        self._count_leases()
        free = takeable(
            self._observations,
            held=self._readers.keys(),
            now=now,
            lease_duration_s=self._lease_duration_s,
            me=self._me,
        )
        for lease in free:
            if not self._has_unfinished_parent(lease) and (taken := await self._table.take(lease, self._me)):
                log.info("lease.taken", stream_shard_id=lease.lease_key, checkpoint=lease.checkpoint.checkpoint)
                reader = self._reader(taken)
                tasks.create_task(self._hold(taken, reader, stopping), name=f"lease:{lease.lease_key}")

    async def _create_missing(self, leases: Sequence[Lease]) -> list[Lease]:
        """Create the lease of every stream shard that has none; return those created.

        A child of a known stream shard starts at its beginning: its parent's reader owes everything before it.
        """
        known = {lease.lease_key for lease in leases}
        missing = [one for one in await self._stream.list_stream_shards() if one.stream_shard_id not in known]
        created = [self._new_lease(one, known) for one in missing]
        return [lease for lease in created if await self._table.create(lease)]

    def _new_lease(self, one: StreamShard, known: set[str]) -> Lease:
        return Lease(
            lease_key=one.stream_shard_id,
            checkpoint=TRIM_HORIZON if one.parents & known else self._initial,
            parents=one.parents,
            hash_range=one.hash_range,
        )

    def _has_unfinished_parent(self, lease: Lease) -> bool:
        parents = [self._observations[parent].lease for parent in lease.parents if parent in self._observations]
        return any(parent.checkpoint != SHARD_END for parent in parents)

    def _reader(self, lease: Lease) -> StreamShardReader:
        reader = self._readers[lease.lease_key] = StreamShardReader(
            self._stream,
            lease.lease_key,
            lease.checkpoint,
            router=self._router,
            dead_letters=self._dead_letters,
            rules=self._rules,
            draw=self._draw,
        )
        return reader

    async def _hold(self, lease: Lease, reader: StreamShardReader, stopping: asyncio.Event) -> None:
        """Read the lease's stream shard and renew the lease beside it; give it back at the end."""
        keeper = LeaseKeeper(self._table, lease, duration_s=self._lease_duration_s)
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(keeper.run(reader), name=f"keep:{lease.lease_key}")
                await reader.run(stopping)
                keeping.cancel()
            await keeper.give_back(reader)
        except* _LeaseLostError:
            log.warning("lease.lost", stream_shard_id=lease.lease_key)
        finally:
            del self._readers[lease.lease_key]
            instruments.remove_stream_shard(lease.lease_key)

    def _count_leases(self) -> None:
        counts = Counter(self._state_of(one.lease) for one in self._observations.values())
        for state in ("owned", "other", "unowned", "ended"):
            instruments.KINESIS_LEASES.labels(state).set(counts[state])

    def _state_of(self, lease: Lease) -> str:
        if lease.checkpoint == SHARD_END:
            return "ended"
        if lease.lease_key in self._readers:
            return "owned"
        return "unowned" if lease.owner is None else "other"


class LeaseKeeper:
    """Keeps one lease that was taken: renewals, checkpoints, and the end."""

    def __init__(self, table: LeaseTable, lease: Lease, *, duration_s: float) -> None:
        self._table = table
        self._lease = lease
        self._duration_s = duration_s
        self._renewed_at = time.monotonic()

    async def run(self, reader: StreamShardReader) -> None:
        """Renew until cancelled; raise `_LeaseLostError` when it is lost."""
        pause_s = self._duration_s / RENEWALS_PER_DURATION
        while True:
            await asyncio.sleep(pause_s)
            started_at = time.monotonic()
            if started_at - self._renewed_at > self._duration_s:
                raise _LeaseLostError  # suspended, or without answers: others may have it
            try:
                renewed = await self._table.renew(self._lease, self._progress(reader))
            except (TryAgainLaterError, RefusedError) as exc:
                log.warning("lease.unrenewed", stream_shard_id=self._lease.lease_key, error=str(exc))
                pause_s = min(TROUBLE_PAUSE_S, self._duration_s / RENEWALS_PER_DURATION)
                continue
            if renewed is None:
                raise _LeaseLostError
            self._lease, self._renewed_at = renewed, started_at
            pause_s = self._duration_s / RENEWALS_PER_DURATION

    async def give_back(self, reader: StreamShardReader) -> None:
        """Write the last checkpoint and let others take the lease at once; without an answer it just expires."""
        checkpoint = SHARD_END if reader.is_finished else self._progress(reader)
        try:
            released = await self._table.release(self._lease, checkpoint)
        except (TryAgainLaterError, RefusedError) as exc:
            log.warning("lease.unreleased", stream_shard_id=self._lease.lease_key, error=str(exc))
            return
        if released:
            shown = (checkpoint or self._lease.checkpoint).checkpoint
            log.info("lease.released", stream_shard_id=self._lease.lease_key, checkpoint=shown)

    def _progress(self, reader: StreamShardReader) -> Position | None:
        """Return the checkpoint to write; None when it has not moved."""
        checkpoint = reader.checkpoint
        return checkpoint if checkpoint is not None and checkpoint > self._lease.checkpoint else None


def _initial_checkpoint(initial_position: str | datetime) -> Position:
    if isinstance(initial_position, datetime):
        return AT_TIMESTAMP
    return LATEST if initial_position == "LATEST" else TRIM_HORIZON
