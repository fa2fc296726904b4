"""The protocols of holding and of leases, searched: the agreed way is safe in all reachable states, a deviation is not.

The numbers of states are exact: one that changes without a reason is a model that no longer says what it said.
"""

from __future__ import annotations

from typing import Any

import pytest
from model import failover_model, gap_model, group_commit_model, lease_model, letters_model, reshard_failover_model
from model.failover_model import FailoverModel
from model.failover_model import Rules as RowRules
from model.feed_model import FeedModel
from model.feed_model import Rules as FeedRules
from model.feed_retention_model import FeedRetentionModel
from model.feed_retention_model import Rules as FeedRetentionRules
from model.gap_model import GapModel
from model.group_commit_model import GroupCommitModel
from model.group_commit_model import Rules as GroupRules
from model.home_model import HomeModel
from model.home_model import Rules as HomeRules
from model.lease_model import LeaseModel
from model.lease_model import Rules as LeaseRules
from model.letters_model import LettersModel
from model.log_order_model import LogOrderModel
from model.log_order_model import Rules as LogRules
from model.reader_model import Scene
from model.reshard_failover_model import ReshardFailoverModel
from model.reshard_failover_model import Rules as ChildRules
from model.search import Model, search
from model.violations import assert_is_violated, but_for
from support.slow import nightly_ones, slow_ones

# Tenant a, and tenant b whose Postgres shard is in trouble, whose row is not active, or whose shard is a's as well.
SHARD_DOWN = {"shards": "AB", "trouble": "B"}
TENANT_REFUSED = {"shards": "AA", "trouble": "b"}
ONLY_SHARD_DOWN = {"shards": "AA", "trouble": "A"}
ONLY_TENANT_REFUSED = {"shards": "AA", "trouble": "a"}


ALL_OF_A_LEASE = lease_model.Budget()
ALL_OF_A_LEASE_TWICE = lease_model.Budget(takes=2, hand_overs=2, lost_answers=2, stops=2)
LEADER_DIES = lease_model.Budget(takes=1, hand_overs=2, lost_answers=1, stops=1, leader_deaths=1)
RELEASED = lease_model.Budget(leader_deaths=1, requests=1)
HANDED_OVER_TWICE = lease_model.Budget(takes=0, hand_overs=2, lost_answers=0, stops=1)


def failover(
    operations: str,
    rules: str = "",
    trouble: dict[str, str] = TENANT_REFUSED,
    *,
    plain: bool = False,
    found_before: bool = False,
    troubles: int = 0,
    crashes: int = 1,
    takes: int = 0,
    lost_acks: int = 0,
    failovers: int = 1,
    checks_claims: bool = True,
) -> FailoverModel:
    budget = failover_model.Budget(troubles, crashes, takes, lost_acks, failovers)
    return FailoverModel(
        Scene.of(operations, **trouble),
        budget,
        but_for(RowRules, rules),
        is_plain=plain,
        is_found_before=found_before,
        checks_claims=checks_claims,
    )


def reshard_failover(
    parent: str, child: str, rules: str = "", *, grandparent: str = "", checks_claims: bool = True, **budget: int
) -> ReshardFailoverModel:
    return ReshardFailoverModel(
        parent,
        child,
        reshard_failover_model.Budget(**budget),
        but_for(ChildRules, rules),
        grandparent=grandparent,
        checks_claims=checks_claims,
    )


def harm(operations: str, *args: Any, **kwargs: Any) -> FailoverModel:
    """Return a model in which a row may claim too much, until something is lost by it."""
    return failover(operations, *args, **kwargs, checks_claims=False)


def reshard_harm(*args: Any, **kwargs: Any) -> ReshardFailoverModel:
    return reshard_failover(*args, **kwargs, checks_claims=False)


def gap(**rules: bool) -> GapModel:
    return GapModel(failovers=0, acceptances=0, rules=gap_model.Rules(**rules))


def group(**faults: int) -> group_commit_model.Budget:
    return group_commit_model.Budget(**{"takes": 0, **faults})


