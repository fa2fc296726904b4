"""The JSON Schemas of the feed: of its events, and of `FEED_FILE` (docs/feed.md). Pure.

They are made from the types that encode events and decode the file.
"""

from __future__ import annotations

from typing import Final

from simplu_worker.feed.cloud_events import TYPE_PREFIX, BoundsMembers, CloudEventMembers, Notification
from simplu_worker.feed.feed_file import DESTINATIONS_MAX, DestinationMembers
from simplu_worker.status.routes.message_schemas import Schema, document, members_of, required, when
from simplu_worker.vocabulary import DestinationKind, FeedBeginning, FeedKind

TEXT: Final[Schema] = {"type": "string", "minLength": 1}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
RESOURCE_TYPES: Final = [TYPE_PREFIX + kind for kind in FeedKind if kind.startswith("resource.")]
TENANT_TYPES: Final = [TYPE_PREFIX + kind for kind in FeedKind if kind.startswith("tenant.")]
OF_TENANT: Final = ("simplutenant", "simplubusiness", "simplulocation", "simplubusinesstype")
OF_RESOURCE: Final = (*OF_TENANT, "simpluresourcetype", "simpluresourceid")
A_TIME: Final = r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:?\d{2})$"


def _event() -> Schema:
    """Return the schema of an event. A member is absent, never null; only `data` may be anything."""
    members = members_of(CloudEventMembers)
    for name in members["properties"]:
        members["properties"][name] = TEXT
    members["properties"] |= {
        "specversion": {"const": "1.0"},
        "type": {"enum": [TYPE_PREFIX + kind for kind in FeedKind]},
        "time": TIME,
        "simpludata": {"enum": ["current", "omitted"]},
        "datacontenttype": {"const": "application/json"},
        "data": {},
    }
    return members


def _destination() -> Schema:
    beginnings = "|".join(FeedBeginning)
    return members_of(
        DestinationMembers,
        begin={"anyOf": [{"pattern": f"^({beginnings})$"}, {"pattern": A_TIME}]},
    ) | {
        "additionalProperties": False,
        "allOf": [
            {
                "oneOf": [
                    required(tenants={"type": "array"}),
                    required(allTenants={"const": True}),
                ]
            },
            when("kind", [DestinationKind.WEBHOOK], required(secretFiles={"type": "array"}))
            | {"else": {"properties": {"secretFiles": {"type": "null"}}}},
        ],
    }


FEED_SCHEMAS: Final[dict[str, Schema]] = {
    "feed-event": document(
        "Event of the feed",
        "A change, or what became of events sent before: CloudEvents 1.0. The worker writes it.",
        _event(),
        when("type", RESOURCE_TYPES, required(**dict.fromkeys(OF_RESOURCE, TEXT))),
        when("type", TENANT_TYPES, required(**dict.fromkeys(OF_TENANT, TEXT))),
        when(
            "type", [TYPE_PREFIX + FeedKind.GAP], required(data=members_of(BoundsMembers, fromTime=TIME, toTime=TIME))
        ),
        when(
            "type",
            [TYPE_PREFIX + FeedKind.UNDONE],
            {"anyOf": [required(simpluundoes=TEXT), required(data=members_of(BoundsMembers))]},
        ),
        {"if": required(simpludata={"const": "current"}), "then": {"required": ["data"]}},
    ),
    "feed-notification": document(
        "Notification",
        "The body of POST /api/notifications, as the TypeScript worker sent it.",
        members_of(
            Notification,
            type={"enum": ["resource_created", "resource_updated", "resource_patched", "resource_deleted"]},
        )
        | {"additionalProperties": False},
    ),
    "feed-file": document(
        "FEED_FILE",
        "The destinations of the feed.",
        {
            "type": "object",
            "properties": {
                "destinations": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": DESTINATIONS_MAX,
                    "items": _destination(),
                }
            },
            "required": ["destinations"],
            "additionalProperties": False,
        },
    ),
}
