"""The protocol of holding, searched: the agreed way is safe in every reachable state, and each deviation is not.

The numbers of states are exact: one that changes without a reason is a model that no longer says what it said.
"""

from __future__ import annotations

from typing import Any

import giving_up_model
import hold_model
import letters_model
import pytest
import reader_model
import reshard_model
from giving_up_model import GivingUpModel
from hold_model import HoldModel
from letters_model import LettersModel
from reader_model import Scene
from reshard_model import ReshardModel
from search import Model, Violation, search

# Tenant a, and tenant b whose Postgres shard is in trouble, whose row is not active, or whose shard is a's as well.
SHARD_DOWN = {"shards": "AB", "trouble": "B"}
TENANT_REFUSED = {"shards": "AA", "trouble": "b"}
ONLY_SHARD_DOWN = {"shards": "AA", "trouble": "A"}


ALL_TROUBLE = reshard_model.Budget()
ONLY_TAKES = reshard_model.Budget(parent_takes=1, child_crashes=0)
ONLY_PARENT_CRASHES = reshard_model.Budget(parent_takes=0, parent_crashes=1, child_crashes=0)
CHILD_TAKES = reshard_model.Budget(parent_takes=0, parent_crashes=1, child_crashes=0, child_takes=1)


def hold(
    operations: str,
    trouble: dict[str, str],
    rules: reader_model.Rules = reader_model.AGREED,
    *,
    troubles: int = 1,
    crashes: int = 1,
    takes: int = 1,
    lost_acks: int = 0,
) -> HoldModel:
    """Return a model of one stream shard."""
    budget = hold_model.Budget(troubles=troubles, crashes=crashes, takes=takes, lost_acks=lost_acks)
    return HoldModel(Scene.of(operations, **trouble), budget, rules)


def reshard(
    parent: str,
    child: str,
    trouble: dict[str, str],
    rules: reshard_model.Rules = reshard_model.AGREED,
    budget: reshard_model.Budget = ALL_TROUBLE,
) -> ReshardModel:
    """Return a model of a parent and its child."""
    return ReshardModel(Scene.of(parent + child, **trouble), budget, rules, end=len(parent))


SEPARATE_LANES = reader_model.Rules(separate_lanes=True)
WAITING_CHILD = reshard_model.Rules(child_waits_for_shard_end=True)

SAFE = {
    "hold: shard down": (hold("bab", SHARD_DOWN), 18_121),
    "hold: tenant refused": (hold("abb", TENANT_REFUSED), 5_477),
    "hold: only shard down": (hold("ab", ONLY_SHARD_DOWN, crashes=0), 15_262),
    "hold: lost acknowledgement": (hold("bab", SHARD_DOWN, crashes=0, lost_acks=1), 26_731),
    "hold: separate lanes, drained": (hold("bab", SHARD_DOWN, SEPARATE_LANES), 18_121),
    "letters: crash, readers' clocks ahead": (LettersModel(2, takes=0, skew=1), 27_328),
    "letters: zombie": (LettersModel(2, crashes=0), 131_017),
    "reshard: early child": (reshard("ba", "b", TENANT_REFUSED, budget=ONLY_TAKES), 27_867),
    "reshard: early child, only shard down": (reshard("ba", "b", ONLY_SHARD_DOWN, budget=ONLY_PARENT_CRASHES), 14_802),
    "reshard: waiting child": (reshard("ba", "b", SHARD_DOWN, WAITING_CHILD), 7_143),
    "giving up": (GivingUpModel(2), 2_060),
    "giving up: three requests, two replays": (GivingUpModel(3, crashes=2, replays=2), 17_114),
}

SAFE_AND_LARGE = {
    "hold: lost acknowledgement, 4 operations": (hold("babb", SHARD_DOWN, crashes=0, lost_acks=1), 104_343),
    "hold: tenant refused twice": (hold("babb", TENANT_REFUSED, troubles=2, crashes=0), 43_492),
    "hold: shard down twice": (hold("babb", SHARD_DOWN, troubles=2, crashes=0), 46_081),
    "hold: only shard down, 3 operations": (hold("abb", ONLY_SHARD_DOWN, crashes=0), 114_300),
    "hold: separate lanes, drained, 4 operations": (hold("babb", SHARD_DOWN, SEPARATE_LANES), 73_294),
    "hold: 5 operations": (hold("babbb", SHARD_DOWN, crashes=0), 48_439),
    "letters: crash and zombie, clocks ahead": (LettersModel(2, skew=1), 355_594),
    "letters: 3 operations": (LettersModel(3, takes=0), 105_602),
    "reshard: early child crashes": (reshard("ba", "b", SHARD_DOWN), 59_599),
    "reshard: zombie of the early child": (reshard("ba", "b", SHARD_DOWN, budget=CHILD_TAKES), 162_848),
    "reshard: early child, 4 operations": (reshard("ba", "bb", TENANT_REFUSED, budget=ONLY_TAKES), 67_576),
    "reshard: early child, both tenants go on": (reshard("ab", "ab", SHARD_DOWN, budget=ONLY_TAKES), 55_755),
}

