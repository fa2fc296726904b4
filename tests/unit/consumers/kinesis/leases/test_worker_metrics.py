from __future__ import annotations

import pytest

from simplu_worker.consumers.kinesis.leases.kcl_leader import (
    KclState,
    has_moved_metrics,
    is_reporting_wanted,
    metrics_row,
    state_of,
)


def test_metrics_are_those_of_a_worker_of_the_kcl_3() -> None:
    row = metrics_row("wid", "host:1:me", [float(value) for value in range(12)], at_s=1_790_000_000)

    assert row["wid"] == {"S": "host:1:me"}
    assert row["entityType"] == {"S": "WORKER_METRIC_STATS"}
    assert [float(value["N"]) for value in row["sts"]["M"]["C"]["L"]] == [float(value) for value in range(2, 12)]
    assert row["opr"] == {"M": {"C": {"L": [{"N": "80"}]}}}
    assert (row["lut"], row["slu"], row["sup"]) == ({"N": "1790000000"}, {"N": "1790000000"}, {"N": "1"})


def test_metrics_of_a_replica_are_no_sign_of_life_of_the_kcl() -> None:
    row = metrics_row("leaseKey", "host:1:me", [1.0], at_s=1_790_000_000)
    theirs = {name: value for name, value in row.items() if name != "simpluFollower"}

    assert state_of([("table", [row])]) == KclState()
    assert state_of([("table", [theirs])]).worker_beats == {("table", "host:1:me"): "1790000000"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("CLIENT_VERSION_INIT", False),
        ("CLIENT_VERSION_2X", False),
        ("CLIENT_VERSION_UPGRADE_FROM_2X", True),
        ("CLIENT_VERSION_3X_WITH_ROLLBACK", True),
        ("CLIENT_VERSION_3X", True),
    ],
)
def test_metrics_are_written_while_the_application_reads_them(version: str, expected: bool) -> None:  # noqa: FBT001  # a column of the table
    assert is_reporting_wanted(KclState(frozenset({version}))) == expected
    assert not is_reporting_wanted(KclState())


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
