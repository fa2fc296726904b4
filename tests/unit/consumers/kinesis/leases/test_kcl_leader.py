from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from simplu_worker.consumers.kinesis.leases.kcl_leader import (
    KclState,
    cpu_percent,
    has_moved_metrics,
    is_reporting_wanted,
    leading_owners,
    metrics_row,
    new_leaders,
    outlook_of,
    state_of,
)

LEADER = {"recordVersionNumber": {"S": "v1"}, "ownerName": {"S": "worker-1"}}
MIGRATION = {"cv": {"S": "CLIENT_VERSION_3X"}}
TABLES = {"tm": {"S": "TABLE_MIGRATION_STATUS_PENDING"}}
METRICS = {"lut": {"N": "1790000000"}}
STATE = KclState(
    {"CLIENT_VERSION_3X"},
    {("table", "worker-1"): "v1"},
    {("table", "worker-2"): "1790000000"},
    version_tables={"table"},
)


def test_rows_of_the_lease_table_are_told_apart_by_their_entity_type() -> None:
    rows: list[dict[str, Any]] = [
        {"leaseKey": {"S": "Leader"}, "entityType": {"S": "LEADER"}, **LEADER},
        {"leaseKey": {"S": "Migration3.0"}, "entityType": {"S": "CLIENT_VERSION_MIGRATION"}, **MIGRATION},
        {"leaseKey": {"S": "worker-2"}, "entityType": {"S": "WORKER_METRIC_STATS"}, **METRICS},
        {"leaseKey": {"S": "TableMigration3.5"}, "entityType": {"S": "TABLE_MIGRATION"}, **TABLES},
        {"leaseKey": {"S": "Leader"}, "leaseCounter": {"N": "1"}, "checkpoint": {"S": "LATEST"}, **LEADER},
    ]

    assert state_of([("table", rows)]) == replace(STATE, table_states={"TABLE_MIGRATION_STATUS_PENDING"})


def test_rows_of_the_other_tables_are_told_apart_by_their_keys() -> None:
    rows: list[dict[str, Any]] = [
        {"key": {"S": "Leader"}, **LEADER},
        {"key": {"S": "Migration3.0"}, **MIGRATION},
        {"key": {"S": "123456789012:stream:1"}, **MIGRATION},
        {"wid": {"S": "worker-2"}, **METRICS},
    ]

    assert state_of([("table", rows)]) == STATE


RUNS, WAITS = "assigns the leases as soon as it runs", "does not begin to assign the leases while a worker without"


@pytest.mark.parametrize(
    ("versions", "is_leading", "is_reported_to", "outlook"),
    [
        (set(), False, False, None),
        ({""}, False, False, None),
        ({"CLIENT_VERSION_INIT"}, False, False, None),
        ({"CLIENT_VERSION_2X"}, False, False, None),
        ({"CLIENT_VERSION_UPGRADE_FROM_2X"}, False, True, WAITS),
        ({"CLIENT_VERSION_3X"}, True, True, RUNS),
        ({"CLIENT_VERSION_3X_WITH_ROLLBACK"}, True, True, RUNS),
        ({"CLIENT_VERSION_2X", "CLIENT_VERSION_3X"}, True, True, RUNS),
    ],
)
def test_mode_tells_whether_the_kcl_assigns_leases_and_reads_metrics(
    versions: set[str], outlook: str | None, *, is_leading: bool, is_reported_to: bool
) -> None:
    state = replace(STATE, client_versions=versions)
    assert (state.is_version_leading, is_reporting_wanted(state)) == (is_leading, is_reported_to)
    assert bool(leading_owners(state, [])) == is_leading
    told = outlook_of(state)
    assert told is None if outlook is None else outlook in (told or "")


BEFORE_BEAT = replace(STATE, leader_beats={("table", "worker-1"): "v0"})
BEFORE_METRICS = replace(STATE, worker_beats={("table", "worker-2"): "1789999970"})