NAMES_HELD = "names_held"
CLAIMS_EARLY = "claims_early"
WAITING_CHILD_BACKFILLS = "child_waits_for_shard_end"
ADOPTS_AGAIN = "adopts_again_when_freed"
IGNORES_LIST = "child_ignores_list"
LEAVES_LISTED = "leaves_listed"
PARENTS_OWN_LISTED = "leaves_listed parents_own_listed"

SAFE = {
    "home: a map like any": (HomeModel(is_marked=False), 1_104),
    "home: a map with all in place": (HomeModel(is_marked=True), 1_428),
    "home: a map with all in place, a shard lost for good": (HomeModel(is_marked=True, lost=0), 224),
    "letters: crash, readers' clocks ahead": (LettersModel(2, takes=0, skew=1), 42_847),
    "letters: zombie": (LettersModel(2, crashes=0), 332_733),
    "lease: hand-over": (LeaseModel(ALL_OF_A_LEASE), 1_510),
    "lease: hand-over, twice": (LeaseModel(ALL_OF_A_LEASE_TWICE), 44_269),
    "lease: hand-over is loss": (LeaseModel(ALL_OF_A_LEASE_TWICE, LeaseRules(hand_over_is_loss=True)), 29_598),
    "lease: leader dies": (LeaseModel(LEADER_DIES), 14_094),
    "lease: a person asks for its release": (LeaseModel(RELEASED), 40_252),
    "lease: renewed by the counter, own name": (LeaseModel(ALL_OF_A_LEASE, LeaseRules(counter_alone=True)), 2_300),
    "failover: one reader": (failover("ab"), 12_863),
    "failover: tenant refused": (failover("ab", troubles=1, crashes=0), 9_470),
    "failover: other shard down": (failover("ba", trouble=SHARD_DOWN, troubles=1), 15_216),
    "failover: twice": (failover("aab", plain=True, failovers=2), 5_817),
    "failover: lost acknowledgement": (failover("ab", plain=True, lost_acks=1), 4_191),
    "failover: zombie": (failover("ab", plain=True, crashes=0, takes=1), 8_160),
    "failover: zombie, row names the held": (failover("ab", NAMES_HELD, plain=True, crashes=0, takes=1), 10_621),
    "failover: waiting child": (reshard_failover("ab", "b", WAITING_CHILD_BACKFILLS), 7_963),
    "failover: early child": (reshard_failover("a", "a"), 7_828),
    "failover: grandparent": (reshard_failover("a", "a", WAITING_CHILD_BACKFILLS, grandparent="a"), 4_698),
    "failover: early child, adopts again": (reshard_failover("a", "a", ADOPTS_AGAIN), 8_106),
    "failover: early child, leaves what is listed": (reshard_failover("a", "a", LEAVES_LISTED), 13_368),
    "failover: parents own what is listed": (reshard_failover("a", "a", PARENTS_OWN_LISTED), 11_469),
    "group: a lease taken": (GroupCommitModel(count=2), 2_054),
    "group: data refused": (GroupCommitModel(count=2, refused=((0, 0),)), 2_765),
    "group: failover, lost answer": (
        GroupCommitModel(count=2, budget=group(lost_answers=1, failovers=1, catch_ups=1)),
        9_090,
    ),
    "log order: an idle transaction, a rollback": (LogOrderModel((2, 2), idle=1, rollbacks=1), 21_653),
    "log order: two promotions": (LogOrderModel(promotions=2), 13_218),
    "feed: an idle transaction, a kill": (FeedModel((1, 1), idle=1, kills=1), 9_169),
    "feed: a move, a kill": (FeedModel((2, 0), moves=1, kills=1), 7_011),
    "feed: two promotions of what is not awaited": (FeedModel((1, 0), promotions=2, lagging=True), 73_888),
    "feed: a promotion while the destination is out of the file": (
        FeedModel((1, 0), promotions=1, lagging=True, leaves=1),
        23_550,
    ),
    "log order: there and back": (LogOrderModel((3, 1), moves=2), 17_404),
    "gap: no kill": (GapModel(kills=0, failovers=0), 66_309),
    "gap: four records in three ticks": (GapModel(records=4, ticks=3, kills=0, failovers=0), 96_194),
    "gap: failovers alone": (GapModel(restores=0), 159_563),
}

