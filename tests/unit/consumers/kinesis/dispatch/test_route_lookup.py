"""What is asked about a tenant that waits for its shard: how old the answer may be, and when it is made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from simplu_worker.consumers.kinesis.dispatch.route_lookup import CHECK_INTERVAL_MAX_S, RouteLookup
from simplu_worker.consumers.kinesis.dispatch.shard_lane import QueuedOperation
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.operations.operation import Operation, OperationKind, Origin, Source
from simplu_worker.operations.unknown_tenants import ABSENCE_MAX_AGE_S, UNKNOWN_TENANT_MARGIN
from simplu_worker.shards.types import Absence, TenantNotMadeError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAIT = timedelta(seconds=900)
OVERDUE = NOW - WAIT - UNKNOWN_TENANT_MARGIN


class Nobody:
    """A gateway that knows no tenant and notes how it is asked; and a host to which nothing is done."""

    def __init__(self) -> None:
        self.ages: list[float] = []
        self.settled: list[QueuedOperation] = []

    async def find(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        """Say that it is not registered."""
        self.ages.append(absence_max_age_s)
        return Absence.UNREGISTERED

    def needs_lookup(self, _tenant_id: str) -> bool:
        """Let it be forgotten."""
        return False

    async def settle(self, entries: Sequence[QueuedOperation], _letters: Sequence[object]) -> None:
        """Note what was given up."""
        self.settled += entries


def entry(arrived_at: datetime) -> QueuedOperation:
    """Return an operation."""
    operation = Operation(
        kind=OperationKind.CREATE,
        business_id="b",
        location_id="l",
        tenant_id="b-l",
        resource_type="order",
        resource_id="o",
        request_id="r",
        data="{}",
        query=None,
        requested_at=arrived_at.isoformat(),
        digest=b"",
        origin=Origin(Source.KINESIS, "stream", arrived_at),
        size_bytes=2,
    )
    return QueuedOperation(0, operation, b"", CheckpointTracker[RecordPosition]())


@pytest.mark.parametrize(
    ("arrived_at", "first_age_s"),
    [(NOW, ABSENCE_MAX_AGE_S), (OVERDUE + timedelta(milliseconds=1), ABSENCE_MAX_AGE_S), (OVERDUE, 0.0)],
)
async def test_tenant_is_asked_for_anew_when_something_is_to_be_given_up(
    arrived_at: datetime, first_age_s: float
) -> None:
    """Else its first answer may be seconds old; what is given up is so for an answer that is not."""
    nobody = Nobody()
    room = RouteLookup(cast("Any", nobody), cast("Any", nobody), tenant_wait=WAIT, draw=lambda: 0.0, utc=lambda: NOW)
    room.add("b-l", [entry(arrived_at)])
    stopping = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(room.run(stopping))
        await eventually(lambda: len(nobody.ages) == 2 or bool(nobody.settled))
        stopping.set()
    assert nobody.ages[0] == first_age_s
    assert nobody.ages[1:] == ([] if nobody.settled else [0.0])
    assert bool(nobody.settled) is (arrived_at <= OVERDUE)


class Maker(Nobody):
    """A gateway that knows tenants which no shard has, and makes those of *known* names; a host that takes them."""

    def __init__(self, known: set[tuple[str, str]]) -> None:
        super().__init__()
        self._known = known
        self.names: list[list[tuple[str, str]]] = []
        self.gone: list[tuple[str, str]] = []
        self.held: list[str] = []

    async def find(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        """Say that it is registered, and that no shard has it."""
        return Absence.NOT_HERE

    async def provision_on_first_use(self, _tenant_id: str, names: Sequence[tuple[str, str]]) -> str:
        """Make it on one shard."""
        self.names.append(list(names))
        if self._known.isdisjoint(names):
            raise TenantNotMadeError("nobody knows it")
        return "shard-1"

    def route_to_lane(self, tenant_id: str, shard_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Take them."""
        self.gone.append((tenant_id, shard_id))

    def hold_tenant(self, entries: Sequence[QueuedOperation], reason: str, *, shard_id: str | None) -> bool:
        """Note the reason."""
        self.held.append(reason)
        return True

    def needs_lookup(self, _tenant_id: str) -> bool:
        """Go on."""
        return True

    def on_tenant_found(self, tenant_id: str) -> None:
        """Note it; it may have been held, too."""
        self.gone.append((tenant_id, "caught up"))


def room_of(maker: Maker) -> RouteLookup:
    """Return a waiting room whose gateway and host are *maker*."""
    return RouteLookup(cast("Any", maker), cast("Any", maker), tenant_wait=WAIT, draw=lambda: 0.0, utc=lambda: NOW)


async def run_until(room: RouteLookup, is_so: Callable[[], bool]) -> None:
    """Let *room* ask until *is_so*."""
    stopping = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(room.run(stopping))
        await eventually(is_so)
        stopping.set()


async def test_tenant_is_made_when_no_shard_has_it_and_its_names_are_known() -> None:
    """The gateway is told the business and location of the operations; then they go to the shard that has it."""
    maker = Maker({("b", "l")})
    room = room_of(maker)
    room.add("b-l", [entry(NOW)])
    await run_until(room, lambda: bool(maker.gone))
    assert (maker.names, maker.gone) == ([[("b", "l")]], [("b-l", "shard-1"), ("b-l", "caught up")])


async def test_tenant_is_held_with_the_reason_when_it_cannot_be_made() -> None:
    """It stays `not_here`, the log says why, and the asking goes on by the names that were seen."""
    maker = Maker(set())
    room = room_of(maker)
    room.add("b-l", [entry(NOW)])
    with capture_logs() as logs:
        await run_until(room, lambda: bool(maker.held) and len(maker.names) > 1)
    assert maker.held == [Absence.NOT_HERE]
    (held,) = [line for line in logs if line["event"] == "tenant.held"]
    assert (held["reason"], held["error"]) == ("not_here", "nobody knows it")
    assert maker.names[-1] == [("b", "l")]
    assert maker.gone == []


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until *is_so*."""
    while not is_so():  # noqa: ASYNC110  # nothing to await
        await asyncio.sleep(0.01)


async def test_tenant_is_asked_for_at_once_when_nobody_was_here_for_long() -> None:
    """An empty room does not look by the clock: who comes wakes it, each time anew."""
    maker = Maker({("b", "l")})
    room = room_of(maker)
    stopping = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(room.run(stopping))
        for come in range(1, 4):
            await asyncio.sleep(2 * CHECK_INTERVAL_MAX_S if come == 1 else 0.0)
            assert room._next_check_s() is None
            room.add("b-l", [entry(NOW)])
            await eventually(lambda come=come: len(maker.gone) == 2 * come)  # type: ignore[misc]
        stopping.set()  # and it ends, though nobody comes


@pytest.mark.parametrize("has_tenant", [True, False])
async def test_room_ends_at_once_when_stopping(has_tenant: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Whether it waits for the clock or for somebody."""
    maker = Maker(set())
    room = room_of(maker)
    stopping = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(room.run(stopping))
        if has_tenant:
            room.add("b-l", [entry(NOW)])
        await asyncio.sleep(0.05)
        stopping.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert run.done()
