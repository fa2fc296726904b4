from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from support.postgres.probes import WELL

from simplu_worker.shards.health.assessment import (
    VERSION_MIN,
    Health,
    ShardObservation,
    ShardProbe,
    assess,
    health_view,
    role_of,
    unfit_reason,
)
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.vocabulary import ShardProblem, ShardState


def with_(**members: Any) -> ShardProbe:
    return msgspec.structs.replace(WELL, **members)


@pytest.mark.parametrize(
    ("probe", "expected", "state", "takes_operations"),
    [
        (WELL, [], ShardState.HEALTHY, True),
        (with_(schema_version=None, tenant_count=None), [], ShardState.HEALTHY, True),
        (with_(connections_used=None, connections_max=None, standby_count=None), [], ShardState.HEALTHY, True),
        (with_(is_read_only=True), [ShardProblem.READ_ONLY], ShardState.DEGRADED, False),
        (with_(trouble="DiskFullError (53100)"), [ShardProblem.FAILING], ShardState.DEGRADED, False),
        (with_(is_read_only=True, is_standby=True, lag_s=2.0), [ShardProblem.READ_ONLY], ShardState.DEGRADED, False),
        (
            with_(is_read_only=True, is_standby=True, lag_s=31.0),
            [ShardProblem.READ_ONLY, ShardProblem.LAGGING],
            ShardState.DEGRADED,
            False,
        ),
        (with_(lag_s=30.0, standby_count=1), [], ShardState.HEALTHY, True),
        (with_(lag_s=30.1, standby_count=1), [ShardProblem.LAGGING], ShardState.DEGRADED, True),
        (with_(response_s=1.0), [], ShardState.HEALTHY, True),
        (with_(response_s=1.1), [ShardProblem.SLOW], ShardState.DEGRADED, True),
        (with_(is_cut_short=True), [ShardProblem.SLOW], ShardState.DEGRADED, True),
        (with_(connections_used=90, connections_max=100), [], ShardState.HEALTHY, True),
        (with_(connections_used=91, connections_max=100), [ShardProblem.CONNECTIONS], ShardState.DEGRADED, True),
        (with_(connections_used=1, connections_max=0), [ShardProblem.CONNECTIONS], ShardState.DEGRADED, True),
        (with_(gaps=["shardId-0"]), [ShardProblem.GAP], ShardState.DEGRADED, True),
        (with_(skew_s=-60.0), [], ShardState.HEALTHY, True),
        (with_(skew_s=60.1), [ShardProblem.CLOCK], ShardState.DEGRADED, True),
        (with_(version_number=130009), [ShardProblem.REFUSED], ShardState.LOST, False),
        (
            with_(refusal="another program's tables", schema_version=None),
            [ShardProblem.REFUSED],
            ShardState.LOST,
            False,
        ),
    ],
)
def test_shard_is_judged_by_what_it_says_of_itself(
    probe: ShardProbe, expected: list[ShardProblem], state: ShardState, *, takes_operations: bool
) -> None:
    health = assess(ShardObservation(probe=probe))
    assert [finding.problem for finding in health.findings] == expected
    assert (health.state, health.takes_operations) == (state, takes_operations)


def listed(business_count: int | None = None, business_max: int | None = None, **more: Any) -> ShardAddress:
    return ShardAddress("s", "postgresql://h/d", business_count=business_count, business_max=business_max, **more)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (listed(), []),
        (listed(business_count=5), []),
        (listed(business_max=5), []),
        (listed(business_count=0, business_max=1), []),
        (listed(business_count=80, business_max=100), []),
        (listed(business_count=81, business_max=100), [ShardProblem.USAGE]),
        (listed(business_count=0, business_max=0), [ShardProblem.USAGE]),
        (listed(is_active=False), [ShardProblem.INACTIVE]),
        (listed(9, 9, is_active=False), [ShardProblem.INACTIVE, ShardProblem.USAGE]),
    ],
)
def test_shard_is_judged_by_what_citrus_says(usage: ShardAddress, expected: list[ShardProblem]) -> None:
    health = assess(ShardObservation(probe=WELL, listed=usage))
    assert [finding.problem for finding in health.findings] == expected
    assert health.takes_operations


def test_gap_names_its_remedy_and_the_first_thing_to_do() -> None:
    (finding,) = assess(ShardObservation(probe=with_(gaps=["shardId-0", "shardId-1"]))).findings
    raised, accepted = (finding.detail.index(part) for part in ("raise the stream's retention", "accept-gap"))
    assert ("2 stream shards" in finding.detail, raised < accepted) == (True, True)


