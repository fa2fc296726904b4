from __future__ import annotations

import base64
import json
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.feed.events import AT, feed_event

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.cloud_events import encode_event, encode_notification
from simplu_worker.feed.feed_file import AllowedHosts, DestinationMembers, parse_feed_file
from simplu_worker.feed.types import EventBounds, FeedEvent
from simplu_worker.status.message_schemas import FEED_SCHEMAS
from simplu_worker.vocabulary import FeedKind

VALIDATORS: Final = {name: Draft202012Validator(schema) for name, schema in FEED_SCHEMAS.items()}
OF_TENANT: Final[dict[str, Any]] = {"resource_type": None, "resource_id": None}
OF_SHARD: Final[dict[str, Any]] = OF_TENANT | {"tenant": None, "request_id": None}
BOUNDS: Final = EventBounds(3, 9, AT)
EVENTS: Final = [
    *(feed_event(kind=kind) for kind in FeedKind if kind.startswith("resource.")),
    *(feed_event(kind=kind, **OF_TENANT) for kind in FeedKind if kind.startswith("tenant.")),
    feed_event(kind=FeedKind.RESET, bounds=EventBounds(3), **OF_SHARD),
    feed_event(kind=FeedKind.GAP, bounds=BOUNDS, **OF_SHARD),
    feed_event(data=b"null"),
    feed_event(data=b'{"a": 1}'),
    feed_event(data=b"1" * 2000),
]


@pytest.mark.parametrize("name", FEED_SCHEMAS)
def test_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(FEED_SCHEMAS[name])


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_events_are_valid_and_have_no_other_members(event: FeedEvent) -> None:
    message = json.loads(encode_event(event, 1500) or b"")
    validator = VALIDATORS["feed-event"]
    validator.validate(message)
    assert message.keys() <= FEED_SCHEMAS["feed-event"]["properties"].keys()
    for member in ("id", "type", "subject", "simpluincarnation", "partitionkey"):
        assert not validator.is_valid({key: value for key, value in message.items() if key != member})
    if event.resource_id is not None:
        assert not validator.is_valid({key: value for key, value in message.items() if key != "simpluresourceid"})


@pytest.mark.parametrize("data", [None, b'{"a": 1}'])
def test_notifications_are_valid(data: bytes | None) -> None:
    VALIDATORS["feed-notification"].validate(json.loads(encode_notification(feed_event(data=data), 1500) or b""))


SECRET: Final = "whsec_" + base64.b64encode(bytes(32)).decode()
SOUND: Final[dict[str, dict[str, Any]]] = {
    "kinesis": {"name": "a", "kind": "kinesis", "target": "stream", "allTenants": True},
    "webhook": {
        "name": "a",
        "kind": "webhook",
        "target": "https://crm.example",
        "tenants": ["t"],
        "secretFiles": ["/s"],
    },
}
VALUES: Final[tuple[Any, ...]] = (
    *(None, 0, 1, 1000, 1001, 1.5, True, False, "", "a", "A", "x" * 41, [], ["a"], [""], ["a"] * 5, [1], {}),
    *(["resource.created"], ["gap", "undone"], "now", "oldest", "current", "none", "stop", "continue", "sqs"),
    *("2026-01-31T09:00:00Z", "2026-01-31T09:00:00+01:00", "2026-01-31", "2026-01-31T09:00:00"),
)
MEMBERS: Final = [field.encode_name for field in msgspec.structs.fields(DestinationMembers)]


def judge(entry: dict[str, Any]) -> None:
    try:
        parse_feed_file(json.dumps({"destinations": [entry]}).encode(), AllowedHosts(), lambda _: SECRET)
        problems: list[str] = []
    except ConfigurationError as exc:
        problems = [problem for problem in exc.problems if "target: " not in problem]
    is_target = isinstance(entry.get("target"), str) and entry["target"]
    if is_target:
        assert VALIDATORS["feed-file"].is_valid({"destinations": [entry]}) == (not problems), problems


@given(
    changes=st.dictionaries(st.sampled_from(MEMBERS), st.sampled_from(VALUES), max_size=4),
    kind=st.sampled_from([*SOUND]),
)
def test_schema_and_decoder_agree(changes: dict[str, Any], kind: str) -> None:
    judge(SOUND[kind] | changes)
