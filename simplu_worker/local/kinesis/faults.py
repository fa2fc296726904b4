"""What the local Kinesis is told to do wrong, and the other commands of its control path. Does no I/O.

A command is a JSON object whose member `do` names it: fault, clear_faults, expire_iterators, advance_clock, trim,
force_status, set. Its other members are those of the class.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from simplu_worker.local.kinesis.errors import KinesisError

# The actions whose page names ProvisionedThroughputExceededException; the others are throttled with LimitExceeded.
OF_THROUGHPUT = frozenset({"GetRecords", "GetShardIterator", "PutRecord", "PutRecords"})


class KinesisFault(msgspec.Struct, tag_field="do", tag="fault", forbid_unknown_fields=True, kw_only=True):
    """Let the next *count* calls of *action* go wrong, of *stream_shard_id* only if it is named (reads only).

    Kinds: `throttle`; `fail` (500 InternalFailure, or *code* and *status*); `hang` (no answer until the faults are
    cleared or the client goes); `cut` (the connection is reset); `delay` (the answer comes *delay_ms* later); `empty`
    (GetRecords: no records, and the same place again); `then` (after the answer is made, and before it is sent, *then*
    is done: `{"action": "SplitShard", "request": {…}}`, so a page of ListShards is followed by a reshard).
    With *applied* the action is done first, and then its answer hangs, is cut, is late or is an error.
    """

    action: str
    kind: Literal["throttle", "fail", "hang", "cut", "delay", "empty", "then"]
    count: Annotated[int, Meta(ge=1)] = 1
    stream_shard_id: str | None = None
    applied: bool = False
    delay_ms: int = 0
    code: str | None = None
    status: int | None = None
    then: dict[str, Any] | None = None

    def error(self) -> KinesisError | None:
        """Return the error to answer with; none when this fault is of another kind."""
        if self.kind == "throttle":
            code = (
                "ProvisionedThroughputExceededException" if self.action in OF_THROUGHPUT else "LimitExceededException"
            )
            return KinesisError(self.code or code, "throttled on demand", status=self.status or 400)
        if self.kind == "fail":
            return KinesisError(self.code or "InternalFailure", "failed on demand", status=self.status or 500)
        return None


class ClearFaults(msgspec.Struct, tag_field="do", tag="clear_faults", forbid_unknown_fields=True):
    """Forget the faults that are left, and let what hangs go on."""


class ExpireIterators(msgspec.Struct, tag_field="do", tag="expire_iterators", forbid_unknown_fields=True):
    """Let every iterator that was given out expire."""


class AdvanceClock(msgspec.Struct, tag_field="do", tag="advance_clock", forbid_unknown_fields=True):
    """Put the server's clock forward."""

    ms: Annotated[int, Meta(ge=0)]


class Trim(msgspec.Struct, tag_field="do", tag="trim", forbid_unknown_fields=True):
    """Drop the oldest records of a stream, or of one stream shard, but for the last *keep*.

    With *forget_closed* the closed stream shards go too, as after the retention.
    """

    stream: str
    stream_shard_id: str | None = None
    keep: Annotated[int, Meta(ge=0)] = 0
    forget_closed: bool = False


class ForceStatus(msgspec.Struct, tag_field="do", tag="force_status", forbid_unknown_fields=True):
    """Let a stream have this status whatever happens; null: its own again."""

    stream: str
    status: Literal["CREATING", "ACTIVE", "UPDATING", "DELETING"] | None


class SetOptions(msgspec.Struct, tag_field="do", tag="set", forbid_unknown_fields=True):
    """Change members of `KinesisOptions`."""

    options: dict[str, Any]


KinesisCommand = KinesisFault | ClearFaults | ExpireIterators | AdvanceClock | Trim | ForceStatus | SetOptions


class Faults:
    """The faults that are still to come, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._waiting: list[KinesisFault] = []

    def __repr__(self) -> str:
        return f"Faults({self._waiting})"

    @property
    def waiting(self) -> list[KinesisFault]:
        """What is left; each counts down."""
        return self._waiting

    def add(self, fault: KinesisFault) -> None:
        """Ask for *fault*, behind those of the same action."""
        self._waiting.append(fault)

    def clear(self) -> None:
        """Forget what is left."""
        self._waiting.clear()

    def take(self, action: str, stream_shard_id: str | None) -> KinesisFault | None:
        """Return the fault that this call is to suffer, and count it."""
        for fault in self._waiting:
            if fault.action == action and fault.stream_shard_id in {None, stream_shard_id}:
                fault.count -= 1
                if not fault.count:
                    self._waiting.remove(fault)
                return fault
        return None