@pytest.mark.parametrize(
    ("state", "earlier", "expected"),
    [
        pytest.param(STATE, [], ["worker-1"], id="first look: a leader"),
        pytest.param(replace(STATE, leader_beats={}), [], [], id="first look: workers of an application that ended"),
        pytest.param(STATE, [STATE], ["worker-1"], id="second look: a beat may be late"),
        pytest.param(replace(STATE, leader_beats={}), [BEFORE_METRICS], ["worker-2"], id="second look: a live worker"),
        pytest.param(STATE, [STATE, STATE], [], id="nothing has moved"),
        pytest.param(STATE, [BEFORE_BEAT, BEFORE_BEAT], ["worker-1"], id="the leader lives"),
        pytest.param(STATE, [STATE, BEFORE_BEAT], ["worker-1"], id="the leader has missed one look"),
        pytest.param(STATE, [STATE, BEFORE_METRICS], ["worker-2"], id="a worker lives, its leader does not"),
        pytest.param(STATE, [KclState(), KclState()], ["worker-1"], id="a leader has come"),
        pytest.param(
            replace(STATE, leader_beats={("other", "worker-1"): "v1"}),
            [STATE, STATE],
            ["worker-1"],
            id="the lock has moved",
        ),
        pytest.param(replace(STATE, leader_beats={}, worker_beats={}), [STATE, STATE], [], id="all is gone"),
    ],
)
def test_leader_lives_when_something_has_moved_in_the_last_two_looks(
    state: KclState, earlier: list[KclState], expected: list[str]
) -> None:
    assert leading_owners(state, earlier) == expected


@pytest.mark.parametrize(
    ("state", "before", "expected"),
    [
        (STATE, None, []),  # nothing is known before the first look
        (STATE, STATE, []),
        (STATE, BEFORE_BEAT, []),  # whether a known leader lives is for the looks
        (STATE, KclState(), ["worker-1"]),
        (replace(STATE, client_versions=set()), KclState(), []),
    ],
)
def test_leader_is_new_when_its_lock_was_not_there_at_the_last_look(
    state: KclState, before: KclState | None, expected: list[str]
) -> None:
    assert new_leaders(state, before) == expected


def test_lock_without_a_version_is_none() -> None:
    assert state_of([("table", [{"key": {"S": "Leader"}, "ownerName": {"S": "worker-1"}}])]) == KclState()


@pytest.mark.parametrize(
    ("used_s", "passed_s", "expected"), [(2.5, 10.0, 25.0), (12.0, 10.0, 100.0), (1.0, 0.0, 0.0), (0.0, 5.0, 0.0)]
)
def test_share_of_a_core_is_that_between_two_readings(used_s: float, passed_s: float, expected: float) -> None:
    assert cpu_percent((100.0, 1000.0), (100.0 + used_s, 1000.0 + passed_s)) == pytest.approx(expected)


def test_metrics_are_those_of_a_worker_of_the_kcl_3() -> None:
    row = metrics_row("wid", "host:1:me", [float(value) for value in range(12)], at_s=1_790_000_000)

    assert row["wid"] == {"S": "host:1:me"}
    assert (row["entityType"], row["simpluFollower"]) == ({"S": "WORKER_METRIC_STATS"}, {"BOOL": True})
    assert [float(value["N"]) for value in row["sts"]["M"]["C"]["L"]] == [float(value) for value in range(2, 12)]
    assert row["opr"] == {"M": {"C": {"L": [{"N": "80"}]}}}
    assert (row["lut"], row["slu"], row["sup"]) == ({"N": "1790000000"}, {"N": "1790000000"}, {"N": "1"})


def test_metrics_of_a_replica_are_no_sign_of_life_of_the_kcl() -> None:
    row = metrics_row("leaseKey", "host:1:me", [1.0], at_s=1_790_000_000)
    theirs = {name: value for name, value in row.items() if name != "simpluFollower"}

    assert state_of([("table", [row])]) == KclState()
    assert state_of([("table", [theirs])]).worker_beats == {("table", "host:1:me"): "1790000000"}


@pytest.mark.parametrize(
    ("status", "expected"), [("INIT", False), ("DEPLOYED", False), ("PENDING", True), ("COMPLETE", True)]
)
def test_metrics_are_in_the_lease_table_once_they_move(status: str, expected: bool) -> None:  # noqa: FBT001  # a column of the table
    state = {"tm": {"S": f"TABLE_MIGRATION_STATUS_{status}"}}
    rows = [
        {"leaseKey": {"S": "TableMigration3.5"}, "entityType": {"S": "TABLE_MIGRATION"}, **state},
        {"key": {"S": "TableMigration3.5"}, **state},
    ]

    assert [has_moved_metrics(state_of([("table", [row])])) for row in rows] == [expected] * 2
    assert not has_moved_metrics(KclState())
