"""Transfers of a tenant, searched: the agreed way breaks no promise, and each deviation is found.

The numbers of states are exact, as in `test_models.py`.
"""

from __future__ import annotations

import pytest
from model.search import search
from model.transfer_model import TransferModel
from model.transfer_state import Budget, Rules, Setting
from model.violations import assert_is_violated, but_for
from support.slow import nightly_ones, slow_ones


def move(count: int = 1, *rules: str, keeps: bool = False, moves: int = 1, **budget: int) -> TransferModel:
    """Return a model of movers on shards that lose nothing; with *keeps* they go on from earlier copies."""
    return TransferModel(
        Setting(count, keeps_copies=keeps), Budget(moves=moves, **budget), but_for(Rules, " ".join(rules))
    )


def failing(
    count: int = 1, *rules: str, source: int = 0, target: int = 0, rows: str = "AB", at_once: int = 1, **budget: int
) -> TransferModel:
    setting = Setting(count, is_split=False, has_positions=True, rows=rows, at_once=at_once)
    budget = {"moves": 1, **budget}
    return TransferModel(
        setting, Budget(failovers=source, failovers_of_target=target, **budget), but_for(Rules, " ".join(rules))
    )


def restore(count: int = 3, *rules: str, catches_up: bool, **budget: int) -> TransferModel:
    setting = Setting(
        count,
        shard_count=1,
        is_split="fences_beside_batches" in rules,
        has_positions=True,
        has_neighbour=True,
        catches_up=catches_up,
    )
    return TransferModel(setting, Budget(**{"restores": 1, **budget}), but_for(Rules, " ".join(rules)))


def catch_up(count: int = 3, *rules: str, **budget: int) -> TransferModel:
    return restore(count, *rules, catches_up=True, **budget)


def as_of_backup(count: int = 3, *rules: str, **budget: int) -> TransferModel:
    return restore(count, *rules, catches_up=False, **budget)


def arrive(count: int = 1, *rules: str, **budget: int) -> TransferModel:
    """Return a model of imports and adoptions."""
    setting = Setting(count, home="none", shard_count=1, is_split=False, has_positions=True)
    return TransferModel(setting, Budget(**budget), but_for(Rules, " ".join(rules)))


def erase(count: int = 1, *rules: str, shards: int = 2, **budget: int) -> TransferModel:
    return TransferModel(
        Setting(count, shard_count=shards), Budget(**{"erasures": 1, **budget}), but_for(Rules, " ".join(rules))
    )


SAFE: dict[str, tuple[TransferModel, int]] = {
    "move: crash, zombie": (move(2, crashes=1, takes=1), 5_024),
    "move: two movers": (move(2, moves=2), 4_564),
    "move: two movers, zombie": (move(2, moves=2, takes=1), 28_534),
    "move: two movers, rename": (move(2, moves=2, renames=1), 15_078),
    "move: two movers, one copy": (move(2, keeps=True, moves=2), 4_276),
    "move: two movers, one copy, rename": (move(1, keeps=True, moves=2, renames=1), 4_222),
    "move: two movers, one copy, rolled back": (move(1, keeps=True, moves=2, rollbacks=1), 7_361),
    "move: two movers, orders": (move(1, moves=2, messages=2), 9_723),
    "move: two movers, one copy, orders": (move(1, keeps=True, moves=2, messages=2), 9_179),
    "move: and back, orders": (move(1, moves_back=1, messages=2), 2_644),
    "move: one copy, rolled back, orders": (move(0, keeps=True, moves=2, rollbacks=1, messages=2), 7_896),
    "move: rolled back beside the mover": (move(2, rollbacks=1), 1_994),
    "move: and back": (move(2, moves_back=1), 1_407),
    "move: and back, cleanup": (move(2, moves_back=1, cleanups=1), 3_107),
    "move and failover: of the source": (failing(2, source=1), 61_363),
    "move and failover: of the target": (failing(2, target=1), 34_556),
    "move and failover: of the target, message": (failing(0, moves=2, target=1, messages=1), 5_562),
    "move and failover: of the target, without a wait for its replica": (
        failing(0, "skips_target_wait", moves=2, target=1, messages=1),
        8_174,
    ),
    "move and failover: of the source, message": (failing(1, source=1, messages=1), 45_666),
    "move and failover: of the source, target without a row": (failing(1, source=1, rows="A"), 25_996),
    "move and failover: of the source, source without a row": (failing(1, source=1, rows="B"), 13_055),
    "restore: catch up": (catch_up(expiries=1), 1_917),
    "restore: as of the backup": (as_of_backup(expiries=1), 1_493),
    "restore: catch up, crash of the reader": (catch_up(crashes=1), 4_140),
    "restore: as of the backup, crash of the reader": (as_of_backup(crashes=1), 3_240),
    "restore: catch up, failover": (catch_up(failovers=1), 37_219),
    "restore: as of the backup, failover": (as_of_backup(failovers=1), 20_251),
    "restore: catch up, two restorers": (catch_up(2, restores=2, expiries=1), 25_364),
    "restore: as of the backup, two restorers": (as_of_backup(2, restores=2, expiries=1), 14_625),
    "import: changes, failover": (arrive(1, imports=1, changes=2, failovers=1), 1_580),
    "import: two at once, changes": (arrive(1, imports=2, changes=2), 3_762),
    "import: followed, changes, a loss of the source": (arrive(1, follows=1, imports=1, changes=2, losses=1), 14_510),
    "import: followed, discarded": (arrive(1, follows=1, imports=1, discards=1, changes=1), 7_284),
    "import: followed, failover": (arrive(1, follows=1, imports=1, changes=1, failovers=1), 26_069),
    "adopt: two at once, changes": (arrive(1, adoptions=2, changes=4), 916),
    "adopt: failover, changes": (arrive(0, adoptions=1, changes=3, failovers=1), 1_734),
    "erase: beside a mover": (erase(1, moves=1), 1_262),
    "erase: failover": (erase(0, failovers=1, shards=1), 38),
    "erase: beside a mover, rolled back": (erase(0, moves=1, rollbacks=1), 1_391),
}