SAFE_AND_LARGE = {
    "feed: there and back": (FeedModel((2, 0), moves=2), 10_919),
    "feed: the retention deletes what waits for the source of a move": (FeedRetentionModel(), 40_163),
    "feed: a promotion, a kill": (FeedModel((2, 0), promotions=1, kills=1), 97_398),
    "feed: a promotion of what is not awaited, a kill": (
        FeedModel((2, 0), promotions=1, lagging=True, kills=1),
        160_186,
    ),
    "feed: the same with two tenants": (FeedModel((1, 1), promotions=1, lagging=True), 109_904),
    "feed: a promotion and a move": (FeedModel((1, 0), promotions=1, moves=1, lagging=True), 97_368),
    "feed: what is read late, a promotion of what is not awaited, a kill": (
        FeedModel((1, 0), promotions=1, kills=1, lagging=True, late=2),
        125_062,
    ),
    "feed: what is read late, a promotion of what is awaited, a kill": (
        FeedModel((1, 0), promotions=1, kills=1, late=2),
        74_770,
    ),
    "feed: a promotion of what is awaited, a move": (FeedModel((2, 0), promotions=1, moves=1), 466_603),
    "log order: an idle transaction, a rollback, a move": (LogOrderModel(idle=1, rollbacks=1, moves=1), 83_706),
    "log order: a promotion beside an idle transaction": (LogOrderModel((2, 2), idle=1, promotions=1), 199_365),
    "log order: a promotion and a move": (LogOrderModel(promotions=1, moves=1), 41_237),
    "letters: crash and zombie, clocks ahead": (LettersModel(2, skew=1), 1_000_492),
    "letters: 3 operations": (LettersModel(3, takes=0), 189_626),
    "failover: 3 operations": (failover("aab"), 60_078),
    "failover: tenant refused, crash": (failover("ab", troubles=1), 39_664),
    "failover: only shard down": (failover("ab", trouble=ONLY_SHARD_DOWN, troubles=1, crashes=0), 10_346),
    "failover: lost acknowledgement, whole reader": (failover("ab", lost_acks=1, crashes=0), 18_529),
    "failover: claims early": (failover("ab", CLAIMS_EARLY), 18_134),
    "failover: claims early, zombie": (failover("ab", CLAIMS_EARLY, plain=True, crashes=0, takes=1), 18_339),
    "failover: zombie, 3 operations": (failover("aab", plain=True, crashes=0, takes=1), 40_432),
    "failover: zombie and crash": (failover("ab", plain=True, takes=1), 19_423),
    "failover: zombie, twice": (failover("ab", plain=True, crashes=0, takes=1, failovers=2), 19_539),
    "failover: zombie, lost acknowledgement": (failover("ab", plain=True, crashes=0, takes=1, lost_acks=1), 43_486),
    "failover: names the held, tenant refused": (failover("ab", NAMES_HELD, troubles=1, crashes=0), 27_118),
    "failover: names the held, unknown tenant": (
        failover("ab", NAMES_HELD, troubles=1, crashes=0, found_before=True),
        27_472,
    ),
    "failover: names the held, other shard down": (failover("ba", NAMES_HELD, SHARD_DOWN, troubles=1), 69_831),
    "failover: names the held, 3 operations": (failover("aba", NAMES_HELD, plain=True, crashes=0, takes=1), 60_579),
    "failover: names the held, zombie and crash": (failover("ab", NAMES_HELD, plain=True, takes=1), 25_642),
    "failover: early child, 3 operations": (reshard_failover("ab", "b"), 42_395),
    "failover: early child, twice": (reshard_failover("a", "a", failovers=2), 29_325),
    "failover: early child, parent crashes": (reshard_failover("a", "a", parent_crashes=1), 22_278),
    "failover: zombie of the early child": (reshard_failover("a", "a", child_crashes=0, child_takes=1), 45_607),
    "failover: zombie of the parent": (reshard_failover("a", "a", child_crashes=0, parent_takes=1), 36_315),
    "failover: early child, grandparent": (reshard_failover("a", "a", grandparent="a"), 31_971),
    "failover: early child, without a list": (reshard_failover("a", "a", IGNORES_LIST), 21_993),
    "failover: early child, leaves what is listed, 3 operations": (reshard_failover("aa", "a", LEAVES_LISTED), 33_510),
    "failover: early child, leaves what is listed, twice": (
        reshard_failover("a", "a", LEAVES_LISTED, failovers=2),
        49_542,
    ),
    "failover: early child, leaves what is listed, two tenants": (
        reshard_failover("ab", "b", LEAVES_LISTED, child_crashes=0),
        42_002,
    ),
    "failover: parents own what is listed, two tenants": (
        reshard_failover("ab", "b", PARENTS_OWN_LISTED, child_crashes=0),
        37_395,
    ),
    "failover: parents own what is listed, 3 operations": (reshard_failover("aa", "a", PARENTS_OWN_LISTED), 23_517),
    "failover: parents own what is listed, twice": (
        reshard_failover("a", "a", PARENTS_OWN_LISTED, failovers=2),
        43_886,
    ),
    "failover: parents own what is listed, parent crashes": (
        reshard_failover("a", "a", PARENTS_OWN_LISTED, parent_crashes=1),
        33_691,
    ),
    "failover: parents own what is listed, zombie of the child": (
        reshard_failover("a", "a", PARENTS_OWN_LISTED, child_crashes=0, child_takes=1),
        72_285,
    ),
    "failover: parents own what is listed, zombie of the parent": (
        reshard_failover("a", "a", PARENTS_OWN_LISTED, child_crashes=0, parent_takes=1),
        55_260,
    ),
    "failover: parents own what is listed, grandparent": (
        reshard_failover("a", "a", PARENTS_OWN_LISTED, grandparent="a"),
        45_439,
    ),
    "failover: early child, adopts again, twice": (reshard_failover("a", "a", ADOPTS_AGAIN, failovers=2), 30_273),
    "group: no rows at first, two leases taken": (
        GroupCommitModel(count=2, has_rows=False, budget=group(takes=2)),
        31_993,
    ),
    "group: failover, lost answer, a lease taken": (
        GroupCommitModel(budget=group(takes=1, lost_answers=1, failovers=1, catch_ups=1)),
        21_303,
    ),
    "group: three stream shards": (GroupCommitModel(stream_shards=3, budget=group(takes=1, failovers=1)), 27_176),
    "group: failover, a lease taken, two operations": (
        GroupCommitModel(count=2, budget=group(takes=1, failovers=1, catch_ups=1)),
        76_495,
    ),
    "gap: two records": (GapModel(records=2, acceptances=0), 339_453),
}

