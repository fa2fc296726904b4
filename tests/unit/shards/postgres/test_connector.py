"""As what the hosts of a connection string are tried."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.address import places_of
from simplu_worker.shards.postgres.connector import TargetSessionAttrs, target_of


@pytest.mark.parametrize(
    ("query", "hosts", "expected"),
    [
        ("", "a", TargetSessionAttrs.ANY),
        ("", "a,b", TargetSessionAttrs.READ_WRITE),  # of several, one takes the writes
        ("?sslmode=disable", "a,b", TargetSessionAttrs.READ_WRITE),
        ("?target_session_attrs=any", "a,b", TargetSessionAttrs.ANY),
        ("?target_session_attrs=primary", "a", TargetSessionAttrs.PRIMARY),
        ("?target_session_attrs=any&target_session_attrs=standby", "a", TargetSessionAttrs.STANDBY),
    ],
)
def test_target_is_what_the_string_says_or_takes_writes_of_several(
    query: str, hosts: str, expected: TargetSessionAttrs
) -> None:
    url = f"postgresql://u:p@{hosts}/d{query}"

    assert target_of(url, places_of(url)) is expected
