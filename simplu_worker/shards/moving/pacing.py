"""How fast a tenant is copied: so that both shards answer others about as soon as without the move. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

ROWS_FIRST: Final = 10_000
ROWS_MIN: Final = 200
ROWS_MAX: Final = 100_000
CHUNK_S: Final = 0.5  # a chunk is a transaction on the target
GROWTH: Final = 4
SLOW_RATIO: Final = 4.0  # an answer that takes so many times the usual time shows that a shard is busy
SLOW_MIN_S: Final = 0.05
REST_MAX_S: Final = 2.0


class CopyPace(msgspec.Struct, frozen=True):
    """The size of the next chunk, and how long to rest before it, in seconds."""

    row_count: int = ROWS_FIRST
    rest_s: float = 0.0
    usual_answer_s: float = 0.0  # of the smallest statement on either shard, the best so far


def next_pace(
    pace: CopyPace, *, row_count: int, took_s: float, answer_s: float, max_rows_per_s: float | None = None
) -> CopyPace:
    """Return the pace after a chunk of *row_count* rows that took *took_s*.

    *answer_s* is the time that the slower of the two shards took for a statement that does next to nothing. While it is
    far above the usual, chunks get smaller and rests longer.
    """
    usual_s = min(pace.usual_answer_s or answer_s, answer_s)
    is_slow = answer_s > max(SLOW_MIN_S, SLOW_RATIO * usual_s)
    if is_slow:
        size, rest_s = pace.row_count // 2, min(REST_MAX_S, max(pace.rest_s * 2, took_s))
    else:
        fitting = round(min(ROWS_MAX, row_count * CHUNK_S / took_s)) if took_s > 0 and row_count else ROWS_MAX
        size, rest_s = min(pace.row_count * GROWTH, fitting), 0.0
    if max_rows_per_s is not None:
        size = min(size, max(1, round(max_rows_per_s * CHUNK_S)))
        rest_s = max(rest_s, row_count / max_rows_per_s - took_s)
    least = ROWS_MIN if max_rows_per_s is None else min(ROWS_MIN, size)
    return CopyPace(max(least, min(size, ROWS_MAX)), rest_s, usual_s)
