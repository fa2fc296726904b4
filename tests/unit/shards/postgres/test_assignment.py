from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.assignment import ROUND_S, TURN_MAX_S, ConnectionBudget, PoolConnections

IDLE_S = 500.0


@dataclass(eq=False)
class Connection:
    opened_at: float
    closed: list[Connection]

    def terminate(self) -> None:
        self.closed.append(self)


@dataclass(eq=False)
class Caller:
    world: World
    pool: Pool
    got: list[Connection | None] = field(default_factory=list)

    def grant(self, connection: Connection | None) -> None:
        if connection is None:
            self.pool.lent[Connection(self.world.now, self.world.closed)] = self.world.now
        self.got.append(connection)
        self.world.turns[self.pool] += 1


Pool: TypeAlias = PoolConnections[Connection, Caller]


@dataclass
class World:
    """Pools, and their callers."""

    budget: ConnectionBudget[Connection, Caller]
    now: float = 0.0
    closed: list[Connection] = field(default_factory=list)
    turns: Counter[Pool] = field(default_factory=Counter)

    def ask(self, pool: Pool) -> bool:
        if self.budget.take_idle(pool, self.now) is not None:
            self.turns[pool] += 1
            return True
        caller = Caller(self, pool)
        self.budget.request(pool, caller)
        self.budget.assign(self.now)
        return caller.got != []

    def give_back(self, pool: Pool) -> None:
        connection = next(iter(pool.lent))
        del pool.lent[connection]
        self.budget.park(pool, connection, self.now)
        self.budget.assign(self.now)

    def end(self, pool: Pool) -> None:
        pool.lent.popitem()
        self.budget.release(pool)
        self.budget.assign(self.now)


def world(max_connections: int, *sizes: int, idle_s: float = IDLE_S) -> tuple[World, list[Pool]]:
    return World(ConnectionBudget(max_connections, idle_s=idle_s)), [Pool(size) for size in sizes]


def test_callers_of_a_pool_are_served_in_their_order() -> None:
    one, (a,) = world(1, 1)
    callers = [Caller(one, a) for _ in range(3)]
    for caller in callers:
        one.budget.request(a, caller)
    one.budget.assign(0.0)
    (connection,) = a.lent
    one.give_back(a)
    assert [caller.got for caller in callers] == [[None], [connection], []]


def test_caller_gets_the_connection_returned_last() -> None:
    one, (a,) = world(3, 3)
    for _ in range(2):
        one.ask(a)
    first, last = a.lent
    for one.now in (1.0, 2.0):
        one.give_back(a)
    assert a.idle == [first, last]
    one.now = 3.0
    assert one.ask(a)
    assert (a.lent, a.idle, one.closed) == ({last: 3.0}, [first], [])


def test_budget_takes_the_connection_that_was_idle_longest() -> None:
    one, (a, b, c) = world(3, 4, 4, 4)
    for pool in (a, b, a):
        one.ask(pool)
    (of_b,) = b.lent
    for one.now, pool in ((3.0, b), (4.0, a), (5.0, a)):
        one.give_back(pool)
    assert one.ask(c)
    assert (one.closed, a.open_count, b.open_count, c.open_count) == ([of_b], 2, 0, 1)
    idle = [*a.idle]
    for instant, ended in ((4.5, idle[:1]), (5.0, idle)):
        one.budget.assign(instant + IDLE_S)
        assert one.closed == [of_b, *ended]
    assert (a.open_count, one.budget.open_count) == (0, 1)


@pytest.mark.parametrize(
    ("idle_s", "has_one", "expected"), [(0.0, False, True), (0.0, True, False), (TURN_MAX_S, True, True)]
)
def test_budget_spares_what_is_used_again_and_again(idle_s: float, *, has_one: bool, expected: bool) -> None:
    one, (a, b) = world(1 + has_one, 4, 4)
    for pool in [b] * has_one + [a]:
        assert one.ask(pool)
    one.give_back(a)
    one.now = idle_s

    assert one.ask(b) is expected


@pytest.mark.parametrize(
    ("mine", "theirs", "used_s", "expected"),
    [
        (1, 0, TURN_MAX_S, True),
        (1, 0, TURN_MAX_S - 0.01, False),
        (4, 0, TURN_MAX_S, True),
        (4, 1, TURN_MAX_S, True),
        (4, 2, TURN_MAX_S, True),
        (4, 3, TURN_MAX_S, False),
        (2, 1, 99.0, False),  # they would only change places
        (1, 1, 99.0, False),
        (1, 2, 99.0, False),
    ],
)
def test_budget_makes_a_pool_give_way_after_its_turn(mine: int, theirs: int, used_s: float, *, expected: bool) -> None:
    one, (a, b) = world(mine + theirs, 4, 4)
    one.now = 100.0
    for pool in [a] * mine + [b] * theirs:
        assert one.ask(pool)
    assert not any(one.ask(pool) for pool in (a, b))
    one.now += used_s
    one.give_back(a)

    assert (len(one.closed) == 1, b.open_count == theirs + 1, len(a.requests)) == (expected, expected, int(expected))