WRONG = {
    "feed: beyond the horizon": (FeedModel((1, 1), feed=FeedRules(reads_beyond_horizon=True)), "missed", 8),
    "feed: cursor before the publish": (
        FeedModel((1, 0), kills=1, feed=FeedRules(cursor_before_publish=True)),
        "missed",
        7,
    ),
    "feed: publish before the commit is safe": (
        FeedModel((1, 0), promotions=1, feed=FeedRules(publishes_unsafe=True)),
        "undone",
        5,
    ),
    "feed: target before the source": (
        FeedModel((2, 0), moves=1, feed=FeedRules(target_before_source=True)),
        "order",
        15,
    ),
    "feed: the target trusts a cursor that may go back": (
        FeedModel((2, 0), promotions=1, moves=1, feed=FeedRules(trusts_unsafe_cursor=True)),
        "order",
        23,
    ),
    "feed: a reset behind the newest batch": (
        FeedModel((2, 1), promotions=1, lagging=True, feed=FeedRules(reset_behind_newest=True)),
        "twice",
        11,
    ),
    "feed: a cursor that is written on the promoted server": (
        FeedModel((1, 1), promotions=1, lagging=True, feed=FeedRules(late_cursor=True)),
        "twice",
        14,
    ),
    "feed: no reset": (FeedModel((2, 0), promotions=1, lagging=True, feed=FeedRules(no_reset=True)), "twice", 10),
    "feed: a destination counts as told before the delivery": (
        FeedModel((1, 0), promotions=1, kills=1, lagging=True, feed=FeedRules(told_before_delivery=True)),
        "twice",
        10,
    ),
    "feed: a destination that is out of the file counts as told": (
        FeedModel((1, 0), promotions=1, leaves=1, lagging=True, feed=FeedRules(told_out_of_file=True)),
        "twice",
        13,
    ),
    "feed: a queue takes an event of a new incarnation for a repetition": (
        FeedModel((1, 0), promotions=1, lagging=True, feed=FeedRules(swallows_by_event=True)),
        "missed",
        12,
    ),
    "feed: a receiver does not note that an event came again": (
        FeedModel((1, 0), promotions=1, kills=1, late=1, feed=FeedRules(keeps_first_incarnation=True)),
        "missed",
        13,
    ),
    "feed: a receiver applies what was sent before a reset": (
        FeedModel((1, 0), promotions=1, lagging=True, late=1, feed=FeedRules(applies_late=True)),
        "missed",
        14,
    ),
    "feed: what was deleted is not told": (FeedRetentionModel(rules=FeedRetentionRules(no_gap=True)), "order", 6),
    "feed: what was deleted is asked for before the read": (
        FeedRetentionModel(rules=FeedRetentionRules(gap_before_read=True)),
        "order",
        6,
    ),
    "feed: the cursor passes an arrival that waits": (
        FeedRetentionModel(rules=FeedRetentionRules(cursor_behind_arrival=True)),
        "order",
        10,
    ),
    "log order: beyond the horizon": (LogOrderModel(rules=LogRules(reads_beyond_horizon=True)), "missed", 8),
    "log order: by number alone": (LogOrderModel(promotions=1, rules=LogRules(number_alone=True)), "twice", 9),
    "log order: only what is behind the newest is undone": (
        LogOrderModel(promotions=1, rules=LogRules(undone_behind_newest=True)),
        "twice",
        12,
    ),
    "log order: forgets what is not safe yet": (
        LogOrderModel(promotions=1, rules=LogRules(forgets_unsafe=True)),
        "twice",
        11,
    ),
    "log order: target before the source": (
        LogOrderModel(moves=1, rules=LogRules(target_before_source=True)),
        "order",
        11,
    ),
    "log order: marker before the fence": (
        LogOrderModel(moves=1, rules=LogRules(marker_before_fence=True)),
        "order",
        12,
    ),
    "group: locks as they come": (
        GroupCommitModel(budget=group(takes=2), rules=GroupRules(locks_as_they_come=True)),
        "deadlock",
        10,
    ),
    "group: new rows last": (
        GroupCommitModel(count=2, has_rows=False, budget=group(takes=2), rules=GroupRules(inserts_last=True)),
        "deadlock",
        13,
    ),
    "group: an error for all": (GroupCommitModel(rules=GroupRules(error_for_all=True)), "blamed", 9),
    "group: drops the others": (GroupCommitModel(rules=GroupRules(drops_others=True)), "lost", 10),
    "group: applies without a token": (
        GroupCommitModel(count=2, budget=group(failovers=1), rules=GroupRules(applies_untokened=True)),
        "order",
        10,
    ),
    "group: positions first": (GroupCommitModel(budget=group(), rules=GroupRules(positions_first=True)), "claims", 4),
    "group: writes one row of many": (
        GroupCommitModel(budget=group(failovers=1), rules=GroupRules(first_position_alone=True)),
        "lost",
        11,
    ),
    "home: a silent shard that may have it is ignored": (
        HomeModel(is_marked=False, rules=HomeRules(ignores_silent=True)),
        "homes",
        4,
    ),
    "home: the pin decides in a map like any": (
        HomeModel(is_marked=False, rules=HomeRules(asks_place_alone=True)),
        "homes",
        4,
    ),
    "home: the mark stays when the tenant is not in place": (
        HomeModel(is_marked=True, rules=HomeRules(marks_anyway=True)),
        "homes",
        4,
    ),
    "home: a shard forgets a tenant that has left": (
        HomeModel(is_marked=True, rules=HomeRules(forgets_left=True)),
        "homes",
        4,
    ),
    "home: a map like any, a shard lost for good": (HomeModel(is_marked=False, lost=0), "unsettled", 1),
    "letters: by the clock": (LettersModel(2, takes=0, rules=letters_model.Rules(letters_by_clock=True)), "both", 9),
    "letters: created_at before a slow commit": (
        LettersModel(2, takes=0, rules=letters_model.Rules(forgets_margin=True, registers_slowly=True)),
        "both",
        9,
    ),
    "letters: no margin": (LettersModel(2, takes=0, rules=letters_model.Rules(forgets_margin=True)), "both", 9),
    "letters: margin, slow registration": (
        LettersModel(2, takes=0, rules=letters_model.Rules(registers_slowly=True)),
        "both",
        11,
    ),
    "letters: cached answer": (
        LettersModel(2, takes=0, rules=letters_model.Rules(believes_old_answers=True)),
        "both",
        11,
    ),
    "letters: clocks further apart than the margin allows": (LettersModel(2, takes=0, skew=2), "both", 9),
    "letters: finished before they are stored": (
        LettersModel(2, takes=0, rules=letters_model.Rules(finishes_first=True)),
        "lost",
        6,
    ),
    "lease: renewed by the counter, under the name in the row": (
        LeaseModel(ALL_OF_A_LEASE, LeaseRules(counter_alone=True, owner_of_the_row=True)),
        "owners",
        5,
    ),
    "lease: held under the name in the row": (
        LeaseModel(ALL_OF_A_LEASE, LeaseRules(owner_of_the_row=True)),
        "owners",
        6,
    ),
    "lease: any row one higher is the own write": (
        LeaseModel(ALL_OF_A_LEASE, LeaseRules(landed_by_counter=True)),
        "owners",
        4,
    ),
    "lease: hand-over frees the lease": (LeaseModel(ALL_OF_A_LEASE, LeaseRules(frees_at_hand_over=True)), "owner", 3),
    "lease: assigned lease taken by the counter alone": (
        LeaseModel(HANDED_OVER_TWICE, LeaseRules(begins_by_counter=True)),
        "owner",
        8,
    ),
    "lease: take keeps the checkpoint owner": (
        LeaseModel(ALL_OF_A_LEASE, LeaseRules(keeps_checkpoint_owner=True)),
        "taker",
        2,
    ),
    "lease: hand-over of a lost lease left to a leader that died": (
        LeaseModel(LEADER_DIES, LeaseRules(leaves_hand_overs=True)),
        "unsettled",
        5,
    ),
    "lease: request to release is for any owner": (LeaseModel(RELEASED, LeaseRules(asks_any_owner=True)), "request", 5),
    "lease: take leaves the request to release": (LeaseModel(RELEASED, LeaseRules(keeps_requests=True)), "request", 6),
    "failover: no backfill": (harm("a", "never_backfills"), "lost", 9),
    "failover: batches do not compare": (harm("aa", "writes_blindly", crashes=0), "order", 7),
    "failover: compared only when there is a batch": (harm("a", "probes_no_idle_shard", crashes=0), "lost", 9),
    "failover: noticed only by a running reader": (harm("a", "trusts_first_contact"), "lost", 9),
    "failover: no row is the reader's own position": (harm("a", "trusts_missing_row"), "lost", 9),
    "failover: from the highest in the log": (harm("ab", "backfills_from_log", plain=True, crashes=0), "lost", 9),
    "failover: backfill of tenants seen": (harm("ab", "backfills_seen_only"), "lost", 11),
    "failover: rewinds below the lowest pending only": (
        harm("ab", "rewinds_if_below_pending", plain=True, crashes=0),
        "lost",
        9,
    ),
    "failover: row by route": (harm("ba", "claims_by_route", troubles=1, found_before=True), "lost", 17),
    "failover: claims what its batch did not apply": (
        harm("a", "claims_own_batch", trouble=ONLY_TENANT_REFUSED, troubles=1),
        "lost",
        13,
    ),
    "failover: token is a counter": (harm("aa", "counts_tokens", plain=True, crashes=0, takes=1), "order", 8),
    "failover: keeps tokens of unknown outcomes": (
        harm("aa", "keeps_tokens", plain=True, crashes=0, lost_acks=1),
        "lost",
        9,
    ),
    "failover: claim kept over an adoption": (
        harm("aa", "claims_early resends_claim", plain=True, failovers=2),
        "order",
        14,
    ),
    "failover: held and read to of two times": (harm("ab", "names_held mixes_claims", plain=True), "lost", 13),
    "failover: names tenants seen only": (harm("ab", "names_held names_seen_only", crashes=2), "lost", 14),
    "failover: child backfills without its parent": (reshard_harm("a", "a", "forgets_parents"), "order", 8),
    "failover: waiting child backfills without its parent": (
        reshard_harm("ab", "b", "child_waits_for_shard_end forgets_parents"),
        "order",
        9,
    ),
    "failover: child backfills without its grandparent": (
        reshard_harm("a", "a", "forgets_grandparents", grandparent="a", failovers=0),
        "order",
        7,
    ),
    "failover: child adopts without writing": (reshard_harm("a", "a", "adopts_without_writing"), "order", 9),
    "failover: waiting child adopts without writing": (
        reshard_harm("ab", "b", "child_waits_for_shard_end adopts_without_writing"),
        "order",
        10,
    ),
    "failover: child leaves what is listed to its parent": (reshard_harm("a", "a", "skips_listed"), "order", 9),
    "failover: child leaves what is listed while it reads that again": (
        reshard_harm("aa", "a", "leaves_listed leaves_anyway", child_crashes=0),
        "order",
        11,
    ),
    "failover: child sends what is free without adopting again": (
        reshard_harm("a", "a", "leaves_listed parents_own_listed frees_without_adopting"),
        "order",
        9,
    ),
    "failover: parents done at SHARD_END": (reshard_harm("a", "a", "done_at_shard_end"), "order", 11),
    "failover: parents done early": (reshard_harm("a", "a", "done_early"), "order", 11),
    "gap: never holds": (gap(never_holds=True), "over a gap", 14),
    "gap: whatever the age of the row": (gap(ignores_age=True), "held in vain", 5),
    "gap: compared with the reader": (gap(ignores_checkpoint=True), "over a gap", 16),
    "gap: whether the fleet was stopped or not": (gap(ignores_stop=True), "held in vain", 8),
    "gap: its own reads prove that it was not": (gap(trusts_own_reads=True), "held in vain", 10),
    "gap: a hold in memory alone": (gap(keeps_in_memory=True), "over a gap", 17),
}


