"""Moves of a tenant, searched: the agreed way breaks no promise, and each deviation is found.

The numbers of states are exact, as in `test_models.py`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest
from model import move_failover_model, move_model
from model.move_failover_model import MoveFailoverModel
from model.move_failover_model import Rules as FailoverRules
from model.move_model import MoveModel, Rules
from model.search import Model, search
from model.violations import assert_is_violated
from support.slow import nightly_ones, slow_ones

MovesModel: TypeAlias = Model[Any]


def move(count: int = 1, rules: Rules = move_model.AGREED, *, keeps: bool = False, **budget: int) -> MoveModel:
    """Return a model of movers on shards that lose nothing; with *keeps* they go on from earlier copies."""
    return MoveModel(count, move_model.Budget(**budget), rules, keeps_copies=keeps)


def failing(
    count: int = 1,
    rules: FailoverRules = move_failover_model.AGREED,
    *,
    movers: int = 1,
    source: int = 0,
    target: int = 0,
    crashes: int = 0,
    message: bool = False,
    rows: str = "AB",
) -> MoveFailoverModel:
    budget = move_failover_model.Budget(movers, source, target, crashes)
    return MoveFailoverModel(count, budget, rules, has_message=message, has_rows=rows)


SAFE: dict[str, tuple[MovesModel, int]] = {
    "move: crash, zombie": (move(2, crashes=1, takes=1), 7_059),
    "move: two movers": (move(2, moves=2), 7_805),
    "move: two movers, zombie": (move(2, moves=2, takes=1), 48_922),
    "move: two movers, rename": (move(2, moves=2, renames=1), 25_951),
    "move: two movers, one copy": (move(2, keeps=True, moves=2), 5_442),
    "move: two movers, one copy, rename": (move(1, keeps=True, moves=2, renames=1), 5_395),
    "move: two movers, one copy, rolled back": (move(1, keeps=True, moves=2, rollbacks=1), 9_025),
    "move: two movers, orders": (move(1, moves=2, orders=2), 15_039),
    "move: two movers, one copy, orders": (move(1, keeps=True, moves=2, orders=2), 11_785),
    "move: and back, orders": (move(1, moves_back=1, orders=2), 3734),
    "move: one copy, rolled back, orders": (move(0, keeps=True, moves=2, rollbacks=1, orders=2), 9769),
    "move: orders, repair by the newest rows": (
        move(1, rules=Rules(repairs_by_newest_rows=True), orders=2, repairs=1),
        782,
    ),
    "move: rolled back beside the mover": (move(2, rollbacks=1), 2_732),
    "move: and back": (move(2, moves_back=1), 2_462),
    "move: and back, cleanup": (move(2, moves_back=1, cleanups=1), 6_194),
    "move and failover: of the source": (failing(2, source=1), 59_012),
    "move and failover: of the target": (failing(2, target=1), 31_072),
    "move and failover: of the target, message": (failing(0, movers=2, target=1, message=True), 8_802),
    "move and failover: of the target, without a wait for its replica": (
        failing(0, FailoverRules(skips_target_wait=True), movers=2, target=1, message=True),
        13_544,
    ),
    "move and failover: of the source, message": (failing(1, source=1, message=True), 68_632),
    "move and failover: of the source, target without a row": (failing(1, source=1, rows="A"), 32_295),
    "move and failover: of the source, source without a row": (failing(1, source=1, rows="B"), 15_583),
}

SAFE_AND_LARGE: dict[str, tuple[MovesModel, int]] = {
    "move and failover: of the source, all read again": (
        failing(2, FailoverRules(never_follows=True), source=1),
        56_513,
    ),
    "move: two movers, late commit": (move(2, moves=2, late_commits=1), 68_340),
    "move: two movers, late commit, rollback": (move(1, moves=2, late_commits=1, rollbacks=1), 90_815),
    "move: two movers, rename, crash, zombie": (move(1, moves=2, renames=1, crashes=1, takes=1), 69_782),
    "move: two movers, one copy, late commit": (move(2, keeps=True, moves=2, late_commits=1), 40_701),
    "move: two movers, one copy, and back, zombie": (move(1, keeps=True, moves=2, moves_back=1, takes=1), 28_397),
    "move: and back twice, cleanup": (move(1, moves=2, moves_back=2, cleanups=1), 121_805),
    "move: and back twice, cleanup, orders, repair": (
        move(0, moves=2, moves_back=2, cleanups=1, orders=2, repairs=1),
        158_469,
    ),
    "move: and back, rename, zombie, cleanup": (move(1, moves_back=1, renames=1, takes=1, cleanups=1), 18_460),
    "move and failover: of the source, two movers": (failing(1, movers=2, source=1), 74_386),
    "move and failover: of the source, two movers, 2 operations": (failing(2, movers=2, source=1), 372_362),
    "move and failover: of the target, two movers": (failing(1, movers=2, target=1), 47_280),
    "move and failover: of the target, two movers, 2 operations": (failing(2, movers=2, target=1), 201_669),
    "move and failover: of both": (failing(1, source=1, target=1), 135_614),
    "move and failover: of both, message": (failing(0, movers=2, source=1, target=1, message=True), 88_074),
    "move and failover: of the source, crash": (failing(1, source=1, crashes=1), 54_523),
    "move and failover: of the source, crash, 2 operations": (failing(2, source=1, crashes=1), 305_565),
    "move and failover: of the source, no rows": (failing(2, source=1, rows=""), 142_571),
}

WRONG: dict[str, tuple[MovesModel, str, int]] = {
    "move: an expired fence is read as active": (move(rules=Rules(reads_expired_fence_as_active=True)), "lost", 13),
    "move: a commit by the token alone": (
        move(rules=Rules(commits_without_fence=True, expiry_keeps_token=True)),
        "lost",
        14,
    ),
    "move: no token": (move(rules=Rules(has_no_token=True), moves=2), "lost", 13),
    "move: the token is taken at the fence": (
        move(2, rules=Rules(takes_token_at_fence=True), moves=2),
        "unsettled",
        14,
    ),
    "move: writes to the target do not check the token": (
        move(2, rules=Rules(writes_without_token=True), moves=2),
        "lost",
        18,
    ),
    "move: the end of a fence keeps the token": (
        move(2, rules=Rules(expiry_keeps_token=True), late_commits=1),
        "lost",
        16,
    ),
    "move: the fence does not wait for batches": (move(rules=Rules(fences_beside_batches=True)), "lost", 13),
    "move: the delta misses batches in flight": (move(rules=Rules(misses_batches_in_flight=True)), "lost", 13),
    "move: the log stays": (move(rules=Rules(leaves_log=True), crashes=1), "twice", 15),
    "move: renames are not in the delta": (move(rules=Rules(ignores_renames=True), renames=1), "lost", 11),
    "move: the delta has of an id the newest row alone": (
        move(0, rules=Rules(ignores_older_rows=True), orders=2),
        "lost",
        12,
    ),
    "move: a repair goes by the newest row of an id": (
        move(0, rules=Rules(repairs_by_newest_rows=True, repairs_newer_rows=True), orders=2, repairs=1),
        "lost",
        13,
    ),
    "move: activated without the last delta": (move(rules=Rules(activates_incoming=True)), "lost", 10),
    "move: activated by the present token of the source": (
        move(rules=Rules(activates_by_present_token=True), moves=2, moves_back=1),
        "homes",
        26,
    ),
    "move: a rollback drops rows without a token": (
        move(rules=Rules(drops_without_token=True), rollbacks=1),
        "unsettled",
        12,
    ),
    "move: a rollback after the commit makes the source active": (
        move(rules=Rules(rolls_back_in_place=True), rollbacks=1),
        "lost",
        15,
    ),
    "move: the delta to an earlier copy begins with the mover": (
        move(rules=Rules(continues_from_own_start=True), keeps=True, moves=2),
        "lost",
        16,
    ),
    "move: the delta of the way back begins with it": (
        move(rules=Rules(rolls_back_by_old_copy=True), moves_back=1),
        "lost",
        21,
    ),
    "move: the way back trusts cleaned rows": (
        move(rules=Rules(trusts_cleaned_rows=True), moves_back=1, cleanups=1),
        "lost",
        20,
    ),
    "move: a cleanup deletes what has come back": (
        move(rules=Rules(cleans_up_unchecked=True), moves_back=1, cleanups=1),
        "lost",
        22,
    ),
    "move and failover: any incoming row is activated": (
        failing(rules=FailoverRules(activates_any_incoming=True, skips_target_wait=True), target=1),
        "lost",
        10,
    ),
    "move and failover: ready without a token": (
        failing(0, FailoverRules(ready_without_token=True, skips_target_wait=True), movers=2, target=1, message=True),
        "lost",
        18,
    ),
    "move and failover: no wait for the source's replica": (
        failing(rules=FailoverRules(skips_source_wait=True), source=1),
        "homes",
        10,
    ),
    "move and failover: no second copy": (
        failing(rules=FailoverRules(never_copies_again=True, skips_target_wait=True), movers=2, target=1),
        "unsettled",
        11,
    ),
    "move and failover: positions are not carried": (
        failing(rules=FailoverRules(carries_no_position=True), source=1),
        "claims",
        14,
    ),
    "move and failover: positions are merged before the commit": (
        failing(rules=FailoverRules(merges_before_commit=True), source=1),
        "claims",
        14,
    ),
    "move and failover: positions are merged before the commit, and a ready tenant is read again": (
        failing(rules=FailoverRules(merges_before_commit=True, counts_ready_as_resident=True), source=1),
        "claims",
        15,
    ),
    "move and failover: the target's row stays though the source has none": (
        failing(2, FailoverRules(keeps_row_if_source_has_none=True), source=1, rows="B"),
        "claims",
        14,
    ),
    "move and failover: a reader makes a row beside the move": (
        failing(2, FailoverRules(makes_row_beside_move=True), source=1, rows="A"),
        "order",
        14,
    ),
    "move and failover: the mover trusts its memory of the copy": (
        failing(rules=FailoverRules(trusts_own_progress=True), target=1),
        "lost",
        10,
    ),
    "move and failover: a reader follows a move from any token": (
        failing(2, FailoverRules(follows_from_any_token=True), target=1),
        "claims",
        19,
    ),
    "move and failover: a reader follows without the carried token": (
        failing(rules=FailoverRules(follows_without_carried=True), source=1),
        "claims",
        18,
    ),
    "move and failover: a reader follows without a look at the source": (
        failing(2, FailoverRules(follows_without_source=True), source=1),
        "claims",
        17,
    ),
    "move and failover: a reader follows from a token that it has found": (
        failing(rules=FailoverRules(follows_adopted_token=True), source=1),
        "claims",
        18,
    ),
    "move and failover: a reader follows from a token that is older than a loss of the source": (
        failing(2, FailoverRules(keeps_written_if_source_lost=True), source=1),
        "claims",
        19,
    ),
    "move and failover: a reader follows from a token that is older than a loss of the target": (
        failing(2, FailoverRules(keeps_written_if_target_lost=True), target=1),
        "claims",
        21,
    ),
    "move and failover: messages are deleted early": (
        failing(rules=FailoverRules(deletes_messages_early=True), source=1, message=True),
        "lost",
        4,
    ),
}


# Of the same rules and troubles as a smaller one.
NIGHTLY = {
    "move and failover: of the source, two movers, 2 operations",
    "move and failover: of the target, two movers, 2 operations",
    "move and failover: of the source, crash, 2 operations",
}
# What takes more than half a second of processor time.
SAFE_BUT_SLOW = {
    "move: two movers, zombie",
    "move and failover: of the source",
    "move and failover: of the source, message",
    "move and failover: of the source, target without a row",
    "move and failover: of the target",
    "move and failover: of the source, source without a row",
    "move: two movers, rename",
    "move and failover: of the target, without a wait for its replica",
    "move: two movers, orders",
}


@pytest.mark.parametrize(("model", "state_count"), slow_ones(SAFE_BUT_SLOW, SAFE))
def test_every_state_keeps_the_promises(model: MovesModel, state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "state_count"), nightly_ones(NIGHTLY, SAFE_AND_LARGE))
def test_every_state_keeps_the_promises_in_a_larger_model(model: MovesModel, state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "promise", "length"), WRONG.values(), ids=WRONG)
def test_search_finds_the_violation_when_a_rule_is_left_out(model: MovesModel, promise: str, length: int) -> None:
    assert_is_violated(model, promise, length)
