"""Messages of a queue in the lanes of shards, and what a stream and a queue may share, searched.

The agreed way breaks no promise, its steps form no cycle, and each deviation is found. The numbers of states are exact,
as in `test_models.py`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest
from model.put_back_model import Budget, PutBackModel, Rules
from model.search import Model, search
from model.violations import assert_is_violated, but_for
from support.slow import slow_ones

AnyModel: TypeAlias = Model[Any]
FAILS = 0  # the first message
CHECKS_FORMER = "next_before_safe checks_former"


def put_back(tenants: str, homes: str, rules: str = "", failing: int | None = None, **budget: int) -> PutBackModel:
    return PutBackModel(tenants, homes, Budget(**budget), but_for(Rules, rules), failing=failing)


SAFE: dict[str, tuple[AnyModel, int]] = {
    "put back: shard down": (put_back("aab", "AB", outages=1, losses=1), 6_643),
    "put back: failover": (put_back("aab", "AB", failovers=1, losses=1), 2_059),
    "put back: no answer, failover": (put_back("aab", "AB", no_answers=1, failovers=1), 1_305),
    "put back: move": (put_back("aba", "AB", moves=1, losses=1), 4_423),
    "put back: given up, no answer": (put_back("aab", "AA", failing=FAILS, no_answers=1, cures=1, losses=1), 16_865),
    "put back: given up, failover, zombie": (
        put_back("ab", "AB", failing=FAILS, unnoticed=1, failovers=1, cures=1),
        15_502,
    ),
    "put back: zombie, failover": (put_back("aab", "AB", unnoticed=1, failovers=1), 15_747),
    "put back: overdue, zombie": (put_back("ab", ".B", registrations=1, unnoticed=1), 1_062),
    "put back: next needs the former, failover": (
        put_back("aab", "AB", CHECKS_FORMER, failovers=1, no_answers=1, losses=1),
        11_818,
    ),
}

SAFE_AND_LARGE: dict[str, tuple[AnyModel, int]] = {
    "put back: shard down, no answer": (put_back("aab", "AB", outages=1, losses=1, no_answers=1), 21_887),
    "put back: move, shard down": (put_back("aab", "AB", moves=1, outages=1, losses=1), 43_596),
    "put back: move, failover": (put_back("aba", "AB", moves=1, failovers=1, losses=1), 9_367),
    "put back: move, failover, zombie": (put_back("ab", "AB", moves=1, failovers=1, unnoticed=1), 9_878),
    "put back: two moves, no answer": (put_back("aba", "AB", moves=2, no_answers=1), 6_325),
    "put back: two failovers": (put_back("aba", "AB", failovers=2, no_answers=1, losses=1), 7_863),
    "put back: zombie, failover, no answer": (put_back("ab", "AB", unnoticed=1, failovers=1, no_answers=1), 6_029),
    "put back: given up behind another": (
        put_back("aab", "AB", failing=1, no_answers=1, cures=1, losses=1, failovers=1),
        34_279,
    ),
    "put back: given up, 3 messages, failover, zombie": (
        put_back("aab", "AB", failing=FAILS, unnoticed=1, cures=1, failovers=1),
        147_833,
    ),
    "put back: given up, move": (put_back("aab", "AB", failing=FAILS, moves=1, cures=1, losses=1), 25_425),
    "put back: given up, move, zombie": (put_back("ab", "AB", failing=FAILS, moves=1, cures=1, unnoticed=1), 42_505),
    "put back: given up, shard down, zombie": (
        put_back("ab", "AB", failing=FAILS, outages=1, cures=1, unnoticed=1),
        47_367,
    ),
    "put back: overdue, 3 messages, no answer, zombie": (
        put_back("aab", ".B", registrations=1, unnoticed=1, no_answers=1),
        34_557,
    ),
    "put back: next needs the former, zombie": (put_back("aab", "AB", CHECKS_FORMER, failovers=1, unnoticed=1), 27_767),
    "put back: next needs the former, given up": (
        put_back("aab", "AB", CHECKS_FORMER, failing=FAILS, failovers=1, no_answers=1, cures=1),
        9_681,
    ),
    "put back: next needs the former, move": (
        put_back("aaa", "A", CHECKS_FORMER, failovers=1, moves=1, no_answers=1),
        39_502,
    ),
}

WRONG: dict[str, tuple[AnyModel, str, int]] = {
    "put back: the message at fault alone": (put_back("aa", "A", "returns_one", no_answers=1), "order", 8),
    "put back: the run of one tenant, the next goes on": (put_back("ab", "AB", "returns_run", outages=1), "order", 10),
    "put back: stays in its lane too": (put_back("aa", "A", "lane_keeps_returned", no_answers=1), "order", 8),
    "put back: those behind are visible before it": (put_back("ab", "AB", "delay_unlocks", outages=1), "order", 11),
    "put back: visible at once, its shard still down": (put_back("a", "A", "returns_at_once", outages=1), "cycle", 5),
    "put back: deleted before it is safe": (put_back("a", "A", "deletes_unsafe", failovers=1), "lost", 6),
    "put back: next transaction to the shard before it is safe": (
        put_back("aa", "A", "next_before_safe", failovers=1),
        "order",
        15,
    ),
    "put back: next run to another shard before it is safe": (
        put_back("ab", "AB", "next_run_before_safe", failovers=1),
        "order",
        15,
    ),
    "put back: two tenants in one transaction": (put_back("ab", "AA", "runs_by_shard", moves=1), "order", 13),
    "put back: goes on before the dead letter": (
        put_back("ab", "AA", "next_before_letter", failing=FAILS, losses=1, cures=1),
        "order",
        17,
    ),
    "put back: a dead letter without a mark": (
        put_back("aa", "A", "leaves_no_mark", failing=FAILS, no_answers=1, cures=1),
        "order",
        18,
    ),
    "put back: a mark that is not safe": (
        put_back("aa", "A", "marks_unsafe", failing=FAILS, no_answers=1, cures=1, failovers=1),
        "order",
        21,
    ),
    "put back: deletes what it lost, and leaves the mark to others": (
        put_back("aa", "A", "lost_unmarked", failing=FAILS, unnoticed=1, cures=1),
        "order",
        20,
    ),
    "put back: overdue, lost, applied after all": (
        put_back("ab", ".B", "admits_late", registrations=1, losses=1),
        "order",
        14,
    ),
    "put back: overdue, and a worker takes a lost message for its own": (
        put_back("ab", ".B", "admits_late", registrations=1, unnoticed=1),
        "order",
        13,
    ),
    "put back: no log": (put_back("a", "A", "has_no_log", losses=1), "twice", 10),
}

# What takes more than half a second of processor time.
SAFE_BUT_SLOW = {
    "put back: given up, no answer",
    "put back: zombie, failover",
    "put back: next needs the former, failover",
    "put back: given up, failover, zombie",
    "put back: shard down",
}


@pytest.mark.parametrize(("model", "state_count"), slow_ones(SAFE_BUT_SLOW, SAFE))
def test_every_state_keeps_the_promises(model: AnyModel, state_count: int) -> None:
    assert state_count == search(model, forbids_cycles=True)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "state_count"), SAFE_AND_LARGE.values(), ids=SAFE_AND_LARGE)
def test_every_state_keeps_the_promises_in_a_larger_model(model: AnyModel, state_count: int) -> None:
    assert state_count == search(model, forbids_cycles=True)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "promise", "length"), WRONG.values(), ids=WRONG)
def test_search_finds_the_violation_when_a_rule_is_left_out(model: AnyModel, promise: str, length: int) -> None:
    assert_is_violated(model, promise, length, forbids_cycles=True)
