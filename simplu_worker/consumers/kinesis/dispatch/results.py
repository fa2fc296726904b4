"""What a lane and the route lookup return to the dispatcher: closed sets of results. Pure.

The dispatcher deals with a result in the step in which it is returned, without an `await` in between: until then its
operations are nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation
from simplu_worker.consumers.kinesis.holding.unread import Unread
from simplu_worker.dead_letters.letter import DeadLetter
from simplu_worker.vocabulary import HoldReason


class BatchDecided(msgspec.Struct, frozen=True):
    """A batch that its shard took, by outcome; its operations stay in the lane until the next batch is asked for.

    *finished* are applied, or have a dead letter in *letters*. *not_here* are those of tenants that do not live on the
    shard now, by its rows. *failing* failed on the healthy shard, each with the error; *locked* are those of tenants
    with rows that are locked there. Later ones of such tenants in the batch are in *not_here*.
    """

    finished: list[QueuedOperation]
    letters: list[DeadLetter] = []
    not_here: dict[str, list[QueuedOperation]] = {}
    failing: Sequence[tuple[QueuedOperation, str]] = ()
    locked: dict[str, list[QueuedOperation]] = {}


class NoAnswer(msgspec.Struct, frozen=True):
    """The shard takes no operations; *entries* were all of the lane."""

    entries: list[QueuedOperation]
    reason: HoldReason = HoldReason.SHARD_UNAVAILABLE


class RowBehind(msgspec.Struct, frozen=True):
    """The reader's row on the shard is behind: the shard may lack *unread*; *entries* were all of the lane."""

    unread: Unread
    entries: list[QueuedOperation]


class GapFound(msgspec.Struct, frozen=True):
    """The shard lacks records that the stream no longer has; *entries* were all of the lane."""

    entries: list[QueuedOperation]


LaneResult: TypeAlias = BatchDecided | NoAnswer | RowBehind | GapFound


class Waited(msgspec.Struct, frozen=True):
    """A tenant without a route for so long that it is to be held; *shard_id* is the shard that did not answer."""

    tenant_id: str
    entries: list[QueuedOperation]
    reason: HoldReason
    shard_id: str | None


class Found(msgspec.Struct, frozen=True):
    """A tenant with a shard; *entries* were all that waited for it. Its tenant may be held too.

    *has_moved*: another shard has refused them.
    """

    tenant_id: str
    shard_id: str
    entries: Sequence[QueuedOperation]
    has_moved: bool = False


class Unregistered(msgspec.Struct, frozen=True):
    """A held tenant that was not registered at *asked_at*."""

    tenant_id: str
    asked_at: datetime


class Overdue(msgspec.Struct, frozen=True):
    """Operations that have waited for their tenant's registration for too long; they wait until they are settled."""

    tenant_id: str
    entries: list[QueuedOperation]
    letters: list[DeadLetter]


LookupResult: TypeAlias = Found | Unregistered | Overdue