# Of the same rules and troubles as a smaller one.
NIGHTLY = {
    "feed: a promotion of what is awaited, a move",
    "log order: a promotion beside an idle transaction",
    "letters: crash and zombie, clocks ahead",
    "gap: two records",
}
# What takes more than half a second of processor time.
SAFE_BUT_SLOW = {
    "letters: zombie",
    "gap: failovers alone",
    "gap: four records in three ticks",
    "gap: no kill",
    "failover: other shard down",
    "lease: hand-over, twice",
    "failover: early child, leaves what is listed",
    "failover: early child",
    "failover: parents own what is listed",
    "failover: early child, adopts again",
    "failover: one reader",
    "lease: a person asks for its release",
    "failover: zombie, row names the held",
    "log order: there and back",
    "feed: a move, a kill",
    "log order: an idle transaction, a rollback",
    "feed: two promotions of what is not awaited",
    "group: failover, lost answer",
    "lease: hand-over is loss",
    "feed: a promotion while the destination is out of the file",
    "log order: two promotions",
    "feed: an idle transaction, a kill",
    "failover: zombie",
}


@pytest.mark.parametrize(("model", "state_count"), slow_ones(SAFE_BUT_SLOW, SAFE))
def test_every_state_keeps_the_promises(model: Model[Any], state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.parametrize(
    "model",
    [GroupCommitModel(count=2), GroupCommitModel(count=2, has_rows=False, refused=((0, 0), (1, 1)))],
    ids=["lease taken", "data refused"],
)
def test_group_commit_comes_to_an_end(model: GroupCommitModel) -> None:
    search(model, forbids_cycles=True)


def test_search_finds_that_a_group_is_tried_again_for_ever() -> None:
    model = GroupCommitModel(refused=((0, 0),), rules=GroupRules(retries_together=True))
    assert_is_violated(model, "cycle", 6, forbids_cycles=True)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "state_count"), nightly_ones(NIGHTLY, SAFE_AND_LARGE))
def test_every_state_keeps_the_promises_in_a_larger_model(model: Model[Any], state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "promise", "length"), WRONG.values(), ids=WRONG)
def test_search_finds_the_violation_when_a_rule_is_left_out(model: Model[Any], promise: str, length: int) -> None:
    assert_is_violated(model, promise, length)
