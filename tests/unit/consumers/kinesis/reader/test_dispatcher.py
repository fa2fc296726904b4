from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.queued_operations import progress_of, queued_operation

from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.holding.ownership import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.tenant_set import Unread
from simplu_worker.consumers.kinesis.reader.catch_up import CatchUps
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.reader.letter_outbox import WAITING_MAX_BYTES, LetterOutbox
from simplu_worker.consumers.kinesis.reader.tenant_shares import TenantShares
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.fairness import Demand, ShardTime
from simplu_worker.operations.operation import Disposition, Operation, Origin, Outcome, RejectedRecord
from simplu_worker.operations.tries import RetryRules
from simplu_worker.timing.clock import UtcClock, utc_now
from simplu_worker.vocabulary import DeadLetterReason, HeldTarget, HoldReason, HoldState, Source

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Lost:
    """A gateway that knows no tenant."""

    def cached_shard_id(self, _tenant_id: str) -> None: ...


class Taking:
    """A gateway that knows one shard, and applies whatever it gets."""

    def __init__(self) -> None:
        self.time = ShardTime()
        self.times = {"shard-a": self.time}
        demand = Demand.of([queued_operation(f"t{number}-l").operation for number in range(1000)])
        for _ in range(50):  # until a tenth of a second is known
            self.time.note([demand], 100.0)

    def cached_shard_id(self, _tenant_id: str) -> str:
        return "shard-a"

    def last_applied_at(self, _shard_id: str) -> float:
        return 0.0

    async def apply(self, _shard_id: str, operations: Sequence[Operation], *, claim: object = None) -> list[Outcome]:
        return [Outcome(Disposition.APPLIED)] * len(operations)


def mark(number: int) -> RecordPosition:
    return RecordPosition.before_record(str(number), NOW)


def make_dispatcher(
    main: CheckpointTracker[RecordPosition],
    gateway: Lost | Taking | None = None,
    *,
    retention: timedelta | None = None,
    utc: UtcClock = utc_now,
) -> Dispatcher:
    return Dispatcher(
        cast("Any", progress_of(main, retention=retention, utc=utc)),
        cast("Any", gateway or Lost()),
        cast("Any", SimpleNamespace(memory=PrefetchMemory(2**20).open_quota())),
        cast("Any", None),
        rules=RetryRules((), timedelta(seconds=900)),
        utc=utc,
    )


def sent(dispatcher: Dispatcher, main: CheckpointTracker[RecordPosition], tenants: str) -> list[QueuedOperation]:
    entries = [queued_operation(f"{one}-l", tracker=main, number=number) for number, one in enumerate(tenants, 1)]
    dispatcher.send(entries)
    return entries


@pytest.mark.parametrize(
    ("age_s", "retention_s", "is_first"),
    [(60.0, 100.0, True), (40.0, 100.0, False), (60.0, None, False)],
    ids=["past half", "not yet", "unknown"],
)
async def test_tenant_over_its_share_goes_first_before_its_records_are_lost(
    age_s: float, retention_s: float | None, *, is_first: bool
) -> None:
    main = CheckpointTracker(mark(0))
    retention = None if retention_s is None else timedelta(seconds=retention_s)
    dispatcher = make_dispatcher(main, Taking(), retention=retention, utc=lambda: NOW + timedelta(seconds=age_s))
    async with asyncio.TaskGroup() as tasks:
        dispatcher.pipeline.start(tasks, ending := asyncio.Event())
        sent(dispatcher, main, "c" + "b" * 9)
        shares = TenantShares(dispatcher._progress, dispatcher, dispatcher._memory)
        shares.hold_excess()
        (lane,) = dispatcher.pipeline.lanes()
        shares.look_after_paced()
        hurried = lane._queue.hurried
        ending.set()

    assert hurried == ({"b-l"} if is_first else set())


async def test_business_with_too_many_dead_letters_is_held_alone() -> None:
    main = CheckpointTracker(mark(0))
    dispatcher = make_dispatcher(main)
    dispatcher.letters = LetterOutbox(cast("Any", None), asyncio.Event)
    half, reason = b"?" * (WAITING_MAX_BYTES // 2), DeadLetterReason.INVALID_JSON
    origin = Origin(Source.KINESIS, "operations", NOW)
    rejected = [
        (main.start(mark(number)), RejectedRecord(reason, "?", origin, business_id), half)
        for number, business_id in enumerate([None, None, None, "b", None], 1)
    ]
    dispatcher.reject(rejected, main)

    (hold,) = dispatcher.ownership.holds()
    assert (hold.title, hold.reached, hold.state, len(main)) == ("dead letters", mark(2), HoldState.READY, 3)
    assert dispatcher.letters.waiting_s(hold.tenants) > 1.0


async def test_held_targets_are_tried_now_by_name_or_all() -> None:
    dispatcher = make_dispatcher(CheckpointTracker(mark(0)))
    catch_ups = CatchUps(cast("Any", None), dispatcher, cast("Any", None), cast("Any", None), cast("Any", None))
    tenant = dispatcher.ownership.hold_tenant("b-l", HoldReason.NOT_HERE, [Unread(mark(0))], NOW, now=0.0)
    failing = dispatcher.ownership.hold_tenant("c-l", HoldReason.FAILING, [Unread(mark(1))], NOW, now=0.0)
    parents = dispatcher.ownership.hold_tenant("d-l", HoldReason.RESHARD, [Unread(mark(2))], NOW, now=0.0)
    parents.target = HeldTarget.PARENTS
    for hold in (tenant, failing, parents):
        hold.next_attempt_at = float("inf")

    assert catch_ups.retry_holds("tenant other") == 0
    catch_ups._ready_due_holds()
    assert failing.state is HoldState.HELD
    assert catch_ups.retry_holds("tenant c-l") == 1
    catch_ups._ready_due_holds()
    assert (failing.state, tenant.next_attempt_at) == (HoldState.READY, float("inf"))
    assert dispatcher.has_ready.is_set()
    assert catch_ups.retry_holds(None) == 1
    assert tenant.next_attempt_at < float("inf") == parents.next_attempt_at
