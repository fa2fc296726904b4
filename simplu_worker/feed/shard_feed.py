"""The feed of one shard: claim its row, read its log, and hand events to each destination, while the row is ours.

Why no two replicas publish for long: a publisher keeps its row for LEASE_S with each renewal, counts that time from
before the renewal was sent, and is cancelled MARGIN_S before its end. Another replica takes the row only after its end
by the clock of the shard. A request that has left already may arrive later, under the same ids.

Why nothing is published that is not safe: rows are handed over only once the answer that had them, or a later one of
the same run of the server, shows that everything committed before is as safe as the shard can make it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias
from uuid import uuid4

import msgspec
import structlog

from simplu_worker.errors import RetryableError
from simplu_worker.feed import events, types
from simplu_worker.feed.destination_feed import DestinationFeed
from simplu_worker.feed.rows import (
    CursorRow,
    FeedState,
    NotPublisherError,
    claim,
    find_passed,
    find_publisher,
    load,
    note_refusal,
    read_documents,
    read_log,
    release,
    renew,
    write_cursors,
)
from simplu_worker.feed.window import Budget
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import ReplicationFacts
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.timing.clock import UtcClock, loop_time
from simplu_worker.timing.waits import aligned_time, backoff_s, jittered, move_deadline, run_until, wait_any
from simplu_worker.vocabulary import FeedData

READ_MAX: Final = 500  # rows of a read, of which there are two in a window
READ_PAUSE_S: Final = 0.15  # under load, so that many changes share a read, a check and a request
IDLE_MIN_S, IDLE_MAX_S = 0.05, 2.0
CURSOR_INTERVAL_S: Final = 0.5
ASK_MIN_S, ASK_MAX_S = 0.05, 1.0  # between two questions to the sources of tenants that came
SOURCE_S: Final = 3.0  # for the answer of one
EMPTY_S: Final = 5.0  # between two looks at a shard without tables
DRAIN_S: Final = 2.0  # for requests under way, at the end

Destinations: TypeAlias = Mapping[str, tuple[types.DestinationTerms, types.Destination]]

log = structlog.get_logger(__name__)


class RunChangedError(Exception):
    """Another run of the server answers, or another replica has the row."""


class _ReadEvents(msgspec.Struct, frozen=True):
    """What was read of the log for *feeds* together; *facts* tell when it is safe."""

    feeds: Sequence[DestinationFeed]
    latest: events.LogBatch
    facts: Sequence[ReplicationFacts]
    rows: Sequence[events.ReadRow]
    documents: dict[str, bytes]  # by the id of the event

    def documents_for(self, feed: DestinationFeed) -> dict[str, bytes]:
        return self.documents if feed.terms.data is FeedData.CURRENT else {}


class FeedServices(NamedTuple):
    """What the feeds of all shards by the replica *publisher* share."""

    pools: Pools
    commits: ReplicationWaiter
    publisher: str
    draw: Callable[[], float]
    utc: UtcClock
    documents: Budget


class ShardFeed:
    """The feed of the shard *shard_id* by this replica; *published_count* tells how many it publishes."""

    def __init__(self, shard_id: str, services: FeedServices, published_count: Callable[[], int]) -> None:
        self.shard_id = shard_id
        self._pools, self._commits, self._publisher, self._draw, self._utc, self._documents = services
        self._published_count = published_count
        self._token: str | None = None
        self._lease_until = 0.0
        self._feeds: dict[str, DestinationFeed] = {}
        self._changed = asyncio.Event()
        self._ending = asyncio.Event()
        self._state: FeedState | None = None
        self._publication = types.Publication(shard_id, "", "")
        self._renewed_at = 0.0
        self._written_at = 0.0
        self._asked_at, self._ask_pause_s = 0.0, ASK_MIN_S
        self._asking: asyncio.Task[None] | None = None
        self._lease: asyncio.Timeout | None = None
        self._others: tuple[
            types.ShardView, ...
        ] = ()  # of the replica that publishes the shard, as of a few seconds ago
        self.is_publishing = False

    def views(self) -> Sequence[types.ShardView]:
        """Return the state of each destination, whichever replica publishes the shard."""
        if not self.is_publishing:
            return self._others
        return [
            types.ShardView(self.shard_id, name, feed.behind_since, bool(feed.waits_for), feed.stopped, feed.error)
            for name, feed in self._feeds.items()
        ]

    async def run(self, destinations: Destinations, ending: asyncio.Event) -> None:
        """Publish whenever the row is free, until *ending*; the row stays ours until `give_back`."""
        failure_count = 0
        while not ending.is_set():
            try:
                if await self._take_row(ending):
                    await self._publish(destinations, ending)
                failure_count = 0
            except (NotPublisherError, TimeoutError):
                self._token = None
                log.info("feed.lost", shard_id=self.shard_id)
            except RunChangedError:
                log.info("feed.server_changed", shard_id=self.shard_id)
            except RetryableError as exc:
                failure_count += 1
                log.debug("feed.deferred", shard_id=self.shard_id, error=str(exc))
                pause_s = backoff_s(failure_count, draw=self._draw(), base_s=0.5, max_s=IDLE_MAX_S)
                await wait_any(ending, within_s=pause_s)

    async def give_back(self) -> None:
        """Give the row back, at the end of the replica."""
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(RetryableError, TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await release(self._pool, token)

    @property
    def _pool(self) -> ShardPool:
        return self._pools.pool_of(self.shard_id)

    async def _take_row(self, ending: asyncio.Event) -> bool:
        if self._is_publisher():
            return True
        self._token = None
        publisher = await find_publisher(self._pool)
        self._others = () if publisher is None else publisher.destinations
        if publisher is None:
            await wait_any(ending, within_s=jittered(EMPTY_S, ratio=0.2, draw=self._draw()))
            return False
        if publisher.free_in_s > 0:
            await wait_any(ending, within_s=min(publisher.free_in_s, events.LEASE_S) + 0.05)
            return False
        await wait_any(ending, within_s=events.claim_delay_s(self._published_count(), self._draw()))
        if ending.is_set():
            return False
        token, asked_at = str(uuid4()), loop_time()
        if not await claim(self._pool, token=token, publisher=self._publisher):
            return False
        self._token, self._lease_until = token, asked_at + events.LEASE_S - events.MARGIN_S
        log.info("feed.claimed", shard_id=self.shard_id)
        return True

    async def _publish(self, destinations: Destinations, ending: asyncio.Event) -> None:
        if not await self._begin(destinations, ending):
            return
        failure: Exception | None = None
        try:
            async with asyncio.timeout_at(self._lease_until) as self._lease, asyncio.TaskGroup() as tasks:
                self.is_publishing = True
                running = [
                    tasks.create_task(
                        feed.run(is_publisher=self._is_publisher, keep_refusal=self._keep_refusal),
                        name=f"feed:{self.shard_id}:{name}",
                    )
                    for name, feed in self._feeds.items()
                ]
                renewing = tasks.create_task(self._keep_row(), name=f"feed:{self.shard_id}:row")
                await self._read_until(ending, tasks)
                for feed in self._feeds.values():
                    feed.end()
                if running:
                    await asyncio.wait(running, timeout=DRAIN_S)
                await self._write_cursors(is_due=True)
                for task in (*running, renewing, self._asking):
                    if task is not None:
                        task.cancel()
        except* (NotPublisherError, RunChangedError, RetryableError, TimeoutError) as group:
            failure = _first_of(group)
        finally:
            self.is_publishing = False
            self._lease = None
            self._feeds = {}  # with the documents in their windows
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError  # which a group that has errors as well does not raise
        if failure is not None:
            raise failure

    async def _begin(self, destinations: Destinations, ending: asyncio.Event) -> bool:
        """Load the cursors; a new incarnation begins only once it is safe. Return False at *ending*."""
        state, rows = await load(
            self._pool,
            self._required_token,
            [terms for terms, _ in destinations.values()],
            last_incarnation="" if self._state is None else self._state.incarnation,
            noise=f"{int(self._draw() * 0x10000):04x}",
        )
        if state.noted_run != state.run:
            if not await run_until(ending, self._commits.wait_for_transaction(self.shard_id, state.server)):
                return False
            log.warning("feed.incarnation_began", shard_id=self.shard_id, incarnation=state.incarnation)
        self._feeds = self._feeds_behind(state, rows, destinations)
        self._state = state
        return True

    def _feeds_behind(
        self, state: FeedState, rows: Mapping[str, CursorRow], destinations: Destinations
    ) -> dict[str, DestinationFeed]:
        self._publication = types.Publication(self.shard_id, state.incarnation, self._required_token)
        feeds: dict[str, DestinationFeed] = {}
        for name, (terms, destination) in destinations.items():
            feeds[name] = DestinationFeed(
                self._publication,
                terms,
                destination,
                rows[name],
                changed=self._changed,
                documents=self._documents,
                draw=self._draw,
            )
            feeds[name].begin(state.read_at)
        return feeds

    @property
    def _required_token(self) -> str:
        if self._token is None:
            raise NotPublisherError
        return self._token

    def _is_publisher(self) -> bool:
        return self._token is not None and loop_time() < self._lease_until

    async def _keep_refusal(self, name: str, event: types.FeedEvent, error: str) -> None:
        await note_refusal(self._pool, self._required_token, name, event, error)

    async def _read_until(self, ending: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        """Read on; *ending* breaks off waits for standbys alone, as a cursor written late would go back."""
        self._ending, pause_s = ending, IDLE_MIN_S
        while not ending.is_set():
            self._changed.clear()
            count = await self._read_round() if pause_s < IDLE_MAX_S or self._has_more else 0
            self._start_asking(tasks)
            await self._write_cursors()
            if count >= READ_MAX:
                await asyncio.sleep(0)
                continue
            pause_s = READ_PAUSE_S if count else min(2 * max(pause_s, IDLE_MIN_S / 2), IDLE_MAX_S)
            if any(feed.waits_for for feed in self._feeds.values()) or self._has_unwritten:
                pause_s = min(pause_s, CURSOR_INTERVAL_S)
            is_at_rest = pause_s >= IDLE_MAX_S  # the renewals of the row tell whether there is more
            for feed in self._feeds.values():
                feed.is_awaited = feed.is_awaited or is_at_rest  # a destination that is back moves its cursor
            await wait_any(ending, self._changed, within_s=None if is_at_rest else pause_s)

    async def _keep_row(self) -> None:
        """Renew the row, however long the reader waits for a standby."""
        while True:
            await self._renew()
            await asyncio.sleep(
                max(aligned_time(self._renewed_at, events.RENEW_S, events.RENEW_GRID_S) - loop_time(), 0.1)
            )

    async def _renew(self) -> None:
        asked_at = loop_time()
        state = await renew(self._pool, self._required_token)
        self._renewed_at, self._lease_until = asked_at, asked_at + events.LEASE_S - events.MARGIN_S
        if self._lease is not None:
            move_deadline(self._lease, self._lease_until)
        if self._state is None or state.run != self._state.run:
            raise RunChangedError
        self._state = state
        for feed in self._feeds.values():
            if feed.is_reading or feed.waits_for:
                self._note_gap(feed, state.forgotten, state.forgotten_at)
            is_behind = not len(feed.window) and state.newest > feed.window.head.batch_id
            feed.waits_since = (feed.waits_since or state.read_at) if is_behind else None
        if self._has_more or self._has_unwritten:  # such as the end of a lag
            self._changed.set()

    @property
    def _has_more(self) -> bool:
        newest = 0 if self._state is None else self._state.newest
        return any(
            newest > feed.window.head.batch_id or not feed.is_at_end for feed in self._feeds.values() if feed.is_reading
        )

    def _note_gap(self, feed: DestinationFeed, forgotten: int | None, forgotten_at: datetime | None) -> None:
        """Tell of batches that the retention deleted before they were read, and go on behind them."""
        head = feed.window.head
        if forgotten is None or forgotten <= head.batch_id:
            return
        gap = events.gap_event(self._publication, head, forgotten, forgotten_at, self._utc())
        feed.note_gap(gap, forgotten)
        log.error(
            "feed.gap",
            shard_id=self.shard_id,
            destination=feed.terms.name,
            behind=head.batch_id,
            through=forgotten,
        )

    async def _read_round(self) -> int:
        """Return the largest number of rows of a read."""
        heads: defaultdict[types.Place, list[DestinationFeed]] = defaultdict(list)
        for feed in self._feeds.values():
            if feed.is_reading:
                heads[feed.window.head].append(feed)
            else:
                feed.is_awaited = True
        found: list[tuple[list[events.LogRow], _ReadEvents]] = []
        places = sorted(heads)
        for place, following in zip(places, [*places[1:], types.END], strict=False):
            if rows := await self._read_from(place, following, heads[place]):  # up to the next, to join it
                # Not of batches that the retention has deleted: of those some rows may be missing.
                kept = [row for row in rows if row.batch.batch_id > (row.batch.forgotten or 0)]
                found.append((rows, await self._events_of(rows[0].batch, kept, heads[place])))
        if not found:
            return 0
        if not await self._becomes_safe([one for _, read in found for one in read.facts]):
            return 0
        for _, read in found:
            for feed in read.feeds:
                self._note_gap(feed, read.latest.forgotten, read.latest.forgotten_at)
                if read.rows:
                    feed.add(read.rows, read.documents_for(feed))
        return max(len(rows) for rows, _ in found)

    async def _read_from(
        self, place: types.Place, through: types.Place, feeds: Sequence[DestinationFeed]
    ) -> list[events.LogRow]:
        """Only a read that finds nothing shows the end of the log."""
        rows = await read_log(self._pool, self._required_token, place, READ_MAX, through)
        for feed in feeds:
            feed.is_at_end = through == types.END and not rows
        return rows

    async def _becomes_safe(self, facts: Sequence[ReplicationFacts]) -> bool:
        """Return whether what was committed before the answers with *facts* has become safe; False at the end."""
        if self._state is None or {one.server for one in facts} != {self._state.server}:
            raise RunChangedError
        if self._commits.is_read_safe(self.shard_id, facts[-1]):
            return True
        return await run_until(self._ending, self._commits.wait_for_read(self.shard_id, facts[-1]))

    async def _events_of(
        self, latest: events.LogBatch, rows: Sequence[events.LogRow], feeds: Sequence[DestinationFeed]
    ) -> _ReadEvents:
        """Return the events of as many rows as there is room for their documents."""
        read = [events.read_row(row, self._publication) for row in rows]
        wanted = events.WantedDocuments(read, [feed.terms for feed in feeds])
        if not wanted.resources:
            return _ReadEvents(feeds, latest, [latest.facts], read, {})
        found = await read_documents(self._pool, wanted.resources, self._documents.part // 2)
        if found.left_at is not None:
            read = read[: wanted.row_count(found.left_at)]
        return _ReadEvents(feeds, latest, [latest.facts, found.facts], read, wanted.by_event(found.by_number))

    def _start_asking(self, tasks: asyncio.TaskGroup) -> None:
        is_asking = self._asking is not None and not self._asking.done()
        if is_asking or loop_time() < self._asked_at + self._ask_pause_s:
            return
        if any(feed.waits_for for feed in self._feeds.values()):
            self._asking = tasks.create_task(self._ask_sources(), name=f"feed:{self.shard_id}:sources")
        else:
            self._ask_pause_s = ASK_MIN_S

    async def _ask_sources(self) -> None:
        waiting = [(feed, feed.waits_for) for feed in self._feeds.values() if feed.waits_for is not None]
        answers = await asyncio.gather(*(self._is_passed(feed.terms.name, arrival) for feed, arrival in waiting))
        for (feed, arrival), is_passed in zip(waiting, answers, strict=True):
            if is_passed:
                feed.pass_arrival(arrival)
        self._asked_at = loop_time()
        self._ask_pause_s = ASK_MIN_S if any(answers) else min(2 * self._ask_pause_s, ASK_MAX_S)
        self._changed.set()

    async def _is_passed(self, name: str, arrival: types.Arrival) -> bool:
        """Return whether the destination *name* has passed a departure on its shard; no if that does not answer.

        The cursor of the source has to be safe: if it goes back, events before the departure are sent again.
        """
        source = arrival.source
        if source == self.shard_id:
            return True  # its log has both in order
        if (pool := self._pools.by_shard_id().get(source)) is None:
            return False
        try:
            async with asyncio.timeout(SOURCE_S):
                server = await find_passed(pool, name, arrival)
                if server is not None:
                    await self._commits.wait_for_transaction(source, server)
                return server is not None
        except (RetryableError, TimeoutError):
            return False

    @property
    def _has_unwritten(self) -> bool:
        return any(feed.row() != feed.written for feed in self._feeds.values())

    async def _write_cursors(self, *, is_due: bool = False) -> None:
        now = loop_time()
        if not is_due and now < self._written_at + CURSOR_INTERVAL_S:
            return
        due = [(feed, row) for feed in self._feeds.values() if (row := feed.row()) != feed.written]
        if not due or self._state is None:
            return
        self._written_at = now
        if not await write_cursors(self._pool, self._required_token, self._state.server, [row for _, row in due]):
            raise RunChangedError
        for feed, row in due:
            feed.written = row


def _first_of(group: BaseExceptionGroup[Exception]) -> Exception:
    leaves: list[Exception] = []
    for one in group.exceptions:
        leaves += [_first_of(one)] if isinstance(one, BaseExceptionGroup) else [one]
    return min(leaves, key=lambda one: not isinstance(one, NotPublisherError | TimeoutError))
