"""How fast a tenant is copied and compared, and when it has caught up: so that both shards answer others. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

ROWS_FIRST: Final = 200  # they may be of some MB each
ROWS_MIN: Final = 200  # unless so many have taken too long
ROWS_MAX: Final = 100_000
CHUNK_S: Final = 0.1  # a chunk is a transaction on the target
REST_SHARE: Final = 0.5  # of the time that a chunk took: others find both shards at rest then
GROWTH: Final = 4
SHRINKING: Final = 10  # after a chunk that ran into its timeout
SLOW_RATIO: Final = 4.0  # an answer that takes so many times the usual time shows that a shard is busy
SLOW_MIN_S: Final = 0.05
REST_MAX_S: Final = 2.0
SMALL_ROUND: Final = 100  # rows: a round of so many or fewer leaves nothing to win by another one
SHORT_ROUND_SHARE: Final = 0.25  # of the longest pause: a round that takes no longer is short


class ChunkPace(msgspec.Struct, frozen=True):
    """The size of the next chunk, and how long to rest before it, in seconds; *most* is the largest size for now.

    A chunk is to take *chunk_s*, and *rest_share* of the time that it took is a rest.
    """

    row_count: int = ROWS_FIRST
    rest_s: float = 0.0
    usual_answer_s: float = 0.0  # of the smallest statement on either shard, the best so far
    most: int = ROWS_MAX
    chunk_s: float = CHUNK_S
    rest_share: float = REST_SHARE


def smaller_pace(pace: ChunkPace) -> ChunkPace | None:
    """Return the pace after a chunk that ran into its timeout; None if it had one row."""
    size = min(pace.row_count, pace.most) // SHRINKING
    if min(pace.row_count, pace.most) == 1:
        return None
    return msgspec.structs.replace(pace, row_count=max(1, size), most=max(1, size))


def next_pace(
    pace: ChunkPace, *, row_count: int, took_s: float, answer_s: float, max_rows_per_s: float | None = None
) -> ChunkPace:
    """Return the pace after a chunk of *row_count* rows that took *took_s*.

    *answer_s* is the time that the slower of the two shards took for a statement that does next to nothing. While it is
    far above the usual, chunks get smaller and rests longer.
    """
    usual_s = min(pace.usual_answer_s or answer_s, answer_s)
    most = pace.most if took_s > pace.chunk_s else min(ROWS_MAX, pace.most * GROWTH)
    is_slow = answer_s > max(SLOW_MIN_S, SLOW_RATIO * usual_s)
    if is_slow:
        size, rest_s = pace.row_count // 2, max(pace.rest_s * 2, took_s)
    else:
        fitting = round(min(ROWS_MAX, row_count * pace.chunk_s / took_s)) if took_s > 0 and row_count else ROWS_MAX
        size, rest_s = min(pace.row_count * GROWTH, fitting), pace.rest_share * took_s
    rest_s = min(REST_MAX_S, rest_s)
    if max_rows_per_s is not None:
        size = min(size, max(1, round(max_rows_per_s * pace.chunk_s)))
        rest_s = max(rest_s, row_count / max_rows_per_s - took_s)
    least = ROWS_MIN if max_rows_per_s is None else max(1, min(ROWS_MIN, size))
    return msgspec.structs.replace(
        pace, row_count=min(most, max(least, size)), rest_s=rest_s, usual_answer_s=usual_s, most=most
    )


def is_last_round(row_count: int, took_s: float, max_pause_s: float) -> bool:
    """Return whether a tenant can be fenced after a round of the catch-up of *row_count* rows that took *took_s*.

    A small round that took longer than the pause may met a moment in which a shard was slow: the next one shows whether
    that is over.
    """
    return took_s <= max_pause_s * SHORT_ROUND_SHARE or (row_count <= SMALL_ROUND and took_s <= max_pause_s)
