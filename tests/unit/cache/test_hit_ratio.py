"""The share of reads of the cache that found a key."""

from __future__ import annotations

import pytest

from simplu_worker.cache.cache import hit_ratio


@pytest.mark.parametrize(
    ("hits", "misses", "expected"),
    [
        (3, 1, 0.75),
        (5, 0, 1.0),
        (0, 5, 0.0),
        (1, 2, 0.3333),
        (0, 0, None),
        (None, 5, None),
        (5, None, None),
        ("text", 5, None),
        (5, "1", None),
    ],
)
def test_hit_ratio_is_unknown_only_without_reads(hits: object, misses: object, expected: float | None) -> None:
    assert hit_ratio(hits, misses) == expected
