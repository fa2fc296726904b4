from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from simulation.virtual_time import VirtualLoop
from structlog.testing import capture_logs
from support.queued_operations import UnclaimedPositions, progress_of, queued_operation

from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.holding.ownership import CheckpointTracker
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.reader.letter_outbox import LetterOutbox
from simplu_worker.consumers.pipeline.home_lookup import (
    BUSINESS_CROWD_COUNT,
    CROWD_COUNT,
    MOVING_RETRY_S,
    PATIENCE_CHECK_S,
    WAIT_MAX_S,
    next_in_turn,
)
from simplu_worker.fairness import ShardTime
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import ABSENCE_MAX_AGE_S, UNKNOWN_TENANT_MARGIN, Operation, Outcome
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.types import TenantNotMadeError
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import Absence, HoldReason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAIT = timedelta(seconds=900)
OVERDUE = NOW - WAIT - UNKNOWN_TENANT_MARGIN


class NoTenant:
    def __init__(self) -> None:
        self.ages: list[float] = []
        self.times: defaultdict[str, ShardTime] = defaultdict(ShardTime)

    async def find_writable_shard(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        self.ages.append(absence_max_age_s)
        return Absence.UNREGISTERED

    def cached_shard_id(self, _tenant_id: str) -> str | None:
        return None

    def last_applied_at(self, _shard_id: str) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("arrived_at", "first_age_s"),
    [(NOW, ABSENCE_MAX_AGE_S), (OVERDUE + timedelta(milliseconds=1), ABSENCE_MAX_AGE_S), (OVERDUE, 0.0)],
)
async def test_tenant_is_asked_for_anew_before_something_is_given_up(arrived_at: datetime, first_age_s: float) -> None:
    gateway = NoTenant()
    letters: list[DeadLetter] = []
    async with running(gateway, letters) as dispatcher:
        dispatcher.send([queued_operation(arrived_at=arrived_at)])
        await eventually(lambda: len(gateway.ages) == 2 or bool(letters))
    assert gateway.ages[0] == first_age_s
    assert gateway.ages[1:] == ([] if letters else [0.0])
    assert bool(letters) is (arrived_at <= OVERDUE)
    assert dispatcher.pipeline.is_empty is bool(letters)