def test_shard_without_an_answer_is_lost_whatever_it_said_before() -> None:
    health = assess(ShardObservation(probe=with_(is_read_only=True), error="TimeoutError"))
    assert (health.state, health.takes_operations) == (ShardState.LOST, False)
    assert [finding.detail for finding in health.findings] == ["TimeoutError"]


@pytest.mark.parametrize(("is_refusal", "expected"), [(True, ShardProblem.REFUSED), (False, ShardProblem.NO_ANSWER)])
def test_shard_without_an_answer_was_refused_or_is_silent(*, is_refusal: bool, expected: ShardProblem) -> None:
    health = assess(ShardObservation(error="another program's tables", is_refusal=is_refusal))
    assert health.problems == {expected}


def test_shard_that_nobody_looked_at_is_unknown() -> None:
    health = assess(ShardObservation(listed=listed(1, 10)))
    assert (health.state, health.takes_operations, Health().state) == (ShardState.UNKNOWN, None, ShardState.UNKNOWN)


def test_unfit_names_what_was_expected_and_what_came() -> None:
    assert unfit_reason(WELL) is None
    assert unfit_reason(with_(version_number=130001, server_version="13.1")) == (
        "expected PostgreSQL 14 or newer, got 13.1; upgrade it"
    )


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        (with_(version_number=VERSION_MIN), []),
        (with_(refusal="it is of another fleet"), ["it is of another fleet"]),
        (with_(connections_used=None, connections_max=100), []),
        (with_(connections_used=100, connections_max=None), []),
        (with_(lag_s=31.0, standby_count=1), ["its standby is 31 s behind"]),
    ],
)
def test_findings_tell_what_the_shard_told(probe: ShardProbe, expected: list[str]) -> None:
    assert [one.detail for one in assess(ShardObservation(probe=probe)).findings] == expected


def test_findings_name_the_role_of_a_server_that_cannot_be_written_to() -> None:
    one, other = (
        [found.detail for found in assess(ShardObservation(probe=with_(is_read_only=True, **more))).findings]
        for more in ({"is_standby": True, "lag_s": 31.0}, {})
    )
    assert ("got a standby;" in one[0], one[1], "got a read-only server;" in other[0]) == (
        True,
        "it is 31 s behind",
        True,
    )


def test_health_view_leaves_out_what_is_not_known() -> None:
    assert health_view(Health()) == {"state": "unknown"}
    view = health_view(
        assess(
            ShardObservation(
                probe=with_(is_standby=True, is_read_only=True, lag_s=1.5, is_upgrading=True), listed=listed(9, 10)
            )
        )
    )
    assert view == {
        "state": "degraded",
        "takesOperations": False,
        "problems": ["read_only", "usage"],
        "odd": [
            "expected a server that can be written to, got a standby; let its connection string name the primary",
            "9 businesses in room for 10",
        ],
        "usage": 0.9,
        "role": "standby",
        "responseMs": 1.0,
        "serverVersion": "17.2",
        "schemaVersion": 1,
        "upgrading": True,
        "tenantCount": 3,
        "connectionsUsed": 5,
        "connectionsMax": 97,
        "standbys": 0,
        "replicationLagSeconds": 1.5,
    }


def test_health_view_keeps_old_figures_apart_while_the_shard_is_silent() -> None:
    answered, checked = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
    observation = ShardObservation(
        probe=WELL, error="TimeoutError", listed=listed(1, 4), checked_at=checked, answered_at=answered
    )
    view = health_view(assess(observation))
    last_answer = view.pop("lastAnswer")
    assert view == {
        "state": "lost",
        "takesOperations": False,
        "problems": ["no_answer"],
        "odd": ["TimeoutError"],
        "usage": 0.25,
        "lastCheckAt": "2026-01-02T03:05:00.000+00:00",
    }
    assert (last_answer["at"], last_answer["role"], last_answer["tenantCount"]) == (
        "2026-01-02T03:04:05.678+00:00",
        "primary",
        3,
    )


def test_health_view_rounds_what_it_shows() -> None:
    probe = with_(response_s=0.123456789)
    view = health_view(assess(ShardObservation(probe=probe, listed=listed(1, 3))))

    expected = {"usage": 0.3333, "responseMs": 123.46}
    assert {name: view[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [({}, "primary"), ({"is_read_only": True}, "read-only"), ({"is_read_only": True, "is_standby": True}, "standby")],
)
def test_role_is_that_of_the_server(members: dict[str, bool], expected: str) -> None:
    assert role_of(with_(**members)) == expected