WRONG = {
    "hold: pipelined": (hold("bb", SHARD_DOWN, reader_model.Rules(two_in_flight=True)), "order", 3),
    "hold: merge at applied": (hold("babb", SHARD_DOWN, reader_model.Rules(merges_at_applied=True)), "order", 11),
    "hold: merge at applied, last of its tenant": (
        hold("ab", SHARD_DOWN, reader_model.Rules(merges_at_applied=True)),
        "lost",
        9,
    ),
    "hold: not sticky": (hold("ba", SHARD_DOWN, reader_model.Rules(lifts_holds=True)), "lost", 6),
    "hold: separate lanes, not drained": (
        hold("bab", SHARD_DOWN, reader_model.Rules(separate_lanes=True, merges_undrained=True)),
        "order",
        10,
    ),
    "hold: ignored by the checkpoint": (
        hold("ba", SHARD_DOWN, reader_model.Rules(checkpoint_ignores_holds=True)),
        "lost",
        4,
    ),
    "hold: forgets what its catch-up sent": (
        hold("ba", SHARD_DOWN, reader_model.Rules(holds_from_catch_up=True), troubles=2),
        "lost",
        9,
    ),
    "hold: no log": (hold("ba", SHARD_DOWN, reader_model.Rules(applies_without_log=True)), "twice", 5),
    "letters: by the clock": (
        LettersModel(2, takes=0, rules=letters_model.Rules(letters_by_clock=True)),
        "both",
        8,
    ),
    "letters: created_at before a slow commit": (
        LettersModel(2, takes=0, rules=letters_model.Rules(forgets_margin=True, registers_slowly=True)),
        "both",
        8,
    ),
    "letters: no margin": (LettersModel(2, takes=0, rules=letters_model.Rules(forgets_margin=True)), "both", 8),
    "letters: margin, slow registration": (
        LettersModel(2, takes=0, rules=letters_model.Rules(registers_slowly=True)),
        "both",
        10,
    ),
    "letters: cached answer": (
        LettersModel(2, takes=0, rules=letters_model.Rules(believes_old_answers=True)),
        "both",
        10,
    ),
    "letters: clocks further apart than the margin allows": (LettersModel(2, takes=0, skew=2), "both", 8),
    "reshard: SHARD_END at the end of reading": (
        reshard("ba", "b", TENANT_REFUSED, reshard_model.Rules(shard_end_ignores_holds=True)),
        "lost",
        3,
    ),
    "reshard: child at the end of reading": (
        reshard("ba", "b", TENANT_REFUSED, reshard_model.Rules(child_starts_at_end_of_reading=True)),
        "order",
        5,
    ),
    "reshard: list without the unregistered": (
        reshard("ba", "b", TENANT_REFUSED, reshard_model.Rules(list_omits_unregistered=True)),
        "order",
        9,
    ),
    "reshard: list without what is in lanes": (
        reshard("ba", "b", TENANT_REFUSED, reshard_model.Rules(list_omits_lanes=True)),
        "order",
        6,
    ),
    "reshard: list before the end of reading": (
        reshard("ba", "b", TENANT_REFUSED, reshard_model.Rules(list_before_end=True)),
        "order",
        4,
    ),
    "giving up: no row": (GivingUpModel(2, rules=giving_up_model.Rules(leaves_no_row=True)), "order", 6),
    "giving up: plain failed row": (
        GivingUpModel(2, rules=giving_up_model.Rules(leaves_plain_row=True)),
        "replay dropped",
        6,
    ),
    "giving up: row before the letter": (
        GivingUpModel(2, rules=giving_up_model.Rules(row_before_letter=True)),
        "lost",
        4,
    ),
    "giving up: another stream shard replaces": (
        GivingUpModel(2, rules=giving_up_model.Rules(other_stream_shard_replaces=True)),
        "order",
        9,
    ),
    "giving up: any other position replaces": (
        GivingUpModel(2, rules=giving_up_model.Rules(any_other_position_replaces=True)),
        "order",
        9,
    ),
}


@pytest.mark.parametrize(("model", "state_count"), SAFE.values(), ids=SAFE)
def test_every_state_keeps_the_promises(model: Model[Any], state_count: int) -> None:
    """The agreed way breaks no promise in any state that can be reached."""
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "state_count"), SAFE_AND_LARGE.values(), ids=SAFE_AND_LARGE)
def test_every_state_keeps_the_promises_in_a_larger_model(model: Model[Any], state_count: int) -> None:
    """The agreed way breaks no promise with more operations and more trouble either."""
    assert state_count == search(model)


@pytest.mark.parametrize(("model", "promise", "length"), WRONG.values(), ids=WRONG)
def test_search_finds_the_violation_when_a_rule_is_left_out(model: Model[Any], promise: str, length: int) -> None:
    """A deviation from the agreed way breaks a promise, and the error has a shortest trace to it."""
    with pytest.raises(Violation) as caught:
        search(model)
    assert promise == caught.value.promise.partition(":")[0], caught.value
    assert length == len(caught.value.trace), caught.value
