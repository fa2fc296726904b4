"""The types of the feed: events, what became of them, terms, places in a log, states of destinations. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final, NamedTuple, Protocol, TypeAlias

import msgspec

from simplu_worker.operations.tries import WAIT_BASE_S, WAIT_MAX_S, RetryRules
from simplu_worker.vocabulary import FeedBeginning, FeedData, FeedKind, OnRefusal


class Publication(NamedTuple):
    """What the events of a shard have from its publisher, whose token is *sender*.

    A new *incarnation*, which is greater as text (docs/feed.md), begins wherever the shard may have lost commits.
    """

    shard_id: str
    incarnation: str
    sender: str


class FeedTenant(msgspec.Struct, frozen=True):
    """The tenant of an event."""

    tenant_id: str
    business_id: str
    location_id: str
    business_type: str


class EventBounds(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The batches behind *behind*, of a `gap` up to *through*, and the time of that if known."""

    behind: int
    through: int | None = None
    to_time: datetime | None = None


class FeedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A change on a shard, or what became of events sent before.

    *id* is the same when the event is sent again; *position* is `<batch id>-<place in the batch>`. *data* is JSON: None
    if not wanted or gone, empty if too large or unreadable.
    """

    id: str
    kind: FeedKind
    shard_id: str
    time: datetime
    position: str
    incarnation: str
    tenant: FeedTenant | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    other_types: tuple[str, ...] = ()
    request_id: str | None = None
    bounds: EventBounds | None = None
    data: bytes | None = None
    sender: str = ""

    @property
    def subject(self) -> str:
        """What the event is about, and its partition key: `tenant/type/id`, the tenant alone, or the shard."""
        if self.tenant is None:
            return self.shard_id
        if self.resource_type is None:
            return self.tenant.tenant_id
        return f"{self.tenant.tenant_id}/{self.resource_type}/{self.resource_id}"


class Delivered(msgspec.Struct, frozen=True):
    """The destination has the event."""


class RetryLater(msgspec.Struct, frozen=True):
    """The destination cannot take the event now: it is tried again after *after_s*."""

    error: str
    after_s: float | None = None


class Refused(msgspec.Struct, frozen=True):
    """The destination refuses the event: it is tried as often as the terms say, then kept."""

    error: str


class Disabled(msgspec.Struct, frozen=True):
    """The destination must not be asked any more (HTTP 410), until a person begins it again."""

    error: str


Delivery: TypeAlias = Delivered | RetryLater | Refused | Disabled


class Destination(Protocol):
    """Where events go; shards publish to it at the same time."""

    @property
    def max_events(self) -> int:
        """How many events one call of `publish` may have."""

    async def publish(self, events: Sequence[FeedEvent]) -> Sequence[Delivery]:
        """Deliver *events*, no two of one subject; return what became of each, in their order.

        Raises nothing that the destination's trouble may cause.
        """


NAMES_MAX: Final = 100_000  # of one filter
Names: TypeAlias = Annotated[
    frozenset[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1, max_length=NAMES_MAX)
]


class DestinationTerms(msgspec.Struct, frozen=True, rename="camel"):
    """What the feed keeps to for one destination, by its entry in `FEED_FILE`: which events it gets, and how.

    None lets all through, or is the default of its kind; `begin` is one of `FeedBeginning`, or a time.
    """

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,40}$")]
    tenants: Names | None = None
    business_types: Names | None = None
    resource_types: Names | None = None
    kinds: Annotated[frozenset[FeedKind], msgspec.Meta(min_length=1)] | None = None
    data: FeedData | None = None
    begin: str = FeedBeginning.NOW
    tries: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    on_refusal: OnRefusal = OnRefusal.CONTINUE

    @property
    def rules(self) -> RetryRules:
        """When an event is tried again: twice as long each time, after a refusal up to a minute."""
        delays_s = [min(WAIT_BASE_S * 2.0 ** min(number, 9), WAIT_MAX_S) for number in range(self.tries - 1)]
        return RetryRules(delays_s, timedelta(), NOT_NOW_S)


NOT_NOW_S: Final = (0.2, 30.0)  # the shortest and the longest wait for a destination that cannot take an event now
POSITION_MAX: Final = 32_767  # of a row in its batch: behind it is the next batch


class Place(NamedTuple):
    """A row of the log: everything up to it is read, or delivered."""

    batch_id: int
    position: int

    @property
    def before(self) -> Place:
        """The place from which this row is the next one."""
        return Place(self.batch_id, self.position - 1)

    @property
    def label(self) -> str:
        """The place as events show it, never before the first row of a batch."""
        return f"{self.batch_id}-{max(self.position, 0)}"


END: Final = Place(2**63 - 1, POSITION_MAX)


class Arrival(msgspec.Struct, frozen=True, rename="camel"):
    """A tenant that came in *epoch*; what is behind that waits until the feed of *source* has passed its departure."""

    tenant_id: str
    epoch: int
    source: str


class ShardView(msgspec.Struct, frozen=True):
    """A destination on one shard."""

    shard_id: str
    destination: str
    behind_since: datetime | None = None
    is_waiting: bool = False  # for the feed of another shard
    stopped: str | None = None
    error: str | None = None


class DestinationView(msgspec.Struct, frozen=True):
    """A destination over all shards. *error* is that of a shard where it has stopped, or else of any."""

    name: str
    lag_s: float = 0.0
    shard_count: int = 0
    waiting_count: int = 0  # shards that wait for the feed of another one
    stopped_shards: tuple[str, ...] = ()
    error: str | None = None


def destination_views(names: Sequence[str], shards: Iterable[ShardView], now: datetime) -> list[DestinationView]:
    """Return what *shards* have of the destinations *names*, in their order."""
    found: dict[str, list[ShardView]] = {name: [] for name in names}
    for one in shards:
        if one.destination in found:
            found[one.destination].append(one)
    return [_view(name, sorted(ones, key=lambda one: one.shard_id), now) for name, ones in found.items()]


def _view(name: str, shards: Sequence[ShardView], now: datetime) -> DestinationView:
    since = [one.behind_since for one in shards if one.behind_since is not None]
    stopped = [one for one in shards if one.stopped is not None]
    return DestinationView(
        name=name,
        lag_s=max((now - min(since)).total_seconds(), 0.0) if since else 0.0,
        shard_count=len(shards),
        waiting_count=sum(one.is_waiting for one in shards),
        stopped_shards=tuple(one.shard_id for one in stopped),
        error=next((one.error for one in (*stopped, *shards) if one.error is not None), None),
    )
