"""The types that cross the line between the feed and its destinations: events, what became of them, terms. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

import msgspec

from simplu_worker.vocabulary import FeedBeginning, FeedData, FeedKind, OnRefusal


class Incarnation(msgspec.Struct, frozen=True):
    """The history of a shard that an event is part of; a new one begins with a promotion or a restore.

    Of two ids the newer one is greater as text: receivers go by that (docs/feed.md), as *bounds* may lack one.
    *bounds* are those of the incarnations that began lately, the newest first, each `<id>:<batch id>`, joined by
    commas. An event of an earlier incarnation is undone, unless it comes again, if its
    batch is behind the bound of any incarnation that is named before its own. So each event tells by itself which
    earlier ones are undone.
    """

    id: str
    bounds: str = ""


class FeedTenant(msgspec.Struct, frozen=True):
    """The tenant of an event."""

    tenant_id: str
    business_id: str
    location_id: str
    business_type: str


class EventBounds(msgspec.Struct, frozen=True):
    """What a shard-wide event, `gap` or `undone`, is about: the batches behind *behind*, up to *through*.

    Without *through* there is no upper bound. The times are those of the batches at the bounds, as far as known.
    """

    behind: int
    through: int | None = None
    from_time: datetime | None = None
    to_time: datetime | None = None


class FeedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A change on a shard, or what became of events sent before.

    *id* stays the same when the event is sent again. *position* is `<batch id>-<place in the batch>`. *reapplies* is
    the id of the undone event of the same change, *undoes* that of the event that an `undone` event takes back; without
    it an `undone` event is about *bounds*. *data* is the row as JSON, as read when the event was published: it may be
    newer than the change; None where it is not wanted, or there is no row any more, empty where no destination takes as
    much, or where it could not be read. *other_types* are other names of its resource type. *replay* has another value
    for each replay that sends the event again.
    """

    id: str
    kind: FeedKind
    shard_id: str
    time: datetime
    position: str
    incarnation: Incarnation
    tenant: FeedTenant | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    other_types: tuple[str, ...] = ()
    request_id: str | None = None
    reapplies: str | None = None
    undoes: str | None = None
    bounds: EventBounds | None = None
    data: bytes | None = None
    replay: int | None = None

    @property
    def subject(self) -> str:
        """What the event is about: `tenant/type/id`, the tenant alone, or the shard. Also the partition key."""
        if self.tenant is None:
            return self.shard_id
        if self.resource_type is None:
            return self.tenant.tenant_id
        return f"{self.tenant.tenant_id}/{self.resource_type}/{self.resource_id}"


class Delivered(msgspec.Struct, frozen=True):
    """The destination has the event."""


class RetryLater(msgspec.Struct, frozen=True):
    """The destination cannot take the event now. It is tried again without an end, after *after_s* if that is set.

    *after_s* is an hour at most.
    """

    error: str
    after_s: float | None = None


class Refused(msgspec.Struct, frozen=True):
    """The destination refuses the event. It is tried as often as the terms say, then kept as a refusal."""

    error: str


class Disabled(msgspec.Struct, frozen=True):
    """The destination must not be asked any more (HTTP 410), until a person begins it again."""

    error: str


Delivery: TypeAlias = Delivered | RetryLater | Refused | Disabled


class Destination(Protocol):
    """Where events go. An async context manager while it lives; shards publish to it at the same time."""

    @property
    def max_events(self) -> int:
        """How many events one call of `publish` may have."""

    async def publish(self, events: Sequence[FeedEvent]) -> Sequence[Delivery]:
        """Deliver *events*; return what became of each, in their order.

        No event is delivered unless the events of its partition key before it in *events* were: behind one that was
        not, the others of its key are `RetryLater`. Raises nothing that the destination's trouble may cause.
        """


class FeedFilter(msgspec.Struct, frozen=True):
    """Which events a destination gets; None lets all through.

    Shard-wide events pass every filter. An `undone` event, and the gap of a tenant, pass that of kinds, but have to
    pass the others, as the events that they are about.
    """

    tenants: frozenset[str] | None = None
    business_types: frozenset[str] | None = None
    resource_types: frozenset[str] | None = None
    kinds: frozenset[FeedKind] | None = None


class DestinationTerms(msgspec.Struct, frozen=True):
    """What the feed of each shard keeps to for one destination, by its entry in `FEED_FILE`."""

    name: str
    filter: FeedFilter = FeedFilter()
    data: FeedData = FeedData.NONE
    begin: FeedBeginning | datetime = FeedBeginning.NOW
    tries: int = 10
    on_refusal: OnRefusal = OnRefusal.CONTINUE
