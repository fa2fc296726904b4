"""Keep what waits for Postgres shards small: hold what is over a share, late, or behind a stuck batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from simplu_worker.consumers.kinesis.fetch.pacing import MemoryQuota
from simplu_worker.consumers.kinesis.holding.ownership import Hold
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher, StreamLane
from simplu_worker.consumers.kinesis.recovery.reader_progress import ReaderProgress
from simplu_worker.consumers.kinesis.recovery.shard_positions import cost_bytes_of
from simplu_worker.fairness import OVER_SHARE_S, TURN_S
from simplu_worker.operations.operation import Operation

STUCK_QUEUE_MAX_BYTES: Final = 1024 * 1024  # behind a batch that may never be answered
LATE_QUEUE_MIN_BYTES: Final = 1024 * 1024  # of a lane that is late, whatever it is expected to take
AHEAD_MAX_COUNT: Final = 500  # in a lane, its batch included: more is in one large reply
AHEAD_MAX_S: Final = 2 * OVER_SHARE_S  # queued behind the batch: enough for a tenant to be seen beyond its share

log = structlog.get_logger(__name__)


class TenantShares:
    """The lanes of one reader, and which of them have enough."""

    def __init__(self, progress: ReaderProgress, dispatcher: Dispatcher, memory: MemoryQuota) -> None:
        self._progress = progress
        self._dispatcher = dispatcher
        self._memory = memory
        self._ownership = dispatcher.ownership
        self._pipeline = dispatcher.pipeline

    def may_read_on(self) -> bool:
        """Return whether what the main reader sends would not wait long."""
        lanes = self._pipeline.lanes()
        if self._pipeline.has_idle_lane:
            return True
        self.hold_excess()
        is_apart = self._ownership.is_apart
        if any(hold.is_paced for hold in self._ownership.holds()):
            return any(lane.waiting_s(is_apart) < TURN_S for lane in lanes)
        return any(len(lane) < AHEAD_MAX_COUNT and lane.waiting_s(is_apart) < AHEAD_MAX_S for lane in lanes)

    def hold_excess(self) -> bool:
        """Hold what makes others wait; return whether there was any.

        First the business furthest beyond its share of each lane: its newest operations leave memory. Where the memory
        is short all the same, what the lane with most is late with, if another lane could take work.
        """
        has_held = False
        for lane in self._pipeline.lanes():
            if newest := lane.over_share(self._ownership.is_apart):
                self._dispatcher.hold_newest(lane, newest)
                has_held = True
        if not self._memory.is_short or (late := self._find_latest()) is None:
            return has_held
        if newest := late.excess(self._is_held):
            self._dispatcher.hold_behind(late, newest)
        return has_held or bool(newest)

    def _find_latest(self) -> StreamLane | None:
        lanes, is_apart = self._pipeline.lanes(), self._ownership.is_apart
        if len(lanes) < 2:
            return None
        waits_s = {lane: lane.waiting_s(is_apart) for lane in lanes}
        free = [one for one in lanes if one.is_active and not one.is_late and waits_s[one] < TURN_S]
        sizes = {lane: cost_bytes_of(lane.queued) for lane in lanes}
        late = max(lanes, key=sizes.__getitem__, default=None)  # expected seconds may be far too few
        if late is None or all(one is late for one in free):
            return None
        if waits_s[late] < AHEAD_MAX_S and sizes[late] < LATE_QUEUE_MIN_BYTES:
            return None
        hold = self._ownership.shard_hold(late.shard_id)
        return None if hold is not None and hold.is_backfill else late  # it takes the tenants that it meets

    def _is_held(self, tenant_id: str) -> bool:
        return self._ownership.owner_of(tenant_id) is not None

    def paced_s(self, holds: Sequence[Hold]) -> float:
        """Return the most seconds that queued operations of a hold for a share take, or its waiting dead letters."""
        lanes = self._pipeline.lanes()
        paced = [hold.tenants.__contains__ for hold in holds if hold.is_paced]
        waits_s = [sum([lane.queued_s(is_own) for lane in lanes]) for is_own in paced]
        return max([self.letters_s(holds), *waits_s])

    def letters_s(self, holds: Sequence[Hold]) -> float:
        """Return the most seconds that waiting dead letters of a hold take."""
        return max([self._dispatcher.letters.waiting_s(hold.tenants) for hold in holds], default=0.0)

    def cost_s(self, operation: Operation) -> float:
        """Return the seconds that an operation is expected to take of its lane; 0 without one."""
        lane = self._pipeline.lane_of(operation.tenant_id)
        return 0.0 if lane is None else lane.cost_s(operation)

    def look_after_paced(self) -> None:
        """Have the lanes with more than a share take short turns."""
        hurried: set[str] = set()
        for hold in self._ownership.holds():
            if not hold.is_paced:
                continue
            for lane in self._pipeline.lanes():
                if lane.queued_s(hold.tenants.__contains__):
                    lane.note_flood()
            if self._progress.is_half_over(hold.first_arrival):
                hurried |= hold.tenants.names
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
