"""How old the answer about a tenant may be that waits for its shard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from simplu_worker.consumers.kinesis.lanes import Entry
from simplu_worker.consumers.kinesis.positions import Mark
from simplu_worker.consumers.kinesis.waiting import WaitingRoom
from simplu_worker.consumers.owed import Owed
from simplu_worker.consumers.unknown_tenants import ABSENCE_MAX_AGE_S, UNKNOWN_TENANT_MARGIN
from simplu_worker.operations.operation import Operation, OperationKind, Origin, Source
from simplu_worker.shards.directory import Absence

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAIT = timedelta(seconds=900)
OVERDUE = NOW - WAIT - UNKNOWN_TENANT_MARGIN


class Nobody:
    """A router that knows no tenant and notes how it is asked; and a host to which nothing is done."""

    def __init__(self) -> None:
        self.ages: list[float] = []
        self.settled: list[Entry] = []

    async def find(self, _tenant_id: str, *, absence_max_age_s: float) -> Absence:
        """Say that it is not registered."""
        self.ages.append(absence_max_age_s)
        return Absence.UNREGISTERED

    def is_asked_for(self, _tenant_id: str) -> bool:
        """Let it be forgotten."""
        return False

    async def settle(self, entries: Sequence[Entry], _letters: Sequence[object]) -> None:
        """Note what was given up."""
        self.settled += entries


def entry(arrived_at: datetime) -> Entry:
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
        requested_at=arrived_at,
        digest=b"",
        origin=Origin(Source.KINESIS, "stream", arrived_at),
        size_bytes=2,
    )
    return Entry(0, operation, b"", Owed[Mark]())


@pytest.mark.parametrize(
    ("arrived_at", "first_age_s"),
    [(NOW, ABSENCE_MAX_AGE_S), (OVERDUE + timedelta(milliseconds=1), ABSENCE_MAX_AGE_S), (OVERDUE, 0.0)],
)
async def test_tenant_is_asked_for_anew_when_something_is_to_be_given_up(
    arrived_at: datetime, first_age_s: float
) -> None:
    """Else its first answer may be seconds old; what is given up is so for an answer that is not."""
    nobody = Nobody()
    room = WaitingRoom(cast("Any", nobody), cast("Any", nobody), tenant_wait=WAIT, draw=lambda: 0.0, utc=lambda: NOW)
    room.put("b-l", [entry(arrived_at)])
    stopping = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(room.run(stopping))
        await eventually(lambda: len(nobody.ages) == 2 or bool(nobody.settled))
        stopping.set()
    assert nobody.ages[0] == first_age_s
    assert nobody.ages[1:] == ([] if nobody.settled else [0.0])
    assert bool(nobody.settled) is (arrived_at <= OVERDUE)


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until *is_so*."""
    while not is_so():  # noqa: ASYNC110  # nothing to await
        await asyncio.sleep(0.01)
