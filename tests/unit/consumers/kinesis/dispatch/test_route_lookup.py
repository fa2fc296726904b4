"""The lookup of a tenant's shard: how old the answer may be, and when the tenant is created."""

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


class NoTenant:
    """A gateway that knows no tenant and records the lookups, and an owner that does nothing."""

    def __init__(self) -> None:
        self.ages: list[float] = []
        self.settled: list[QueuedOperation] = []

    async def find(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        """Return that it is not registered."""
        self.ages.append(absence_max_age_s)
        return Absence.UNREGISTERED

    def needs_lookup(self, _tenant_id: str) -> bool:
        """Let it be forgotten."""
        return False

    async def settle(self, entries: Sequence[QueuedOperation], _letters: Sequence[object]) -> None:
        """Record the operations given up."""
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
    """Its first answer may be seconds old; operations are given up only by a fresh one."""
    fake = NoTenant()
    lookup = RouteLookup(cast("Any", fake), cast("Any", fake), tenant_wait=WAIT, draw=lambda: 0.0, utc=lambda: NOW)
    lookup.add("b-l", [entry(arrived_at)])
    stopping = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(lookup.run(stopping))
        await eventually(lambda: len(fake.ages) == 2 or bool(fake.settled))
        stopping.set()
    assert fake.ages[0] == first_age_s
    assert fake.ages[1:] == ([] if fake.settled else [0.0])
    assert bool(fake.settled) is (arrived_at <= OVERDUE)


class Maker(NoTenant):
    """A gateway that knows tenants without a shard, and creates those of *known* names; an owner that takes them."""

    def __init__(self, known: set[tuple[str, str]]) -> None:
        super().__init__()
        self._known = known
        self.names: list[list[tuple[str, str]]] = []
        self.gone: list[tuple[str, str]] = []
        self.held: list[str] = []

    async def find(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        """Return that it is registered, and on no shard."""
        return Absence.NOT_HERE

    async def provision_on_first_use(self, _tenant_id: str, names: Sequence[tuple[str, str]]) -> str:
        """Make it on one shard."""
        self.names.append(list(names))
        if self._known.isdisjoint(names):
            raise TenantNotMadeError("no such business")
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


def lookup_of(maker: Maker) -> RouteLookup:
    """Return a lookup with *maker* as gateway and owner."""
    return RouteLookup(cast("Any", maker), cast("Any", maker), tenant_wait=WAIT, draw=lambda: 0.0, utc=lambda: NOW)


async def run_until(lookup: RouteLookup, is_so: Callable[[], bool]) -> None:
    """Let *lookup* ask until *is_so*."""
    stopping = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(lookup.run(stopping))
        await eventually(is_so)
        stopping.set()


async def test_tenant_is_made_when_no_shard_has_it_and_its_names_are_known() -> None:
    """The gateway gets the business and location of the operations; then these go to the tenant's shard."""
    maker = Maker({("b", "l")})
    lookup = lookup_of(maker)
    lookup.add("b-l", [entry(NOW)])
    await run_until(lookup, lambda: bool(maker.gone))
    assert (maker.names, maker.gone) == ([[("b", "l")]], [("b-l", "shard-1"), ("b-l", "caught up")])


async def test_tenant_is_held_with_the_reason_when_it_cannot_be_made() -> None:
    """It stays `not_here`, the log has the reason, and the lookups go on with the names seen."""
    maker = Maker(set())
    lookup = lookup_of(maker)
    lookup.add("b-l", [entry(NOW)])
    with capture_logs() as logs:
        await run_until(lookup, lambda: bool(maker.held) and len(maker.names) > 1)
    assert maker.held == [Absence.NOT_HERE]
    (held,) = [line for line in logs if line["event"] == "tenant.held"]
    assert (held["reason"], held["error"]) == ("not_here", "no such business")
    assert maker.names[-1] == [("b", "l")]
    assert maker.gone == []


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until *is_so*."""
    while not is_so():  # noqa: ASYNC110  # nothing to await
        await asyncio.sleep(0.01)


async def test_tenant_is_asked_for_at_once_when_nobody_was_here_for_long() -> None:
    """An empty lookup has no periodic check: each added tenant wakes it."""
    maker = Maker({("b", "l")})
    lookup = lookup_of(maker)
    stopping = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(lookup.run(stopping))
        for come in range(1, 4):
            await asyncio.sleep(2 * CHECK_INTERVAL_MAX_S if come == 1 else 0.0)
            assert lookup._next_check_s() is None
            lookup.add("b-l", [entry(NOW)])
            await eventually(lambda come=come: len(maker.gone) == 2 * come)  # type: ignore[misc]
        stopping.set()  # and it ends without another tenant


@pytest.mark.parametrize("has_tenant", [True, False])
async def test_room_ends_at_once_when_stopping(has_tenant: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Whether it waits for the next check or for a tenant."""
    maker = Maker(set())
    lookup = lookup_of(maker)
    stopping = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(lookup.run(stopping))
        if has_tenant:
            lookup.add("b-l", [entry(NOW)])
        await asyncio.sleep(0.05)
        stopping.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert run.done()
