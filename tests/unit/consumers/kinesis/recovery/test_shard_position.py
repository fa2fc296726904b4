"""Whether a reader has met a Postgres shard before, which decides what the shard may lack and whether that is a gap."""

from __future__ import annotations

import pytest

from simplu_worker.consumers.kinesis.recovery.shard_positions import ShardPosition
from simplu_worker.shards.types import PositionClaim, StreamPosition


@pytest.mark.parametrize(("times", "was_read"), [(1, False), (2, True)])
def test_row_that_is_forgotten_was_read_if_it_was_before_it_was_adopted(times: int, *, was_read: bool) -> None:
    """The first contact stays the first one: else the rows of a fleet that was stopped would look like a gap."""
    position = ShardPosition("shard-1", PositionClaim("stream", "shardId-0"))
    for number in range(times):
        position.adopt(StreamPosition("TRIM_HORIZON", fencing_token=str(number)), None, are_parents_settled=True)
    assert (position.was_read, position.claim.fencing_tokens) == (True, [str(times - 1)])

    position.forget_row()
    assert (position.was_read, position.is_current, position.claim.fencing_tokens) == (was_read, False, [])
