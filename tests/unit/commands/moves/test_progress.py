"""The line about a move while it goes on."""

from __future__ import annotations

import pytest

from simplu_worker.commands.moves.progress import MoveRate, describe_time_left
from simplu_worker.shards.moving.types import MoveStatus, Phase

MIB = 2**20


def test_line_has_rows_bytes_rate_and_the_time_left() -> None:
    """The rate is of the rows that this command has copied; time is left only while rows are copied."""
    rate = MoveRate(100.0)
    lines = [
        rate.describe(status, now)
        for status, now in [
            (MoveStatus(Phase.PREPARE), 100.0),
            (MoveStatus(Phase.COPY, 50_000, 10 * MIB, 100_000), 101.0),  # most of it by an earlier command
            (MoveStatus(Phase.COPY, 60_000, 12 * MIB, 100_000), 103.0),
            (MoveStatus(Phase.VERIFY, 100_100, 20 * MIB, 100_000), 111.0),
        ]
    ]
    assert lines == [
        "prepare: 0 rows, 0.0 MiB, 0 rows/s",
        "copy: 50,000 rows, 10.0 MiB, 50,000 rows/s, about 1 s left",
        "copy: 60,000 rows, 12.0 MiB, 5,000 rows/s, about 8 s left",
        "verify: 100,100 rows, 20.0 MiB, 5,010 rows/s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "about 0 s left"), (119.0, "about 119 s left"), (120.0, "about 2 min left")]
)
def test_time_left(seconds: float, text: str) -> None:
    """In seconds, and from two minutes on in minutes."""
    assert describe_time_left(seconds) == f", {text}"