@asynccontextmanager
async def running(gateway: NoTenant, letters: list[DeadLetter] | None = None) -> AsyncIterator[Dispatcher]:

    async def store(stored: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        (letters if letters is not None else []).extend(stored)

    ending = asyncio.Event()
    outbox = LetterOutbox(cast("Any", SimpleNamespace(store=store)), lambda: ending)
    dispatcher = Dispatcher(
        cast("Any", progress_of(CheckpointTracker())),
        cast("Any", gateway),
        cast("Any", SimpleNamespace(memory=PrefetchMemory(2**20).open_quota())),
        outbox,
        rules=RetryRules((), WAIT),
        draw=lambda: 0.0,
        utc=lambda: NOW,
    )
    dispatcher.shard_positions.__class__ = UnclaimedPositions
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        dispatcher.pipeline.start(tasks, ending)
        tasks.create_task(outbox.run(ending))
        yield dispatcher
        ending.set()


class Maker(NoTenant):
    def __init__(self, known: set[tuple[str, str]]) -> None:
        super().__init__()
        self._known = known
        self.names: list[list[tuple[str, str]]] = []
        self.applied: list[tuple[str, str]] = []

    async def find_writable_shard(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        return Absence.NOT_HERE

    async def provision_on_first_use(self, _tenant_id: str, names: Sequence[tuple[str, str]]) -> str:
        self.names.append(list(names))
        if self._known.isdisjoint(names):
            raise TenantNotMadeError("no such business")
        return "shard-1"

    async def apply(self, shard_id: str, operations: Sequence[Operation], *, claim: object = None) -> list[Outcome]:
        self.applied += [(operation.tenant_id, shard_id) for operation in operations]
        return [SUCCEEDED] * len(operations)


class FoundSince(Maker):
    def __init__(self) -> None:
        super().__init__(set())
        self._known_ids = iter([None])

    def cached_shard_id(self, _tenant_id: str) -> str | None:
        return next(self._known_ids, "shard-1")

    async def find_writable_shard(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        raise AssertionError(absence_max_age_s)


class Moving(Maker):
    def __init__(self, count: float) -> None:
        super().__init__(set())
        self._count = count
        self.asked_at: list[float] = []

    async def find_writable_shard(self, _tenant_id: str, *, absence_max_age_s: float) -> Any:
        self.asked_at.append(loop_time())
        return Absence.MOVING if len(self.asked_at) <= self._count else "shard-2"


def test_tenant_that_moves_is_asked_for_often_and_not_held() -> None:
    gateway = Moving(20)

    async def go() -> None:
        async with running(gateway) as dispatcher:
            dispatcher.send([queued_operation(arrived_at=NOW)])
            await eventually(lambda: dispatcher.pipeline.is_empty)
            assert dispatcher.ownership.holds() == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(go())
    pauses = [later - earlier for earlier, later in pairwise(gateway.asked_at)]
    assert pauses == pytest.approx([MOVING_RETRY_S] * 20)
    assert gateway.applied == [("b-l", "shard-2")]


def test_tenant_that_moves_for_long_is_held_and_asked_for_less() -> None:
    gateway = Moving(float("inf"))

    async def go() -> None:
        async with running(gateway) as dispatcher:
            began_at = loop_time()
            dispatcher.send([queued_operation(arrived_at=NOW)])
            await eventually(lambda: bool(dispatcher.ownership.holds()))
            held_at = loop_time()
            assert held_at - began_at == pytest.approx(WAIT_MAX_S, abs=PATIENCE_CHECK_S + 0.03)
            assert [hold.reason for hold in dispatcher.ownership.holds()] == [HoldReason.MOVING]
            await asyncio.sleep(2.0)
            assert 0 < sum(at > held_at + MOVING_RETRY_S for at in gateway.asked_at) < 12

    with capture_logs(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(go())
    assert gateway.applied == []


async def test_tenant_that_another_reader_has_found_is_not_looked_up() -> None:
    gateway = FoundSince()
    async with running(gateway) as dispatcher:
        dispatcher.send([queued_operation(arrived_at=NOW)])
        await eventually(lambda: dispatcher.pipeline.is_empty)
    assert gateway.applied == [("b-l", "shard-1")]


async def test_tenant_with_known_names_is_made_when_no_shard_has_it() -> None:
    maker = Maker({("b", "l")})
    async with running(maker) as dispatcher:
        dispatcher.send([queued_operation(arrived_at=NOW)])
        await eventually(lambda: dispatcher.pipeline.is_empty)
    assert (maker.names, maker.applied) == ([[("b", "l")]], [("b-l", "shard-1")])


@pytest.mark.parametrize(
    ("waiting", "lately", "running", "expected"),
    [
        ("", {}, {}, None),
        ("ab", {"a": 11}, {"a": 11}, "a"),
        ("ab", {"a": 12}, {"a": 12}, "b"),  # four are left to others
        ("a", {"a": 12}, {"a": 12}, None),
        ("ab", {"a": 12, "b": 4}, {"a": 12, "b": 4}, None),
        ("ab", {}, {"a": 47}, "a"),  # of those without an answer for long
        ("ab", {}, {"a": 48}, "b"),
        ("c", {}, {"a": 48, "b": 16}, None),
    ],
)
def test_business_leaves_lookups_to_others(
    waiting: str, lately: dict[str, int], running: dict[str, int], expected: str | None
) -> None:
    assert next_in_turn(waiting, lately, running) == expected


class SilentAboutFlood(Maker):
    async def find_writable_shard(self, tenant_id: str, *, absence_max_age_s: float) -> Any:
        if tenant_id.startswith("flood"):
            await asyncio.Event().wait()
        return "shard-1"


async def test_unknown_tenants_of_one_business_delay_no_other_and_are_held_beyond_its_part() -> None:
    gateway = SilentAboutFlood(set())
    async with running(gateway) as dispatcher:
        flood = [queued_operation(f"flood-{number}") for number in range(3 * CROWD_COUNT)]
        dispatcher.send(flood)
        assert not dispatcher.pipeline.lookup.is_crowded
        assert len(dispatcher.ownership.holds()) == 3 * CROWD_COUNT - BUSINESS_CROWD_COUNT
        quiet = queued_operation("quiet")
        operation = msgspec.structs.replace(quiet.operation, business_id="quiet")
        dispatcher.send([msgspec.structs.replace(quiet, operation=operation)])
        await eventually(lambda: gateway.applied == [("quiet", "shard-1")])


async def eventually(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110  # nothing to await
        await asyncio.sleep(0.01)
