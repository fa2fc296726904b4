"""Exclusive ownership of tenants, searched: no promise is broken, no steps form a cycle, and each deviation is found.

The numbers of states are exact, as in `test_models.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
from model.ownership import Rules
from model.ownership_model import Budget, OwnershipModel
from model.ownership_reader import UNBOUNDED, Bounds
from model.search import search
from model.violations import assert_is_violated, but_for
from support.slow import nightly_ones

FAILOVER = Budget(failovers=1)
OUTAGE = Budget(outages=1)
FAILOVER_AND_OUTAGE = Budget(failovers=1, outages=1)
SHED = Budget(sheds=1)
SLOTS = "slots"
ONE_AT_A_TIME = Bounds(pipelines_reading=1, operations_in_memory=1)


def owners(operations: str, homes: str, budget: Budget, rules: str = "", **more: Any) -> OwnershipModel:
    return OwnershipModel(operations, homes, budget, but_for(Rules, rules), **more)


def on_a(operations: str, homes: str, budget: Budget, rules: str = "", *, ahead: bool = False) -> OwnershipModel:
    return owners(operations, homes, budget, rules, falls="A", fails_over="A", continues_ahead=ahead)


def on_b(operations: str, homes: str, rules: str = "") -> OwnershipModel:
    return owners(operations, homes, FAILOVER, rules, fails_over="B")


def moves_a(operations: str, homes: str, budget: Budget, rules: str = "") -> OwnershipModel:
    return owners(operations, homes, budget, rules, fails_over="A", moves="a")


def zombie(operations: str, homes: str, rules: str = "", *, failovers: int = 0) -> OwnershipModel:
    """Return a model of two readers on one shard: with a second shard there are over 1,300,000 states."""
    return owners(operations, homes, Budget(takes=1, failovers=failovers), rules, shards="A")


def after_parents(
    operations: str, homes: str, rules: str = "", *, parents: str, crashes: int = 0, bounds: Bounds = UNBOUNDED
) -> OwnershipModel:
    """Return a model in which both shards fail over, and lose what the parents have applied too."""
    return owners(operations, homes, Budget(crashes=crashes), rules, parents=parents, bounds=bounds)


def bounded(operations: str, homes: str, budget: Budget, rules: str = "") -> OwnershipModel:
    """Return a model in which one pipeline reads at a time, and one operation is in memory."""
    return owners(operations, homes, budget, rules, fails_over="A", bounds=ONE_AT_A_TIME)


SAFE = {
    "ownership: failover": (on_a("aba", "AA", FAILOVER), 5_306),
    "ownership: failover twice": (on_a("ab", "AA", Budget(failovers=2)), 5_826),
    "ownership: failover, shard down": (on_a("ab", "AA", FAILOVER_AND_OUTAGE), 11_608),
    "ownership: move": (moves_a("aba", "AB", Budget(moves=1)), 6_242),
    "ownership: registered during the backfill of its shard": (on_b("baa", ".B"), 13_604),
    "ownership: slots, failover": (on_a("aba", "AA", FAILOVER, SLOTS), 4_644),
    "ownership: after parents": (after_parents("ab", "AB", parents="ab"), 8_266),
    "ownership: slots, after parents": (after_parents("ab", "AB", SLOTS, parents="ab"), 12_452),
    "ownership: a tenant held for its share": (on_a("aaba", "AA", Budget(sheds=2)), 9_134),
    "ownership: held for its share, shard down": (on_a("aba", "AA", Budget(sheds=1, outages=1)), 9_142),
    "ownership: bounds, failover, shard down": (bounded("aba", "AB", FAILOVER_AND_OUTAGE), 13_849),
}

SAFE_AND_LARGE = {
    "ownership: shard down, crash": (on_a("aba", "AA", Budget(outages=1, crashes=1)), 132_465),
    "ownership: shard down, others on B": (owners("aba", "AB", Budget(outages=1, crashes=1)), 93_349),
    "ownership: failover, crash": (on_a("ab", "AA", Budget(failovers=1, crashes=1)), 30_219),
    "ownership: two shards fail over": (owners("ab", "AB", Budget(failovers=2)), 12_718),
    "ownership: failover, late tenant": (on_a("ab", "A.", Budget(failovers=1, crashes=1)), 46_246),
    "ownership: late tenant, its shard fails over": (on_b("aba", "B."), 15_080),
    "ownership: move, shard down": (moves_a("ab", "AB", Budget(moves=1, outages=1)), 21_270),
    "ownership: failover, move onto it": (moves_a("aba", "BA", Budget(failovers=1, moves=1)), 78_383),
    "ownership: failover, move away": (moves_a("ab", "AA", Budget(failovers=1, moves=1)), 14_128),
    "ownership: two moves": (moves_a("ab", "AB", Budget(moves=2)), 10_907),
    "ownership: successor ahead, shard down": (on_a("ab", "AA", Budget(outages=1, crashes=1), ahead=True), 135_283),
    "ownership: successor ahead, failover": (on_a("ab", "AA", Budget(failovers=1, crashes=1), ahead=True), 131_132),
    "ownership: zombie": (zombie("ab", "AA"), 96_146),
    "ownership: zombie, failover": (zombie("a", "A", failovers=1), 12_722),
    "ownership: after parents, three tenants": (after_parents("abc", "ABA", parents="abc"), 45_050),
    "ownership: after parents, late tenant": (after_parents("ab", "A.", parents="a"), 28_017),
    "ownership: slots, after parents, crash": (after_parents("ab", "AB", SLOTS, parents="ab", crashes=1), 132_895),
    "ownership: bounds, slots, after parents, crash": (
        after_parents("ab", "AB", SLOTS, parents="ab", crashes=1, bounds=ONE_AT_A_TIME),
        31_439,
    ),
    "ownership: slots, failover, shard down": (on_a("ab", "AA", FAILOVER_AND_OUTAGE, SLOTS), 7_656),
    "ownership: slots, two shards fail over": (owners("ab", "AB", Budget(failovers=2), SLOTS), 12_657),
    "ownership: slots, late tenant, its shard fails over": (on_b("aba", "B.", SLOTS), 12_904),
    "ownership: slots, registered during the backfill of its shard": (on_b("baa", ".B", SLOTS), 11_244),
    "ownership: slots, move": (moves_a("aba", "AB", Budget(moves=1), SLOTS), 7_960),
    "ownership: held for its share, failover": (on_a("aba", "AA", Budget(sheds=1, failovers=1)), 37_988),
    "ownership: held for its share, move": (moves_a("aba", "AB", Budget(sheds=1, moves=1)), 50_382),
    "ownership: held for its share, zombie": (owners("aa", "A", Budget(sheds=1, takes=1), shards="A"), 124_806),
    "ownership: held for its share, successor ahead": (
        on_a("ab", "AA", Budget(sheds=1, crashes=1), ahead=True),
        56_432,
    ),
    "ownership: slots, held for its share": (on_a("aba", "AA", Budget(sheds=2, outages=1), SLOTS), 16_812),
    "ownership: slots, move, shard down": (moves_a("ab", "AB", Budget(moves=1, outages=1), SLOTS), 15_486),
}
NIGHTLY = {name for name, (_, state_count) in SAFE_AND_LARGE.items() if state_count > 60_000}

WRONG = {
    "ownership: a hold is lifted when its target answers": (on_a("ab", "AA", OUTAGE, "lifts_holds"), "claims", 7),
    "ownership: checkpoint and rows ignore holds": (
        on_a("ab", "AA", Budget(outages=1, crashes=1), "ignores_holds"),
        "claims",
        6,
    ),
    "ownership: a split hold begins at the main reader": (on_a("ab", "AA", OUTAGE, "splits_at_main"), "claims", 6),
    "ownership: a hold joins a catch-up that has passed it": (
        owners("aba", "AB", Budget(outages=2), "joins_pipeline_ahead"),
        "claims",
        12,
    ),
    "ownership: sent without a look at the backfill of the shard": (
        on_a("aa", "A", FAILOVER, "sends_beside_backfill"),
        "order",
        10,
    ),
    "ownership: a backfill goes by remembered routes": (
        on_a("ab", "AA", Budget(failovers=1, crashes=1), "backfills_by_route"),
        "claims",
        11,
    ),
    "ownership: a backfill takes no tenant from another catch-up": (
        on_a("aba", "AA", FAILOVER_AND_OUTAGE, "leaves_held"),
        "claims",
        16,
    ),
    "ownership: a backfill takes from an owner that is behind it": (
        on_b("baa", ".B", "takes_from_behind"),
        "order",
        19,
    ),
    "ownership: given to a backfill that has passed the operation": (
        on_b("baa", ".B", "gives_when_passed"),
        "claims",
        17,
    ),
    "ownership: a backfill goes on though its shard loses again": (
        on_a("aa", "A", Budget(failovers=2), "continues_after_loss"),
        "claims",
        16,
    ),
    "ownership: operations of a given tenant stay in their lane": (
        on_a("aa", "A", FAILOVER, "keeps_given"),
        "order",
        10,
    ),
    "ownership: a backfill goes on while it asks": (on_a("aa", "A", FAILOVER, "passes_before_answer"), "claims", 10),
    "ownership: two pipelines hand a tenant to each other": (on_b("baa", ".B", "hands_back"), "cycle", 17),
    "ownership: lanes of each owner": (on_b("baa", ".B", "own_lanes"), "cycle", 19),
    "ownership: a backfill forgets the parents": (after_parents("a", "A", "forgets_parents", parents="a"), "claims", 3),
    "ownership: a child adopts without writing": (
        after_parents("a", "A", "adopts_without_writing", parents="a"),
        "claims",
        3,
    ),
    "ownership: parents done early": (after_parents("a", "A", "done_early", parents="a"), "claims", 3),
    "ownership: the bound on pipelines counts the held": (bounded("ab", "AB", OUTAGE, "bounds_held"), "lost", 9),
    "ownership: a backfill owns its shard, no tenant individually": (
        on_a("aab", "AA", FAILOVER_AND_OUTAGE, "owns_by_route"),
        "claims",
        15,
    ),
    "ownership: the oldest are shed in place of the newest": (on_a("aa", "A", SHED, "sheds_oldest"), "order", 6),
    "ownership: a hold for a share begins at the main reader": (on_a("aa", "A", SHED, "sheds_at_main"), "claims", 5),
    "ownership: a hold for a share forgets what is still to be read": (
        on_a("aaa", "A", Budget(sheds=2), "sheds_behind_all"),
        "claims",
        5,
    ),
    "ownership: a share of nothing": (on_a("aa", "A", SHED, "never_resumes"), "lost", 6),
    "ownership: two pipelines leave a tenant to each other": (
        on_a("aba", "AA", FAILOVER_AND_OUTAGE, "leaves_to_each_other"),
        "claims",
        16,
    ),
}


@pytest.mark.parametrize(("model", "state_count"), SAFE.values(), ids=SAFE)
def test_every_state_keeps_the_promises(model: OwnershipModel, state_count: int) -> None:
    assert state_count == search(model, forbids_cycles=True)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "state_count"), nightly_ones(NIGHTLY, SAFE_AND_LARGE))
def test_every_state_keeps_the_promises_in_a_larger_model(model: OwnershipModel, state_count: int) -> None:
    assert state_count == search(model, forbids_cycles=True)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "promise", "length"), WRONG.values(), ids=WRONG)
def test_search_finds_the_violation_when_a_rule_is_left_out(model: OwnershipModel, promise: str, length: int) -> None:
    assert_is_violated(model, promise, length, forbids_cycles=True)
