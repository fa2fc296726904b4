"""Restores of one tenant, searched: the agreed way breaks no promise, and each deviation is found.

The numbers of states are exact, as in `test_models.py`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest
from model import restore_model
from model.restore_model import Mode, RestoreModel, Rules
from model.search import Model, search
from model.violations import assert_is_violated
from support.slow import slow_ones

AnyModel: TypeAlias = Model[Any]


def restore(mode: Mode, count: int = 3, rules: Rules = restore_model.AGREED, **budget: int) -> RestoreModel:
    return RestoreModel(count, mode, restore_model.Budget(**budget), rules)


def catch_up(count: int = 3, rules: Rules = restore_model.AGREED, **budget: int) -> RestoreModel:
    return restore("catch up", count, rules, **budget)


def as_of_backup(count: int = 3, rules: Rules = restore_model.AGREED, **budget: int) -> RestoreModel:
    return restore("as of backup", count, rules, **budget)


SAFE: dict[str, tuple[AnyModel, int]] = {
    "restore: catch up": (catch_up(expiries=1), 1_835),
    "restore: as of the backup": (as_of_backup(expiries=1), 1_411),
    "restore: catch up, crash of the reader": (catch_up(crashes=1), 4_336),
    "restore: as of the backup, crash of the reader": (as_of_backup(crashes=1), 3_436),
    "restore: catch up, failover": (catch_up(failovers=1), 36_164),
    "restore: as of the backup, failover": (as_of_backup(failovers=1), 22_082),
    "restore: catch up, two restorers": (catch_up(2, restorers=2, expiries=1), 77_567),
    "restore: as of the backup, two restorers": (as_of_backup(2, restorers=2, expiries=1), 36_727),
}

SAFE_AND_LARGE: dict[str, tuple[AnyModel, int]] = {
    "restore: catch up, failover and crash": (catch_up(crashes=1, failovers=1), 162_154),
    "restore: as of the backup, failover and crash": (as_of_backup(crashes=1, failovers=1), 122_338),
    "restore: catch up, two restorers, failover": (catch_up(1, restorers=2, failovers=1), 353_362),
}

WRONG: dict[str, tuple[AnyModel, str, int]] = {
    "restore: the live log is kept to catch up": (catch_up(1, Rules(keeps_live_log=True)), "lost", 16),
    "restore: the log of all tenants becomes the backup's": (
        catch_up(2, Rules(replaces_log_of_shard=True)),
        "twice",
        15,
    ),
    "restore: the position stays": (catch_up(1, Rules(lowers_nothing=True)), "lost", 13),
    "restore: the lower position keeps its token": (catch_up(1, Rules(keeps_token=True)), "lost", 13),
    "restore: the position is lowered after the release": (catch_up(3, Rules(lowers_apart=True)), "order", 12),
    "restore: the log is the backup's as of the backup": (
        as_of_backup(1, Rules(takes_log_of_backup=True), crashes=1),
        "came back",
        14,
    ),
    "restore: the log is emptied as of the backup": (as_of_backup(1, Rules(empties_log=True), crashes=1), "twice", 13),
    "restore: the log lacks what only the backup has": (
        as_of_backup(1, Rules(leaves_out_log_of_backup=True), failovers=1),
        "twice",
        15,
    ),
    "restore: no fence": (catch_up(1, Rules(has_no_fence=True)), "lost", 6),
    "restore: the fence does not wait for batches": (as_of_backup(1, Rules(fences_beside_batches=True)), "export", 12),
    "restore: a worker ends the fence while rows are replaced": (
        catch_up(1, Rules(ends_every_fence=True), expiries=1),
        "lost",
        7,
    ),
    "restore: writes do not check the token": (
        as_of_backup(1, Rules(writes_without_token=True), restorers=2),
        "export",
        14,
    ),
    "restore: runs differ by the token alone": (
        catch_up(1, Rules(counts_runs=True), restorers=2, failovers=1),
        "export",
        15,
    ),
    "restore: a restorer trusts its memory of the copy": (
        catch_up(1, Rules(trusts_own_progress=True), failovers=1),
        "lost",
        10,
    ),
    "restore: what is half replaced is exported again": (
        as_of_backup(1, Rules(exports_again=True), restorers=2),
        "export",
        15,
    ),
    "restore: the end is reported before the replica has it": (
        as_of_backup(1, Rules(reports_early=True), failovers=1),
        "came back",
        13,
    ),
}


# What takes more than half a second of processor time.
SAFE_BUT_SLOW = {
    "restore: catch up, two restorers",
    "restore: as of the backup, two restorers",
    "restore: catch up, failover",
}


@pytest.mark.parametrize(("model", "state_count"), slow_ones(SAFE_BUT_SLOW, SAFE))
def test_every_state_keeps_the_promises(model: AnyModel, state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "state_count"), SAFE_AND_LARGE.values(), ids=SAFE_AND_LARGE)
def test_every_state_keeps_the_promises_in_a_larger_model(model: AnyModel, state_count: int) -> None:
    assert state_count == search(model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "promise", "length"), WRONG.values(), ids=WRONG)
def test_search_finds_the_violation_when_a_rule_is_left_out(model: AnyModel, promise: str, length: int) -> None:
    assert_is_violated(model, promise, length)
