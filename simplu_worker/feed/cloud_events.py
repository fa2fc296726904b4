"""Events in the form in which receivers get them: CloudEvents 1.0 in JSON (docs/feed.md). Pure.

An event is encoded as one text: a destination that repeats it sends the same bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

import msgspec

from simplu_worker.feed.types import EventBounds, FeedEvent
from simplu_worker.vocabulary import FeedKind

CONTENT_TYPE: Final = "application/cloudevents+json; charset=UTF-8"
TYPE_PREFIX: Final = "simplu."

DataState: TypeAlias = Literal["current", "omitted"]


class CloudEventMembers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The members of an event, in their order."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    partitionkey: str
    simplushard: str
    simpluposition: str
    simpluincarnation: str
    simplutenant: str | None = None
    simplubusiness: str | None = None
    simplulocation: str | None = None
    simplubusinesstype: str | None = None
    simpluresourcetype: str | None = None
    simpluresourceid: str | None = None
    simplurequest: str | None = None
    simpludata: DataState | None = None
    datacontenttype: Literal["application/json"] | None = None
    data: msgspec.Raw | EventBounds | None = None


class Notification(msgspec.Struct, frozen=True, rename="camel"):
    """The body of `POST /api/notifications`, as the TypeScript worker sent it."""

    type: str
    resource_type: str
    business_id: str
    location_id: str
    resource_id: str
    shard_id: str
    data: msgspec.Raw | None
    timestamp: str


# A resource that changed in another way is to be read again, as after an update.
NOTIFICATION_TYPES: Final = {
    FeedKind.RESOURCE_CREATED: "resource_created",
    FeedKind.RESOURCE_UPDATED: "resource_updated",
    FeedKind.RESOURCE_PATCHED: "resource_patched",
    FeedKind.RESOURCE_DELETED: "resource_deleted",
    FeedKind.RESOURCE_CHANGED: "resource_updated",
}

_encode = msgspec.json.Encoder().encode


def encode_event(event: FeedEvent, max_bytes: int) -> bytes | None:
    """Return *event* as JSON of at most *max_bytes*, if need be without its data; None if too large then."""
    encoded = _encode(_members(event, is_whole=event.data != b""))
    if len(encoded) > max_bytes:
        encoded = _encode(_members(event, is_whole=False))
    return encoded if len(encoded) <= max_bytes else None


def _members(event: FeedEvent, *, is_whole: bool) -> CloudEventMembers:
    tenant, subject = event.tenant, event.subject
    data: msgspec.Raw | EventBounds | None = None
    data_state: DataState | None = None
    if event.data is not None:
        data_state = "current" if is_whole else "omitted"
        data = msgspec.Raw(event.data) if is_whole else None
    elif event.bounds is not None:
        data = event.bounds
    return CloudEventMembers(
        specversion="1.0",
        id=event.id,
        source=_source(event.shard_id),
        type=_type(event.kind),
        subject=subject,
        time=event.time,
        partitionkey=subject,
        simplushard=event.shard_id,
        simpluposition=event.position,
        simpluincarnation=event.incarnation,
        simplutenant=None if tenant is None else tenant.tenant_id,
        simplubusiness=None if tenant is None else tenant.business_id,
        simplulocation=None if tenant is None else tenant.location_id,
        simplubusinesstype=None if tenant is None else tenant.business_type,
        simpluresourcetype=event.resource_type,
        simpluresourceid=event.resource_id,
        simplurequest=event.request_id,
        simpludata=data_state,
        datacontenttype=None if data is None else "application/json",
        data=data,
    )


@lru_cache(maxsize=1024)
def _source(shard_id: str) -> str:
    return f"/simplu/shards/{quote(shard_id, safe='')}"


@lru_cache(maxsize=len(FeedKind))
def _type(kind: FeedKind) -> str:
    return TYPE_PREFIX + kind.value


def encode_notification(event: FeedEvent, max_bytes: int) -> bytes | None:
    """Return the body of *event*'s notification, without data that does not fit *max_bytes*; None: it has none."""
    kind, tenant = NOTIFICATION_TYPES.get(event.kind), event.tenant
    if kind is None or tenant is None or event.resource_type is None or event.resource_id is None:
        return None
    members = Notification(
        type=kind,
        resource_type=event.resource_type,
        business_id=tenant.business_id,
        location_id=tenant.location_id,
        resource_id=event.resource_id,
        shard_id=event.shard_id,
        data=msgspec.Raw(event.data) if event.data else None,
        timestamp=f"{event.time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z",
    )
    encoded = _encode(members)
    return encoded if len(encoded) <= max_bytes else _encode(msgspec.structs.replace(members, data=None))
