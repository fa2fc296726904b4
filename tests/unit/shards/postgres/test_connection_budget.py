"""The budget of connections of all shards: its rules, and that every pool gets a turn."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.connection_budget import ROUND_S, TURN_MAX_S, ConnectionBudget

_numbers = itertools.count(1)


class Pool:
    def __init__(self, budget: ConnectionBudget[int], size: int = 4, waiter_count: int = 0) -> None:
        self.budget = budget
        self.size = size
        self.waiter_count = waiter_count
        self.open_count = 0
        self.lent: list[int] = []
        self.idle: list[int] = []
        self.turn_count = 0

    @property
    def wants_connection(self) -> bool:
        return self.waiter_count > 0 and self.open_count < self.size

    def open_another(self) -> bool:
        if not self.waiter_count:
            return False
        self.waiter_count -= 1
        self._open()
        return True

    def close_idle(self, connection: int) -> None:
        self.idle.remove(connection)
        self.open_count -= 1

    def ask(self, now: float) -> bool:
        if self.idle:
            connection = self.idle.pop()
            assert self.budget.take_idle(connection)
            self.lent.append(connection)
        elif self.open_count < self.size and self.budget.take_slot(self, now):
            self._open()
        else:
            self.waiter_count += 1
            return False
        return True

    def give_back(self, now: float, *, used_s: float = 0.0) -> None:
        connection = self.lent.pop(0)
        if self.waiter_count and not self.budget.must_yield(self, used_s=used_s):
            self.waiter_count -= 1
            self.turn_count += 1
            self.lent.append(connection)
        elif self.waiter_count:
            self.open_count -= 1
            self.budget.release_slot(self, now)
        else:
            self.idle.append(connection)
            self.budget.park_idle(self, connection, now)

    def _open(self) -> None:
        self.turn_count += 1
        self.open_count += 1
        self.lent.append(next(_numbers))


def pools(budget: ConnectionBudget[int], count: int, *, size: int = 4) -> list[Pool]:
    return [Pool(budget, size) for _ in range(count)]


def test_budget_gives_places_while_there_are_any() -> None:
    budget = ConnectionBudget[int](3)
    a, b = pools(budget, 2)

    came = [pool.ask(0.0) for pool in (a, a, b, b, a)]

    assert (came, a.open_count, b.open_count) == ([True, True, True, False, False], 2, 1)
    assert repr(budget) == "ConnectionBudget(3/3 open, 0 idle, 2 in the queue)"


def test_budget_takes_the_connection_that_was_idle_longest() -> None:
    budget = ConnectionBudget[int](3)
    a, b, c = pools(budget, 3)
    for pool, now in ((a, 0.0), (b, 1.0), (a, 2.0)):
        pool.ask(now)
    for pool, now in ((b, 3.0), (a, 4.0), (a, 5.0)):
        pool.give_back(now)

    assert c.ask(6.0)
    assert (a.open_count, b.open_count, c.open_count) == (2, 0, 1)
    assert budget.idle_since_before(5.0) == [(a, a.idle[0]), (a, a.idle[1])]
    assert budget.idle_since_before(4.5) == [(a, a.idle[0])]


@pytest.mark.parametrize(("idle_s", "has_one", "expected"), [(0.0, False, True), (0.0, True, False), (9.0, True, True)])
def test_budget_spares_what_is_used_again_and_again(idle_s: float, *, has_one: bool, expected: bool) -> None:
    budget = ConnectionBudget[int](1 + has_one)
    a, b = pools(budget, 2)
    if has_one:
        b.ask(0.0)
    a.ask(0.0)
    a.give_back(1.0)

    assert b.ask(1.0 + idle_s) is expected


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
    budget = ConnectionBudget[int](mine + theirs)
    a, b = pools(budget, 2)
    for pool, count in ((a, mine), (b, theirs)):
        for _ in range(count):
            assert pool.ask(0.0)
    a.ask(0.0)
    b.ask(0.0)

    assert budget.must_yield(a, used_s=used_s) is expected


def test_budget_makes_nobody_give_way_when_nobody_waits() -> None:
    budget = ConnectionBudget[int](1)
    a, b = pools(budget, 2)
    a.ask(0.0)
    assert not budget.must_yield(a, used_s=99.0)
    b.ask(0.0)
    b.waiter_count = 0
    assert not budget.must_yield(a, used_s=99.0)
    b.ask(0.0)
    b.waiter_count = 0
    budget.withdraw(b)
    assert not budget.must_yield(a, used_s=99.0)


def test_budget_serves_pools_in_their_order_however_many_wait_there() -> None:
    budget = ConnectionBudget[int](1)
    crowd, one, two = pools(budget, 3, size=1)
    for pool in (crowd, *[crowd] * 1000, one, two):
        pool.ask(0.0)

    served = []
    for now in range(3):
        owner = next(pool for pool in (crowd, one, two) if pool.lent)
        served.append(owner)
        owner.give_back(float(now), used_s=1.0)

    assert served == [crowd, one, two]
    assert crowd.lent


def test_budget_shortens_turns_when_many_wait() -> None:
    budget = ConnectionBudget[int](2)
    crowd = pools(budget, 102, size=1)
    for pool in crowd:
        pool.ask(0.0)
    turn_s = ROUND_S * 2 / 100

    assert [budget.must_yield(crowd[0], used_s=turn_s * share) for share in (0.9, 1.0)] == [False, True]


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32))
def test_budget_is_kept_and_nobody_starves(max_connections: int, pool_count: int, size: int, seed: int) -> None:
    draw = random.Random(seed)
    budget = ConnectionBudget[int](max_connections)
    shards = pools(budget, pool_count, size=size)
    now = 0.0
    for _ in range(300):
        now += draw.random()
        pool = draw.choice(shards)
        if pool.lent and draw.random() < 0.6:
            pool.give_back(now, used_s=draw.choice([0.0, 1.0]))
        elif pool.waiter_count < 5:
            pool.ask(now)
        assert budget.open_count == sum(shard.open_count for shard in shards) <= max_connections
        assert all(shard.open_count == len(shard.lent) + len(shard.idle) <= size for shard in shards)
        assert all(shard.open_count for shard in shards if shard.waiter_count) or not budget.has_idle
    waiting = [shard for shard in shards if shard.waiter_count]
    before = Counter({shards.index(shard): shard.turn_count for shard in waiting})
    for _ in range(4 * pool_count):
        now += 1.0
        for shard in waiting:
            shard.waiter_count = max(1, shard.waiter_count)  # they never come to an end
        for shard in shards:
            if shard.lent:
                shard.give_back(now, used_s=1.0)
    assert all(shard.turn_count > before[shards.index(shard)] for shard in waiting)


def test_pool_keeps_its_turn_while_it_wants_another_connection() -> None:
    budget = ConnectionBudget[int](2)
    a, b = pools(budget, 2)
    assert [pool.ask(0.0) for pool in (a, a, b, b)] == [True, True, False, False]
    for expected in (1, 2):
        a.lent.pop()
        a.open_count -= 1
        budget.release_slot(a, 0.0)
        assert b.open_count == expected
    assert repr(budget) == "ConnectionBudget(2/2 open, 0 idle, 0 in the queue)"


def test_place_that_is_not_taken_is_free() -> None:
    budget = ConnectionBudget[int](3)
    a, b = Pool(budget), GivenUp(budget)
    assert [pool.ask(0.0) for pool in (a, a, a, b)] == [True, True, True, False]
    a.lent.pop()
    a.open_count -= 1
    budget.release_slot(a, 0.0)
    assert (b.open_count, budget.open_count) == (0, 2)


class GivenUp(Pool):
    def open_another(self) -> bool:
        self.waiter_count = 0
        return False


def test_pool_that_withdraws_is_not_in_the_queue() -> None:
    budget = ConnectionBudget[int](1)
    a, b = pools(budget, 2)
    assert (a.ask(0.0), b.ask(0.0), budget.has_idle) == (True, False, False)
    budget.withdraw(b)
    assert repr(budget) == "ConnectionBudget(1/1 open, 0 idle, 0 in the queue)"
    a.give_back(1.0)
    assert budget.has_idle is True


def test_connection_in_use_again_and_again_is_spared_when_another_ends() -> None:
    budget = ConnectionBudget[int](3)
    a, b = pools(budget, 2)
    assert [pool.ask(0.0) for pool in (a, a, b)] == [True, True, True]
    b.give_back(0.0)
    assert [a.ask(0.0) for _ in range(2)] == [False, False]
    a.lent.pop()
    a.open_count -= 1
    budget.release_slot(a, 0.0)
    assert (a.open_count, b.open_count, a.waiter_count) == (2, 1, 1)
