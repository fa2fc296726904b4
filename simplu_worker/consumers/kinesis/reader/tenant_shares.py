"""Keep what waits for Postgres shards small: hold tenants over their share, and what is behind a stuck batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from simplu_worker.consumers.kinesis.holding.ownership import Hold
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderProgress
from simplu_worker.consumers.kinesis.recovery.shard_positions import cost_bytes_of
from simplu_worker.fairness import OVER_SHARE_S, TURN_S

STUCK_QUEUE_MAX_BYTES: Final = 1024 * 1024  # behind a batch that may never be answered
AHEAD_MAX_COUNT: Final = 500  # in a lane, its batch included: more is in one large reply
AHEAD_MAX_S: Final = 2 * OVER_SHARE_S  # queued behind the batch: enough for a tenant to be seen beyond its share

log = structlog.get_logger(__name__)


class TenantShares:
    """The lanes of one reader, and which of them have enough."""

    def __init__(self, progress: ReaderProgress, dispatcher: Dispatcher) -> None:
        self._progress = progress
        self._dispatcher = dispatcher
        self._ownership = dispatcher.ownership
        self._pipeline = dispatcher.pipeline

    def may_read_on(self) -> bool:
        """Return whether what the main reader sends would not wait long."""
        lanes = self._pipeline.lanes()
        if self._pipeline.has_idle_lane:
            return True
        self.hold_over_share()
        is_paced = self._ownership.has_own_hold
        if any(hold.is_paced for hold in self._ownership.holds()):
            return any(lane.waiting_s(is_paced) < TURN_S for lane in lanes)
        return any(len(lane) < AHEAD_MAX_COUNT and lane.waiting_s(is_paced) < AHEAD_MAX_S for lane in lanes)

    def hold_over_share(self) -> None:
        """Hold the tenant furthest beyond its share of each lane: its newest operations leave memory."""
        for lane in self._pipeline.lanes():
            if self._ownership.has_room and (newest := lane.over_share(self._ownership.has_own_hold)):
                self._dispatcher.hold_newest(lane, newest)

    def paced_s(self, holds: Iterable[Hold]) -> float:
        """Return the most seconds that queued operations of a tenant over its share take."""
        lanes = [(self._pipeline.lane_of(hold.name), hold.name) for hold in holds if hold.is_paced]
        return max([lane.queued_s(tenant_id) for lane, tenant_id in lanes if lane is not None], default=0.0)

    def look_after_paced(self) -> None:
        """Have the lanes of tenants over their share take short turns."""
        hurried: set[str] = set()
        for hold in self._ownership.holds():
            if not hold.is_paced:
                continue
            if (lane := self._pipeline.lane_of(hold.name)) is not None:
                lane.note_flood()
            if self._progress.is_half_over(hold.first_arrival):
                hurried.add(hold.name)
        for lane in self._pipeline.lanes():
            lane.hurry(hurried)

    def shed_stuck_lanes(self, *, is_memory_short: bool) -> None:
        """Hold what is behind a batch that may never be answered; with little memory the batch, too."""
        for lane in self._pipeline.lanes():
            if not lane.is_stuck:
                continue
            if (is_memory_short or cost_bytes_of(lane.queued) > STUCK_QUEUE_MAX_BYTES) and (queue := lane.take_queue()):
                log.warning("shard.held", shard_id=lane.shard_id, operations=len(queue), error="no answer yet")
                self._dispatcher.hold_shard(lane.shard_id, queue)
            if is_memory_short:
                lane.give_up_batch()
