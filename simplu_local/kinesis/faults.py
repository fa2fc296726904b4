"""The commands of the local Kinesis's control path. Pure.

Beside those of every service (`aws_server.faults`): expire_iterators, trim, force_status.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from simplu_local.aws_server.faults import AdvanceClock, ClearFaults, Fault, SetOptions
from simplu_local.kinesis.errors import KinesisError

# The actions with ProvisionedThroughputExceededException on their page; others are throttled with LimitExceeded.
THROUGHPUT_ACTIONS = frozenset({"GetRecords", "GetShardIterator", "PutRecord", "PutRecords"})


class KinesisFault(Fault, kw_only=True):
    """A fault of the Kinesis API; with *stream_shard_id* only of reads of that stream shard.

    More kinds: `throttle`; `fail` (500 InternalFailure, or *code* and *status*); `empty` (GetRecords returns no records
    and an iterator at the same position); `then` (*then* is done after the answer is made and before it is sent:
    `{"action": "SplitShard", "request": {…}}`, so a page of ListShards is followed by a reshard). Of SubscribeToShard:
    `silent` (accepted, but no event comes), `end` (ends after the first event), `repeat` (each event comes twice).
    """

    kind: Literal["throttle", "fail", "hang", "cut", "delay", "empty", "then", "silent", "end", "repeat"]
    stream_shard_id: str | None = None
    then: dict[str, Any] | None = None

    @property
    def target(self) -> str | None:
        """The stream shard of which reads fail; none: every call of the action fails."""
        return self.stream_shard_id

    def error(self) -> KinesisError | None:
        """Return the error to answer with; none when this fault is of another kind."""
        if self.kind == "throttle":
            is_read_or_write = self.action in THROUGHPUT_ACTIONS
            code = "ProvisionedThroughputExceededException" if is_read_or_write else "LimitExceededException"
            return KinesisError(self.code or code, "throttled on demand", status=self.status or 400)
        if self.kind == "fail":
            return KinesisError(self.code or "InternalFailure", "failed on demand", status=self.status or 500)
        return None


class ExpireIterators(msgspec.Struct, tag_field="do", tag="expire_iterators", forbid_unknown_fields=True):
    """Let every iterator that was issued expire."""


class Trim(msgspec.Struct, tag_field="do", tag="trim", forbid_unknown_fields=True):
    """Drop the oldest records of a stream, or of one stream shard, except the last *keep*.

    With *forget_closed* the closed stream shards are removed too, as after the retention.
    """

    stream: str
    stream_shard_id: str | None = None
    keep: Annotated[int, Meta(ge=0)] = 0
    forget_closed: bool = False


class ForceStatus(msgspec.Struct, tag_field="do", tag="force_status", forbid_unknown_fields=True):
    """Give a stream this status until the next such command; null: its own again."""

    stream: str
    status: Literal["CREATING", "ACTIVE", "UPDATING", "DELETING"] | None


KinesisCommand = KinesisFault | ClearFaults | ExpireIterators | AdvanceClock | Trim | ForceStatus | SetOptions
