from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.address import places_of
from simplu_worker.shards.postgres.connector import ShardConnection, TargetSessionAttrs, target_of
from simplu_worker.shards.postgres.lender import ConnectionLender, SharedBudget
from simplu_worker.shards.postgres.statement_timeouts import FORMATS, Isolation, ShardTimeouts, StatementBudget
from simplu_worker.shards.types import ShardUnavailableError


class FakeConnection(ShardConnection):
    """A connection to no server."""

    __slots__ = ("has_ended", "on_end")

    def __init__(self) -> None:
        self.opened_at = asyncio.get_running_loop().time()
        self.has_ended = False
        self.on_end: Callable[[object], None] = lambda _: None

    def __del__(self) -> None:
        pass

    def is_closed(self) -> bool:
        return self.has_ended

    def is_in_transaction(self) -> bool:
        return False

    def add_termination_listener(self, callback: Any) -> None:
        self.on_end = callback

    def terminate(self) -> None:
        self.has_ended = True

    def die(self) -> None:
        self.has_ended = True
        self.on_end(self)


class Server:
    """Opens connections, one tick later; every *failing*th is refused."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.asked_count = 0
        self.opened: list[FakeConnection] = []

    @property
    def open_count(self) -> int:
        return sum(not connection.has_ended for connection in self.opened)

    async def open(self) -> ShardConnection:
        self.asked_count += 1
        await asyncio.sleep(0)
        if self.failing and self.asked_count % self.failing == 0:
            raise ShardUnavailableError("refused")
        self.opened.append(FakeConnection())
        return self.opened[-1]


class World:
    """Lenders with a budget of three connections, and their callers."""

    def __init__(self, failing: int) -> None:
        self.server = Server(failing)
        self.budget = SharedBudget(3, idle_s=60.0)
        self.lenders = [ConnectionLender(self.server.open, size=2, budget=self.budget) for _ in range(2)]
        self.callers: list[asyncio.Task[None]] = []
        self.lent: list[tuple[ConnectionLender, ShardConnection]] = []

    async def use(self, lender: ConnectionLender) -> None:
        with contextlib.suppress(ShardUnavailableError):
            self.lent.append((lender, await lender.borrow(within_s=60.0)))

    def ask(self, number: int) -> None:
        self.callers.append(asyncio.get_running_loop().create_task(self.use(self.lenders[number % 2])))

    def cancel(self, number: int) -> None:
        if self.callers:
            self.callers[-number % len(self.callers)].cancel()

    def give_back(self, number: int) -> None:
        if self.lent:
            lender, connection = self.lent.pop(number % len(self.lent))
            lender.give_back(connection)

    def stop(self, number: int) -> None:
        if self.lent:
            lender, connection = self.lent.pop(number % len(self.lent))
            assert lender.remove_lent(connection)
            connection.terminate()
            lender.release_slot()

    def die(self, number: int) -> None:
        if self.server.opened:
            self.server.opened[number % len(self.server.opened)].die()

    def expire(self, number: int) -> None:
        self.lenders[number % 2].expire()

    def reject(self, number: int) -> None:
        self.lenders[number % 2].reject_waiters(lambda: ShardUnavailableError("cut off"))

    async def finish(self) -> None:
        for _ in range(5 * len(self.callers)):  # each is served as soon as others give back
            self.give_back(0)
            await asyncio.sleep(0)
        forgotten = [caller for caller in self.callers if not caller.done()]
        for caller in forgotten:
            caller.cancel()
        await asyncio.sleep(0)
        while self.lent:
            self.give_back(0)
        assert forgotten == []


ACTIONS = (World.ask, World.cancel, World.give_back, World.stop, World.die, World.expire, World.reject)


@given(
    st.lists(st.tuples(st.sampled_from([World.ask, *ACTIONS]), st.integers(0, 9), st.booleans()), max_size=80),
    st.integers(0, 4),
)
def test_no_connection_is_lost_and_no_caller_forgotten(
    actions: list[tuple[Callable[[World, int], None], int, bool]], failing: int
) -> None:
    asyncio.run(_check(actions, failing))


async def _check(actions: list[tuple[Callable[[World, int], None], int, bool]], failing: int) -> None:
    world = World(failing)
    for act, number, ends_tick in actions:
        act(world, number)
        if ends_tick:
            await asyncio.sleep(0)
        assert world.server.open_count <= world.budget.open_count <= 3
    await world.finish()
    world.die(0)
    counts = [lender.counts() for lender in world.lenders]
    assert [(count["waiting"], count["open"] - count["idle"]) for count in counts] == [(0, 0), (0, 0)]
    assert world.server.open_count == world.budget.open_count == sum(count["open"] for count in counts)
    for lender in world.lenders:
        await lender.close(within_s=0.0)
    assert (world.server.open_count, world.budget.open_count) == (0, 0)


async def test_caller_leaves_its_place_and_gets_no_dead_connection() -> None:
    budget = SharedBudget(1, idle_s=60.0)
    lender = ConnectionLender(Server().open, size=1, budget=budget)
    connection = await lender.borrow(within_s=60.0)
    with pytest.raises(TimeoutError):
        await lender.borrow(within_s=0.0)
    assert lender.counts() == {"open": 1, "idle": 0, "waiting": 0}
    lender.give_back(connection)
    assert lender.counts() == {"open": 1, "idle": 1, "waiting": 0}
    assert await lender.borrow(within_s=60.0) is connection
    lender.give_back(connection)
    connection.terminate()  # and nobody knows yet
    lender.give_back(await lender.borrow(within_s=60.0))
    assert lender.counts() == {"open": 1, "idle": 1, "waiting": 0}


@pytest.mark.parametrize(
    ("query", "hosts", "expected"),
    [
        ("", "a", TargetSessionAttrs.ANY),
        ("", "a,b", TargetSessionAttrs.READ_WRITE),  # of several, one takes the writes
        ("?sslmode=disable", "a,b", TargetSessionAttrs.READ_WRITE),
        ("?target_session_attrs=any", "a,b", TargetSessionAttrs.ANY),
        ("?target_session_attrs=primary", "a", TargetSessionAttrs.PRIMARY),
        ("?target_session_attrs=any&target_session_attrs=standby", "a", TargetSessionAttrs.STANDBY),
    ],
)
def test_target_is_what_the_string_says_or_takes_writes_of_several(
    query: str, hosts: str, expected: TargetSessionAttrs
) -> None:
    url = f"postgresql://u:p@{hosts}/d{query}"

    assert target_of(url, places_of(url)) is expected


@pytest.mark.parametrize(
    ("budget", "statement_ms", "lock_ms"),
    [
        (StatementBudget.USUAL, 25_000, 5_000),
        (StatementBudget.BATCH, 10_000, 300),
        (StatementBudget.PART, 2_000, 100),
        (StatementBudget.PATIENT_BATCH, 10_000, 5_000),
        (StatementBudget.PAUSE, 25_000, 300),
        (StatementBudget.SEARCH, 3_000, 1_500),
        (StatementBudget.KEY_RANGE, 25_000, 5_000),
    ],
)
def test_transaction_has_the_timeouts_of_its_budget(budget: StatementBudget, statement_ms: int, lock_ms: int) -> None:
    begin = ShardTimeouts().begin(budget)
    assert f"SET LOCAL statement_timeout = {statement_ms};" in begin
    assert f"SET LOCAL lock_timeout = {lock_ms};" in begin
    limits = ShardTimeouts().limits_of(budget)
    assert (limits.statement_s * 1000, limits.lock_s * 1000) == (statement_ms, lock_ms)
    assert begin.startswith("BEGIN ISOLATION LEVEL READ COMMITTED;\nSET LOCAL lock_timeout")
    assert begin.endswith(f"SET LOCAL statement_timeout = {statement_ms};\n{limits.plans}")


@pytest.mark.parametrize("budget", [one for one in StatementBudget if one is not StatementBudget.PAUSE])
def test_wait_for_a_lock_is_never_longer_than_for_any(budget: StatementBudget) -> None:
    assert ShardTimeouts(lock_s=0.05).limits_of(budget).lock_s == 0.05


@pytest.mark.parametrize("budget", StatementBudget)
def test_only_what_reads_by_an_index_has_its_plans(budget: StatementBudget) -> None:
    begin = ShardTimeouts().begin(budget)
    is_by_index = budget in {StatementBudget.SEARCH, StatementBudget.KEY_RANGE}
    is_of_batch = budget in {StatementBudget.BATCH, StatementBudget.PART, StatementBudget.PATIENT_BATCH}
    assert ("enable_seqscan = off" in begin, "force_custom_plan" in begin) == (is_by_index or is_of_batch, is_by_index)
    assert ("READ ONLY" in begin) == (budget is StatementBudget.SEARCH)
    assert ("enable_sort = off" in begin) == (budget is StatementBudget.KEY_RANGE)


@pytest.mark.parametrize("isolation", Isolation)
def test_transaction_begins_with_its_isolation_then_the_settings_of_its_session(isolation: Isolation) -> None:
    begin = ShardTimeouts().begin(StatementBudget.KEY_RANGE, isolation, settings="SET LOCAL jit = off;\n")
    assert begin.startswith(f"BEGIN ISOLATION LEVEL {isolation};\nSET LOCAL jit = off;\nSET LOCAL lock_timeout = 5000;")


@pytest.mark.parametrize(("version", "is_known"), [(14, False), (16, False), (17, True), (18, True)])
def test_settings_are_those_that_the_server_knows(version: int, is_known: bool) -> None:  # noqa: FBT001
    settings = ShardTimeouts().settings(version, is_own_session=False)
    assert ("SET LOCAL transaction_timeout = 0;" in settings) is is_known
    assert all(line.startswith("SET LOCAL ") for line in settings.splitlines())
    assert {f"SET LOCAL {name} = {value};" for name, value in FORMATS.items()} < {*settings.splitlines()}
    assert "SET LOCAL idle_in_transaction_session_timeout = 30000;" in settings


def test_session_of_its_own_has_what_statements_outside_transactions_need() -> None:
    lines = ShardTimeouts().settings(18, is_own_session=True).splitlines()
    assert {
        "SET default_transaction_isolation = 'READ COMMITTED';",
        "SET lock_timeout = 5000;",
        "SET statement_timeout = 25000;",
        "SET TimeZone = 'UTC';",
        "SET idle_in_transaction_session_timeout = 30000;",
        "SET transaction_timeout = 0;",
    } <= {*lines}
    assert not any("LOCAL" in line for line in lines)
