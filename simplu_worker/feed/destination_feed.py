"""The feed of one shard to one destination: its window, and what is delivered from it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import FailureCount, note_trouble
from simplu_worker.errors import RetryableError
from simplu_worker.feed import types
from simplu_worker.feed.events import ReadRow, lets_through, reset_event
from simplu_worker.feed.rows import CursorRow, NotPublisherError
from simplu_worker.feed.types import Destination as OpenDestination
from simplu_worker.feed.window import Budget, RefusedForGood, Window, WindowEvent
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import wait_any
from simplu_worker.vocabulary import FeedDelivery, FeedStop, OnRefusal, TargetKind

TRIES_NOTED: Final = 10  # of an event; the first ten take about a minute, each further ten five

OUTCOMES: Final = {
    types.Delivered: FeedDelivery.DELIVERED,
    types.RetryLater: FeedDelivery.RETRIED,
    types.Refused: FeedDelivery.REFUSED,
    types.Disabled: FeedDelivery.REFUSED,
}

KeepRefusal = Callable[[str, types.FeedEvent, str], Awaitable[None]]

log = structlog.get_logger(__name__)


class DestinationFeed:
    """What one destination gets of one shard, while this replica publishes it. *changed* wakes the reader."""

    def __init__(
        self,
        publication: types.Publication,
        terms: types.DestinationTerms,
        destination: OpenDestination,
        row: CursorRow,
        *,
        changed: asyncio.Event,
        documents: Budget,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.terms = terms
        self.publication = publication
        self.window = Window(row.place, documents)
        self.waits_for: types.Arrival | None = None  # at the head: what is behind waits for the feed of its source
        self._passed_arrival: types.Arrival | None = None  # the last one that waits no more
        self.stopped, self.error = row.stopped, row.error
        self._refused_event, self._passed_event = row.refused_event, row.passed_event
        self.waits_since: datetime | None = None  # the log has more, and it is not read yet
        self.is_at_end = False  # the last read found all that the log had
        self.is_awaited = False  # by the reader of the log, which found no room, or is at rest
        self._is_ending = False
        self.written = row
        self._shard_id = publication.shard_id
        self._reset_in = row.incarnation  # the last one whose reset the destination has had
        self._destination = destination
        self._changed = changed
        self._draw = draw
        self._wake = asyncio.Event()
        self._rules = terms.rules
        self._is_down = False
        self._paused_until = 0.0

    @property
    def is_reading(self) -> bool:
        """Whether it takes what is read of the log for all tenants: nothing is sent before a reset is delivered."""
        is_free = self.stopped is None and self.waits_for is None
        return is_free and not self._is_reset_due and self.window.has_room

    @property
    def _is_reset_due(self) -> bool:
        return self._reset_in != self.publication.incarnation

    @property
    def behind_since(self) -> datetime | None:
        """The time of the oldest event that is not delivered."""
        return self.window.behind_since or self.waits_since

    def row(self) -> CursorRow:
        """Return the row of the cursor as of now."""
        return CursorRow(
            destination=self.terms.name,
            place=self.window.cursor,
            incarnation=self._reset_in,
            waits_for=self.waits_for,
            stopped=self.stopped,
            error=self.error,
            refused_event=self._refused_event,
            passed_event=self._passed_event,
            behind_since=self.behind_since,
        )

    def begin(self, at: datetime) -> None:
        """Tell the destination first that the incarnation has begun, unless it knows."""
        if self._is_reset_due:
            self.add_events([reset_event(self.publication, self.window.cursor, at)])

    def add_events(self, events: Sequence[types.FeedEvent]) -> None:
        """Add events that are no rows of the log, before the next row."""
        batch_id, position = self.window.head
        place = types.Place(batch_id, position + 1)
        self.window.add([self._window_event(one, place) for one in events], self.window.head)
        self._wake.set()

    def add(self, rows: Sequence[ReadRow], data: dict[str, bytes]) -> None:
        """Add what was read behind the head, up to a tenant that has come here: that waits for its source."""
        events: list[WindowEvent] = []
        head = rows[-1].place
        for row in rows:
            arrival = row.arrival
            if arrival is not None and arrival != self._passed_arrival and self._wants(arrival):
                self.waits_for, head = arrival, row.place.before
                break
            events += self._wanted(row, data)
        self.window.add(events, head)
        self._wake.set()

    def note_gap(self, gap: types.FeedEvent, through: int) -> None:
        """Tell what the log has lost, and go on behind it; an arrival in it waits for nothing any more."""
        self.add_events([gap])
        self.window.head = types.Place(through, types.POSITION_MAX)
        self.waits_for = None

    def pass_arrival(self, arrival: types.Arrival) -> None:
        """Go on behind a tenant that came here, as the feed of its source has passed its departure."""
        if self.waits_for == arrival:
            self._passed_arrival, self.waits_for = arrival, None

    def _wants(self, arrival: types.Arrival) -> bool:
        return self.terms.tenants is None or arrival.tenant_id in self.terms.tenants

    def _wanted(self, row: ReadRow, data: dict[str, bytes]) -> list[WindowEvent]:
        return [
            self._window_event(_with_data(event, data), row.place)
            for event in row.events
            if lets_through(self.terms, event)
        ]

    def _window_event(self, event: types.FeedEvent, place: types.Place) -> WindowEvent:
        """One that is passed, or at which the feed stopped, gets one more try."""
        is_passed = event.id == self._passed_event
        is_last_try = is_passed or event.id == self._refused_event
        return WindowEvent(event, place, refusal_count=self.terms.tries - 1 if is_last_try else 0, is_passed=is_passed)

    def end(self) -> None:
        """Let `run` end behind the request that is under way."""
        self._is_ending = True
        self._wake.set()

    async def run(self, *, is_publisher: Callable[[], bool], keep_refusal: KeepRefusal) -> None:
        """Deliver until cancelled. Raises `NotPublisherError` once the lease of the row is over."""
        troubles = FailureCount()
        while not self._is_ending:
            window = self.window
            self._wake.clear()
            now = loop_time()
            due = [] if self.stopped or now < self._paused_until else window.due(self._destination.max_events, now=now)
            if not due:
                next_at = max(window.next_due_at() or now, self._paused_until)
                is_idle = self.stopped is not None or not len(window)
                await wait_any(self._wake, within_s=None if is_idle else max(next_at - now, 0.001))
                continue
            if not is_publisher():
                raise NotPublisherError
            try:
                await self._deliver(window, due, keep_refusal)
            except NotPublisherError:
                raise
            except RetryableError:
                pass  # the shard did not take a refused event, which is due again
            except Exception as exc:  # noqa: BLE001  (unforeseen: the trouble of this destination)
                note_trouble(TargetKind.FEED, self.terms.name, "feed", exc)
                self._paused_until = loop_time() + troubles.next_delay_s(self._draw())

    async def _deliver(self, window: Window, due: Sequence[WindowEvent], keep_refusal: KeepRefusal) -> None:
        deliveries = await self._destination.publish([one.event for one in due])
        now = loop_time()
        counts = Counter(OUTCOMES[type(one)] for one in deliveries)
        for outcome, count in counts.items():
            instruments.FEED_DELIVERIES.labels(self.terms.name, outcome).inc(count)
        all_finished = window.settle(due, deliveries, rules=self._rules, now=now, draw=self._draw())
        self._note_availability(due, deliveries, now)
        for finished in sorted(all_finished, key=lambda one: isinstance(one, RefusedForGood)):
            match finished:
                case WindowEvent():
                    self._note_passed(finished.event)
                case types.Disabled():
                    self._stop(FeedStop.DISABLED, finished.error)
                case RefusedForGood():
                    await self._refuse(window, finished, keep_refusal)
        self._note_tries(due[0], deliveries[0])
        if self._is_reset_due and not len(self.window):
            self._reset_in = self.publication.incarnation
            self._changed.set()
            log.info("feed.reset", shard_id=self._shard_id, destination=self.terms.name)
        if self.is_awaited and (self.is_reading or not len(window)):
            self.is_awaited = False
            self._changed.set()

    def _note_tries(self, first: WindowEvent, delivery: types.Delivery) -> None:
        if isinstance(delivery, types.RetryLater) and first.retry_count % TRIES_NOTED == 0:
            log.warning(
                "feed.event_retried",
                shard_id=self._shard_id,
                destination=self.terms.name,
                event_id=first.event.id,
                error=delivery.error,
            )

    def _note_availability(self, due: Sequence[WindowEvent], deliveries: Sequence[types.Delivery], now: float) -> None:
        """Leave a destination alone that takes nothing now, or asks for it."""
        errors = [one.error for one in deliveries if not isinstance(one, types.Delivered)]
        retried = [one for one in deliveries if isinstance(one, types.RetryLater)]
        asked_s = [one.after_s for one in retried if one.after_s is not None]
        self._paused_until = max([self._paused_until, *(now + one for one in asked_s)])
        if len(retried) == len(due):
            self._paused_until = max(self._paused_until, min(one.due_at for one in due))
            if not self._is_down:
                log.warning("feed.unavailable", shard_id=self._shard_id, destination=self.terms.name, error=errors[-1])
        elif self._is_down:
            log.info("feed.recovered", shard_id=self._shard_id, destination=self.terms.name)
        self._is_down = len(retried) == len(due)
        self.error = errors[-1] if errors else None

    async def _refuse(self, window: Window, refused: RefusedForGood, keep_refusal: KeepRefusal) -> None:
        event = refused.one.event
        is_to_stop = self.terms.on_refusal is OnRefusal.STOP and not refused.one.is_passed
        if is_to_stop and event.id != self._refused_event:
            if self.stopped is None:
                self._refused_event = event.id
                self._stop(FeedStop.REFUSED, refused.error)
            return
        await keep_refusal(self.terms.name, event, refused.error)
        window.finish(refused.one)
        self._note_passed(event)
        log.error(
            "feed.refused",
            shard_id=self._shard_id,
            destination=self.terms.name,
            event_id=event.id,
            error=refused.error,
        )

    def _note_passed(self, event: types.FeedEvent) -> None:
        if event.id == self._refused_event:
            self._refused_event = None
        if event.id == self._passed_event:
            self._passed_event = None

    def _stop(self, why: FeedStop, error: str) -> None:
        if self.stopped is None:
            self.stopped, self.error = why, error
            self._changed.set()
            log.error("feed.stopped", shard_id=self._shard_id, destination=self.terms.name, reason=why, error=error)


def _with_data(event: types.FeedEvent, data: dict[str, bytes]) -> types.FeedEvent:
    document = data.get(event.id)
    return event if document is None else msgspec.structs.replace(event, data=document)
