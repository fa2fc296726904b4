"""Which hosts of a connection string are tried, and as what."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.address import HostPort, places_of
from simplu_worker.shards.postgres.connector import TargetSessionAttrs, connection_attempts, target_of

A, B = HostPort("a", 5432), HostPort("b", None)


@pytest.mark.parametrize(
    ("query", "hosts", "expected"),
    [
        ("", "a", TargetSessionAttrs.ANY),
        ("", "a,b", TargetSessionAttrs.READ_WRITE),  # of several, one takes the writes
        ("?sslmode=disable", "a,b", TargetSessionAttrs.READ_WRITE),
        ("?target_session_attrs=any", "a,b", TargetSessionAttrs.ANY),
        ("?target_session_attrs=primary", "a", TargetSessionAttrs.PRIMARY),
        ("?target_session_attrs=any&target_session_attrs=prefer-standby", "a", TargetSessionAttrs.PREFER_STANDBY),
    ],
)
def test_target_is_what_the_string_says_or_takes_writes_of_several(
    query: str, hosts: str, expected: TargetSessionAttrs
) -> None:
    url = f"postgresql://u:p@{hosts}/d{query}"

    assert target_of(url, places_of(url)) is expected


def test_target_is_refused_when_it_is_none() -> None:
    with pytest.raises(ValueError, match="bogus"):
        target_of("postgresql://a/d?target_session_attrs=bogus", [A])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (TargetSessionAttrs.READ_WRITE, [(A, TargetSessionAttrs.READ_WRITE), (B, TargetSessionAttrs.READ_WRITE)]),
        (
            TargetSessionAttrs.PREFER_STANDBY,
            [
                (A, TargetSessionAttrs.STANDBY),
                (B, TargetSessionAttrs.STANDBY),
                (A, TargetSessionAttrs.ANY),
                (B, TargetSessionAttrs.ANY),
            ],
        ),
    ],
)
def test_hosts_are_tried_in_turn(
    target: TargetSessionAttrs, expected: list[tuple[HostPort, TargetSessionAttrs]]
) -> None:
    assert connection_attempts([A, B], target) == expected