SAFE_AND_LARGE: dict[str, tuple[TransferModel, int]] = {
    "move and failover: of the source, all read again": (failing(2, "never_follows", source=1), 60_009),
    "move: two movers, late commit": (move(2, moves=2, late_commits=1), 37_847),
    "move: two movers, late commit, rollback": (move(1, moves=2, late_commits=1, rollbacks=1), 61_291),
    "move: two movers, rename, crash, zombie": (move(1, moves=2, renames=1, crashes=1, takes=1), 45_292),
    "move: two movers, one copy, late commit": (move(2, keeps=True, moves=2, late_commits=1), 30_362),
    "move: two movers, one copy, and back, zombie": (move(1, keeps=True, moves=2, moves_back=1, takes=1), 21_294),
    "move: and back twice, cleanup": (move(1, moves=2, moves_back=2, cleanups=1), 60_201),
    "move: and back twice, cleanup, orders": (move(0, moves=2, moves_back=2, cleanups=1, messages=2), 62_526),
    "move: and back, rename, zombie, cleanup": (move(1, moves_back=1, renames=1, takes=1, cleanups=1), 11_848),
    "move and failover: of the source, two movers": (failing(1, moves=2, source=1), 81_685),
    "move and failover: of the source, two at once": (failing(1, moves=2, source=1, at_once=2), 334_816),
    "move and failover: of the target, two movers": (failing(1, moves=2, target=1), 53_242),
    "move and failover: of the target, two at once": (failing(1, moves=2, target=1, at_once=2), 217_964),
    "move and failover: of both": (failing(1, source=1, target=1), 117_408),
    "move and failover: of both, message": (failing(0, moves=2, source=1, target=1, messages=1), 58_558),
    "move and failover: of both, message, two at once": (
        failing(0, moves=2, source=1, target=1, messages=1, at_once=2),
        192_832,
    ),
    "move and failover: of the source, crash": (failing(1, source=1, crashes=1), 50_201),
    "move and failover: of the source, crash, 2 operations": (failing(2, source=1, crashes=1), 322_341),
    "move and failover: of the source, no rows": (failing(2, source=1, rows=""), 119_496),
    "restore: catch up, failover and crash": (catch_up(crashes=1, failovers=1), 160_891),
    "restore: as of the backup, failover and crash": (as_of_backup(crashes=1, failovers=1), 113_024),
    "restore: catch up, two restorers, failover": (catch_up(1, restores=2, failovers=1), 108_277),
}

