"""Whether a reader need read nothing again when a move has changed the token of its row. Pure.

When a tenant comes to a Postgres shard, the rows of `stream_positions` there get lower positions and new tokens, since
either shard may have lost operations of the tenant or of others (architecture, idea 8). The shard notes which token a
row had before, and which one the source's row had when the tenant was fenced there. So a reader can see that nothing
was lost, and goes on. Operations are lost without each of these conditions (`tests/model/move_failover_model.py`):

- it knew the token that the row had before: the target has all that the reader has written there;
- it wrote the carried token itself, and has adopted no row since: at any loss that it has found on one of its shards
  the tenant had its home where the reader looked for it, and was read again;
- it knows the token that the source's row has now: the source has all that the reader has written there, the tenant's
  last operations too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from simplu_worker.shards.types import PositionMerge


def merges_since(token: str, known_tokens: Collection[str], merges: Iterable[PositionMerge]) -> list[PositionMerge]:
    """Return the merges, the last one first, by which a row with one of the *known_tokens* has got *token*.

    Empty if it has got the token otherwise.
    """
    by_token = {one.token: one for one in merges}
    found: list[PositionMerge] = []
    while (merge := by_token.pop(token, None)) is not None:
        found.append(merge)
        token = merge.former_token
        if token in known_tokens:
            return found
    return []
