from __future__ import annotations

import pytest

from simplu_worker.consumers.kinesis.recovery.recovery_plan import merges_since
from simplu_worker.shards.types import PositionMerge


def merge(token: str, former: str) -> PositionMerge:
    return PositionMerge(token, former, f"source of {token}", f"carried of {token}")


@pytest.mark.parametrize(
    ("token", "known", "expected"),
    [
        ("c", {"b"}, ["c"]),
        ("c", {"a"}, ["c", "b"]),
        ("c", {"a", "x"}, ["c", "b"]),
        ("b", {"a"}, ["b"]),
        ("c", {"z"}, []),  # nothing that the reader knows
        ("c", {"c"}, []),  # it is the row as the reader left it
        ("d", {"a"}, []),  # another reader has written since
        ("r", {"q"}, []),  # a ring, which no shard makes, ends
        ("c", set(), []),
    ],
)
def test_merges_since(token: str, known: set[str], expected: list[str]) -> None:
    noted = [merge("b", "a"), merge("c", "b"), merge("r", "s"), merge("s", "r")]
    assert [one.token for one in merges_since(token, known, noted)] == expected
