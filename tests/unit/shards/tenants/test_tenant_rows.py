"""How tenants to make are cut into transactions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.tenants.provisioning import batches_of
from simplu_worker.shards.types import ProvisionRequest

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def wanted(names: str) -> list[ProvisionRequest]:
    return [ProvisionRequest("b", name, "gym", AT) for name in names]


@pytest.mark.parametrize(
    ("names", "size", "batches"),
    [
        ("", 3, []),
        ("abc", 3, [[0, 1, 2]]),
        ("abcd", 3, [[0, 1, 2], [3]]),
        ("aba", 3, [[0, 1], [2]]),
        ("aaa", 3, [[0], [1], [2]]),
        ("aabcd", 3, [[0, 2, 3], [1, 4]]),
    ],
)
def test_batches_have_no_tenant_twice(names: str, size: int, batches: list[list[int]]) -> None:
    assert list(batches_of(wanted(names), size)) == batches


@given(st.text("abcdef", max_size=30), st.integers(1, 5))
def test_batches_have_every_request_once_and_in_order(names: str, size: int) -> None:
    batches = list(batches_of(wanted(names), size))

    assert sorted(place for batch in batches for place in batch) == list(range(len(names)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({names[place] for place in batch}) == len(batch)
    for name in set(names):
        places = [place for batch in batches for place in batch if names[place] == name]
        assert places == sorted(places)