@pytest.mark.parametrize("is_withdrawn", [False, True])
def test_pool_keeps_its_connection_when_no_other_waits(*, is_withdrawn: bool) -> None:
    one, (a, b) = world(1, 1, 1)
    assert [one.ask(a), one.ask(a)] == [True, False]
    if is_withdrawn:
        assert not one.ask(b)
        (caller,) = b.requests
        assert [one.budget.withdraw(b, caller), one.budget.withdraw(b, caller)] == [True, False]
    one.now = 99.0
    one.give_back(a)
    assert (one.closed, len(a.lent), b.open_count) == ([], 1, 0)
    assert one.budget.open_count == 1


def test_budget_serves_pools_in_their_order_however_many_wait_there() -> None:
    one, pools = world(1, 1, 1, 1)
    crowd, first, second = pools
    for pool in (crowd, *[crowd] * 1000, first, second):
        one.ask(pool)

    served = []
    for one.now in (1.0, 2.0, 3.0):
        (owner,) = (pool for pool in pools if pool.lent)
        served.append(owner)
        one.give_back(owner)

    assert served == [crowd, first, second]
    assert crowd.lent


def test_pool_waits_behind_the_others_after_it_got_a_slot() -> None:
    one, (full, a, b) = world(4, 4, 4, 4)
    for pool in (*[full] * 4, a, a, b, b):
        one.ask(pool)
    opened = []
    for _ in range(4):
        one.end(full)
        opened.append((a.open_count, b.open_count))
    assert opened == [(1, 0), (1, 1), (2, 1), (2, 2)]


def test_budget_shortens_turns_when_many_wait() -> None:
    one, pools = world(2, *[1] * 102)
    for pool in (*pools, pools[0], pools[1]):
        one.ask(pool)
    turn_s = ROUND_S * 2 / 102
    for one.now, closed_count in ((turn_s * 0.9, 0), (turn_s, 1)):
        one.give_back(pools[0])
        assert len(one.closed) == closed_count


def test_connection_that_ends_while_idle_frees_its_slot() -> None:
    one, (a, b) = world(2, 2, 2)
    for pool in (a, b):
        one.ask(pool)
    one.give_back(a)
    assert not one.ask(b)  # that of the other is in regular use
    (ended,) = a.idle
    assert [one.budget.drop(ended), one.budget.drop(ended)] == [True, False]
    one.budget.assign(one.now)
    assert (a.open_count, b.open_count, one.budget.open_count) == (0, 2, 2)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32))
@example(5, 3, 3, 92)  # a pool gives way, and has another idle connection
def test_budget_is_kept_and_nobody_starves(max_connections: int, pool_count: int, size: int, seed: int) -> None:
    draw = random.Random(seed)
    one, pools = world(max_connections, *[size] * pool_count, idle_s=2.0)
    for _ in range(300):
        one.now += draw.choice([0.0, draw.random()])
        act_at_random(one, draw.choice(pools), draw)
        check(one, pools, max_connections)
    waiting = [pool for pool in pools if pool.requests]
    before = one.turns.copy()
    for _ in range(4 * pool_count):
        one.now += 1.0
        for pool in waiting:
            if not pool.requests:
                one.ask(pool)
        for pool in pools:
            if pool.lent:
                one.give_back(pool)
    assert all(one.turns[pool] > before[pool] for pool in waiting)


def act_at_random(one: World, pool: Pool, draw: random.Random) -> None:
    match draw.randrange(6):
        case 0 | 1 if pool.lent:
            one.give_back(pool)
        case 2 if pool.lent:
            one.end(pool)
        case 3 if pool.requests:
            assert one.budget.withdraw(pool, draw.choice([*pool.requests]))
        case 4:
            one.budget.assign(one.now)
        case _ if len(pool.requests) < 5:
            one.ask(pool)


def check(one: World, pools: list[Pool], max_connections: int) -> None:
    waiting = [pool for pool in pools if pool.requests]
    assert one.budget.open_count == sum(pool.open_count for pool in pools) <= max_connections
    assert all(pool.open_count == len(pool.lent) + len(pool.idle) <= pool.size for pool in pools)
    assert not any(pool.idle for pool in waiting)
    assert all(pool.open_count for pool in waiting) or not any(pool.idle for pool in pools)
    assert one.budget.open_count == max_connections or all(pool.open_count == pool.size for pool in waiting)
