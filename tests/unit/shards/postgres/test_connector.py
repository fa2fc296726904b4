"""Which hosts of a connection string are tried, and as what."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.address import Place, places_of
from simplu_worker.shards.postgres.connector import Target, attempts_at, target_of

A, B = Place("a", 5432), Place("b", None)


@pytest.mark.parametrize(
    ("query", "hosts", "expected"),
    [
        ("", "a", Target.ANY),
        ("", "a,b", Target.READ_WRITE),  # of several, one takes the writes
        ("?sslmode=disable", "a,b", Target.READ_WRITE),
        ("?target_session_attrs=any", "a,b", Target.ANY),
        ("?target_session_attrs=primary", "a", Target.PRIMARY),
        ("?target_session_attrs=any&target_session_attrs=prefer-standby", "a", Target.PREFER_STANDBY),
    ],
)
def test_target_is_what_the_string_says_or_takes_writes_of_several(query: str, hosts: str, expected: Target) -> None:
    """The last one counts, as for asyncpg."""
    url = f"postgresql://u:p@{hosts}/d{query}"

    assert target_of(url, places_of(url)) is expected


def test_target_is_refused_when_it_is_none() -> None:
    """What libpq does not know is no target."""
    with pytest.raises(ValueError, match="bogus"):
        target_of("postgresql://a/d?target_session_attrs=bogus", [A])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target.READ_WRITE, [(A, Target.READ_WRITE), (B, Target.READ_WRITE)]),
        (Target.PREFER_STANDBY, [(A, Target.STANDBY), (B, Target.STANDBY), (A, Target.ANY), (B, Target.ANY)]),
    ],
)
def test_hosts_are_tried_in_turn(target: Target, expected: list[tuple[Place, Target]]) -> None:
    """Where a standby is only preferred, all are asked again as anything."""
    assert attempts_at([A, B], target) == expected