WRONG: dict[str, tuple[TransferModel, str, int]] = {
    "move: an expired fence is read as active": (move(1, "reads_expired_fence_as_active"), "lost", 12),
    "move: a commit by the token alone": (move(1, "commits_without_fence", "expiry_keeps_token"), "lost", 13),
    "move: no token": (move(1, "has_no_token", moves=2), "unsettled", 13),
    "move: the token is taken at the fence": (move(2, "takes_token_at_fence", moves=2), "unsettled", 13),
    "move: writes to the target do not check the token": (move(2, "writes_without_token", moves=2), "lost", 17),
    "move: the end of a fence keeps the token": (move(2, "expiry_keeps_token", late_commits=1), "lost", 15),
    "move: the fence does not wait for batches": (move(1, "fences_beside_batches"), "lost", 12),
    "move: the delta misses batches in flight": (move(1, "misses_batches_in_flight"), "lost", 12),
    "move: the log stays": (move(1, "leaves_log", crashes=1), "twice", 14),
    "move: renames are not in the delta": (move(1, "ignores_renames", renames=1), "lost", 10),
    "move: the delta has of an id the newest row alone": (move(0, "ignores_older_rows", messages=2), "lost", 11),
    "move: activated without the last delta": (move(1, "skips_last_delta"), "lost", 10),
    "move: activated by the present token of the source": (
        move(1, "activates_by_present_token", moves=2, moves_back=1),
        "homes",
        23,
    ),
    "move: a rollback drops rows without a token": (move(1, "drops_without_token", rollbacks=1), "unsettled", 11),
    "move: a rollback after the commit makes the source active": (
        move(1, "rolls_back_in_place", rollbacks=1),
        "lost",
        14,
    ),
    "move: the delta to an earlier copy begins with the mover": (
        move(1, "continues_from_own_start", keeps=True, moves=2),
        "lost",
        15,
    ),
    "move: the delta of the way back begins with it": (move(1, "rolls_back_by_old_copy", moves_back=1), "lost", 19),
    "move: the way back trusts cleaned rows": (move(1, "trusts_cleaned_rows", moves_back=1, cleanups=1), "lost", 18),
    "move: a cleanup deletes what has come back": (
        move(1, "cleans_up_unchecked", moves_back=1, cleanups=1),
        "lost",
        20,
    ),
    "move and failover: any incoming row is activated": (
        failing(1, "activates_any_incoming", "skips_target_wait", target=1),
        "lost",
        10,
    ),
    "move and failover: ready without a token": (
        failing(0, "ready_without_token", "skips_target_wait", moves=2, target=1, messages=1),
        "lost",
        18,
    ),
    "move and failover: no wait for the source's replica": (failing(1, "skips_source_wait", source=1), "homes", 10),
    "move and failover: no second copy": (
        failing(1, "never_copies_again", "skips_target_wait", moves=2, target=1),
        "unsettled",
        12,
    ),
    "move and failover: positions are not carried": (failing(1, "carries_no_position", source=1), "claims", 14),
    "move and failover: positions are merged before the commit": (
        failing(1, "merges_before_commit", source=1),
        "claims",
        14,
    ),
    "move and failover: positions are merged before the commit, and a ready tenant is read again": (
        failing(1, "merges_before_commit", "counts_ready_as_resident", source=1),
        "claims",
        15,
    ),
    "move and failover: the target's row stays though the source has none": (
        failing(2, "keeps_row_if_source_has_none", source=1, rows="B"),
        "claims",
        14,
    ),
    "move and failover: a reader makes a row beside the move": (
        failing(2, "makes_row_beside_move", source=1, rows="A"),
        "order",
        14,
    ),
    "move and failover: the mover trusts its memory of the copy": (
        failing(1, "trusts_own_progress", target=1),
        "lost",
        10,
    ),
    "move and failover: a reader follows a move from any token": (
        failing(2, "follows_from_any_token", target=1),
        "claims",
        19,
    ),
    "move and failover: a reader follows without the carried token": (
        failing(1, "follows_without_carried", source=1),
        "claims",
        18,
    ),
    "move and failover: a reader follows without a look at the source": (
        failing(2, "follows_without_source", source=1),
        "claims",
        17,
    ),
    "move and failover: a reader follows from a token that it has found": (
        failing(1, "follows_adopted_token", source=1),
        "claims",
        18,
    ),
    "move and failover: a reader follows from a token that is older than a loss of the source": (
        failing(2, "keeps_written_if_source_lost", source=1),
        "claims",
        19,
    ),
    "move and failover: a reader follows from a token that is older than a loss of the target": (
        failing(2, "keeps_written_if_target_lost", target=1),
        "claims",
        21,
    ),
    "move and failover: messages are deleted early": (
        failing(1, "deletes_messages_early", source=1, messages=1),
        "lost",
        3,
    ),
    "restore: the live log is kept to catch up": (catch_up(1, "keeps_live_log"), "lost", 16),
    "restore: the log of all tenants becomes the backup's": (catch_up(2, "replaces_log_of_shard"), "twice", 15),
    "restore: the position stays": (catch_up(1, "lowers_nothing"), "lost", 13),
    "restore: the lower position keeps its token": (catch_up(1, "keeps_token"), "lost", 13),
    "restore: the position is lowered after the release": (catch_up(3, "lowers_apart"), "order", 12),
    "restore: the log is the backup's as of the backup": (
        as_of_backup(1, "takes_log_of_backup", crashes=1),
        "came back",
        14,
    ),
    "restore: the log is emptied as of the backup": (as_of_backup(1, "empties_log", crashes=1), "twice", 13),
    "restore: the log lacks what only the backup has": (
        as_of_backup(1, "leaves_out_log_of_backup", failovers=1),
        "twice",
        15,
    ),
    "restore: no fence": (catch_up(1, "has_no_fence"), "lost", 6),
    "restore: the fence does not wait for batches": (as_of_backup(1, "fences_beside_batches"), "export", 12),
    "restore: a worker ends the fence while rows are replaced": (
        catch_up(1, "ends_every_fence", expiries=1),
        "lost",
        7,
    ),
    "restore: writes do not check the token": (as_of_backup(1, "writes_without_token", restores=2), "export", 14),
    "restore: runs differ by the token alone": (catch_up(1, "counts_runs", restores=2, failovers=1), "export", 15),
    "restore: a restorer trusts its memory of the copy": (catch_up(1, "trusts_own_progress", failovers=1), "lost", 10),
    "restore: what is half replaced is exported again": (as_of_backup(1, "exports_again", restores=2), "export", 15),
    "restore: the end is reported before the replica has it": (
        as_of_backup(1, "reports_early", failovers=1),
        "came back",
        13,
    ),
    "import: only what change columns name is compared": (
        arrive(0, "trusts_change_columns", follows=1, imports=1, changes=2),
        "differs",
        13,
    ),
    "import: writes do not check the run": (arrive(0, "writes_without_token", imports=2, changes=1), "lost", 11),
    "import: rows are activated that another server has": (
        arrive(0, "trusts_own_progress", "activates_unsafe_rows", imports=1, failovers=1),
        "lost",
        9,
    ),
    "import: rows are activated that the replica lacks": (
        arrive(1, "activates_unsafe_rows", imports=1, failovers=1),
        "claims",
        22,
    ),
    "import: nothing is read again for incoming tenants": (
        arrive(1, "reads_nothing_for_incoming", imports=1, failovers=1),
        "claims",
        22,
    ),
    "import: the end is reported before the replica has it": (
        arrive(0, "reports_early", imports=1, failovers=1),
        "lost",
        10,
    ),
    "import: what is active is discarded": (arrive(0, "discards_activated", imports=1, discards=1), "lost", 11),
    "adopt: rows are copied before triggers watch them": (
        arrive(0, "copies_before_triggers", adoptions=1, changes=1),
        "lost",
        6,
    ),
    "adopt: the last changes are copied before the swap": (
        arrive(0, "swaps_without_lock", adoptions=1, changes=1),
        "lost",
        7,
    ),
    "adopt: changes are noted as done before they are": (
        arrive(0, "notes_changes_first", adoptions=2, changes=1),
        "lost",
        8,
    ),
    "adopt: an adopter trusts its memory of the copy": (
        arrive(0, "trusts_own_progress", adoptions=1, changes=1, failovers=1),
        "lost",
        8,
    ),
    "erase: a mover has read the row": (erase(0, "erases_beside_movers", moves=1), "came back", 12),
    "erase: the token is not checked": (erase(0, "writes_without_token", moves=1), "came back", 12),
    "erase: results before the row": (erase(1, "erases_results_first", shards=1), "came back", 7),
    "erase: the row beside batches": (erase(1, "fences_beside_batches", shards=1), "came back", 7),
    "erase: at the tenant's home alone": (erase(0, "erases_at_home_alone", moves=1), "came back", 16),
    "erase: the end is reported before the replica has it": (
        erase(0, "reports_early", failovers=1, shards=1),
        "came back",
        7,
    ),
}


# Of the same rules and troubles as a smaller one.
NIGHTLY = {
    "move and failover: of both",
    "move and failover: of the source, two at once",
    "move and failover: of the target, two at once",
    "move and failover: of the source, crash, 2 operations",
}
# What takes more than half a second of processor time.
SAFE_BUT_SLOW = {
    "move and failover: of the source",
    "move and failover: of the target",
    "move and failover: of the source, message",
    "move and failover: of the source, target without a row",
    "restore: catch up, failover",
}


@pytest.mark.parametrize(("model", "state_count"), slow_ones(SAFE_BUT_SLOW, SAFE))
def test_every_state_keeps_the_promises(model: TransferModel, state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "state_count"), nightly_ones(NIGHTLY, SAFE_AND_LARGE))
def test_every_state_keeps_the_promises_in_a_larger_model(model: TransferModel, state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "promise", "length"), WRONG.values(), ids=WRONG)
def test_search_finds_the_violation_when_a_rule_is_left_out(model: TransferModel, promise: str, length: int) -> None:
    assert_is_violated(model, promise, length)
