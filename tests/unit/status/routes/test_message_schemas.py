from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.feed.events import AT as EVENT_AT
from support.feed.events import feed_event
from support.message_schemas import FOLDER, render_files
from support.page_examples import page_examples
from support.requires import ROOT

from simplu_worker.consumers.sqs.control_messages import TYPE_ATTRIBUTE, decode_control
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order
from simplu_worker.dead_letters.letter import NotADeadLetterError, encode_dead_letter, parse_dead_letter
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.types import EventBounds, FeedEvent
from simplu_worker.operations.dead_letter import BadParts, DeadLetter
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.json_record import TIME
from simplu_worker.operations.operation import Origin, RejectedRecord, with_request_id
from simplu_worker.shards.lookups import LoggedOperation, RejectedRequest
from simplu_worker.status.message_schemas import OPENAPI_SCHEMAS, SCHEMAS, describe
from simplu_worker.status.roles import for_viewers
from simplu_worker.status.routes import PLACES, ROUTES, Access, Answer, Route
from simplu_worker.vocabulary import DeadLetterReason, FeedKind, Source

AT: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
OF_STREAM: Final = Origin(Source.KINESIS, "stream", AT, "shardId-0", "49", partition_key="k")
OF_QUEUE: Final = Origin(Source.SQS, "queue", AT, message_id="m-1", group_id="g")
MAX_BYTES: Final = 2_000_000
TENANT: Final = {"businessId": "smile", "locationId": "berlin"}
CONTROL_TYPES: Final = {name: schema["title"] for name, schema in SCHEMAS.items() if schema["title"].isupper()}
VALIDATORS: Final = {name: Draft202012Validator(schema) for name, schema in SCHEMAS.items()}

# A valid message of each kind, with all of its members.
SOUND: Final[Mapping[str, dict[str, Any]]] = {
    "operation": TENANT
    | {"operation": "list", "resourceType": "order", "resourceId": "r", "requestId": "q", "data": {"a": 1}}
    | {"timestamp": "2026-03-01T09:00:00Z", "filters": {"date": "2026-03-01"}, "pagination": {"page": 1, "limit": 9}},
    "order-event": TENANT | {"type": "UPDATE", "orderId": "o", "data": {"a": 1}, "deduplicationId": "d"},
    "shard-creation": TENANT
    | {"messageType": "SHARD_CREATION", "businessType": "gym", "timestamp": "2026-03-01", "shardId": "s"}
    | {"connectionString": "postgresql://db/x"},
    "shard-destruction": TENANT
    | {"messageType": "SHARD_DESTRUCTION", "action": "destroy", "timestamp": "2026-03-01T09:00:00+01:00"},
    "update-resource-id": TENANT
    | {"messageType": "UPDATE_RESOURCE_ID", "resourceType": "order", "oldResourceId": "a", "newResourceId": "b"}
    | {"additionalData": {"a": 1}, "timestamp": "2026-03-01"},
    "admin-account-creation": TENANT
    | {"messageType": "ADMIN_ACCOUNT_CREATION", "businessType": "gym", "adminEmail": "a@b.example"}
    | {"adminUserId": "u", "domainLabel": "smile", "timestamp": "2026-03-01"},
    "dead-letter": TENANT
    | {"reason": "too_large", "error": "e", "failedAt": "2026-03-01T09:00:00Z", "attempts": 1, "requestId": "q"}
    | {"source": {"kind": "sqs", "arrivedAt": "2026-03-01T09:00:00Z", "queue": "q", "messageAttributes": {"a": "b"}}}
    | {"resourceId": None, "record": "{}", "truncated": True, "recordBytes": 9}
    | {"recordSha256": "0", "parts": {"total": 3, "bad": 2, "reasons": {"too_large": 2}, "subSequenceNumbers": "0-1"}},
}


class Difference(NamedTuple):
    name: str
    message: dict[str, Any]
    schema_accepts: bool
    fits: Callable[[str, dict[str, Any]], bool]


def values_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    yield name, value
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from values_of(one, str(key))


def names_half_a_tenant(name: str, message: dict[str, Any]) -> bool:
    return name == "order-event" and (message.get("businessId") is None) != (message.get("locationId") is None)


# Why a schema and its decoder may differ: JSON Schema cannot say it, or it is not a producer's to send.
DIFFERENCES: Final[Mapping[str, Difference]] = {
    "1.0 is an integer of JSON Schema, and none that the worker writes": Difference(
        "dead-letter",
        SOUND["dead-letter"] | {"attempts": 1.0},
        True,
        lambda name, message: name == "dead-letter" and any(isinstance(one, float) for _, one in values_of(message)),
    ),
    "two members are not compared": Difference(
        "update-resource-id",
        SOUND["update-resource-id"] | {"newResourceId": "a"},
        True,
        lambda name, message: (
            name == "update-resource-id" and message.get("oldResourceId") == message.get("newResourceId")
        ),
    ),
    "message attributes may have the other id of an order's tenant": Difference(
        "order-event", {"type": "CREATE", "data": {}, "businessId": "smile"}, True, names_half_a_tenant
    ),
    "base64 and gzip are texts": Difference(
        "dead-letter",
        SOUND["dead-letter"] | {"record": None, "recordBase64": "?"},
        True,
        lambda _, message: isinstance(message.get("recordBase64"), str),
    ),
    "a size in bytes is not a rule of JSON": Difference(
        "operation",
        SOUND["operation"] | {"data": {"a": "x" * MAX_BYTES}},
        True,
        lambda _, message: len(json.dumps(message)) > MAX_BYTES,
    ),
    "a replay alone may send a derived id": Difference(
        "operation",
        json.loads(with_request_id(json.dumps(SOUND["operation"] | {"requestId": None}).encode(), OF_STREAM)),
        False,
        lambda _, message: "simpluReplay" in message,
    ),
    "an empty messageType counts as absent": Difference(
        "shard-creation",
        SOUND["shard-creation"] | {"messageType": ""},
        False,
        lambda _, message: message.get("messageType") is not None and not message["messageType"],
    ),
}


def is_accepted(name: str, message: dict[str, Any], record: str) -> bool:
    match name:
        case "operation":
            decoded: object = decode_operation(record.encode(), OF_STREAM, MAX_BYTES, 1000)
        case "order-event":
            rules = OrderRules(MAX_BYTES, default_tenant=("b", "l"))
            decoded = decode_order(record, {}, OF_QUEUE, rules, deduplication_id="m")
        case "dead-letter":
            try:
                decoded = parse_dead_letter(record)
            except NotADeadLetterError:
                return False
        case _:
            attributes = {} if message.get("messageType") else {TYPE_ATTRIBUTE: CONTROL_TYPES[name]}
            decoded = decode_control(record, attributes, OF_QUEUE)
    return not isinstance(decoded, RejectedRecord)


def test_schemas_are_such() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_files_are_the_generated_ones() -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == render_files()


@pytest.mark.parametrize("name", SOUND)
def test_schema_is_one_and_its_sound_message_has_every_member(name: str) -> None:
    members = SCHEMAS[name]["properties"].keys()
    assert members - SOUND[name].keys() <= {"recordBase64", "recordGzip"}
    VALIDATORS[name].validate(SOUND[name])
    assert is_accepted(name, SOUND[name], json.dumps(SOUND[name]))


def test_examples_of_the_pages_are_valid() -> None:
    names = {"record": "operation", "order": "order-event"}
    names |= {f"control {title}": name for name, title in CONTROL_TYPES.items()}
    shown = [one for one in page_examples(ROOT / "docs" / "sending.md") if one.name in names]
    assert {one.name for one in shown} == names.keys()
    for one in shown:
        message = json.loads(one.text)
        for part in message if isinstance(message, list) else [message]:
            VALIDATORS[names[one.name]].validate(part)
    letter = re.search(r"```json\n(.*?)```", (ROOT / "docs" / "dead-letters.md").read_text(encoding="utf-8"), re.DOTALL)
    assert letter is not None
    VALIDATORS["dead-letter"].validate(json.loads(letter[1]))


@pytest.mark.parametrize("room", [300_000, 3_000, 1_024])
@pytest.mark.parametrize("record", [b"{}", b"\xff", bytes(range(256)) * 40, b"\xc3\xa4" * 40_000])
@pytest.mark.parametrize("origin", [OF_STREAM, OF_QUEUE])
def test_written_letters_are_valid(origin: Origin, record: bytes, room: int) -> None:
    parts = BadParts(9, 2, {"too_large": 2}, (0, 3), ("r", None))
    letter = DeadLetter(DeadLetterReason.TOO_LARGE, "error", origin, AT, 1, record, parts=parts)
    for one in (letter, DeadLetter(DeadLetterReason.TOO_LARGE, "error", origin, AT, 1, record)):
        VALIDATORS["dead-letter"].validate(json.loads(encode_dead_letter(one, room)))


@pytest.mark.parametrize("reason", DIFFERENCES)
def test_difference_exists(reason: str) -> None:
    one = DIFFERENCES[reason]
    assert VALIDATORS[one.name].is_valid(one.message) == one.schema_accepts
    assert is_accepted(one.name, one.message, json.dumps(one.message)) != one.schema_accepts
    assert one.fits(one.name, one.message)


IDS: Final = (
    "",
    *("x" * length for length in (1, 128, 129, 256, 257, 320, 321)),
    "😀" * 128,
    "a\0",
    "\ud800",
    "simplu:x",
)
WORDS: Final = ("create", "update", "patch", "delete", "list", "read", "CREATE", "DELETE", "destroy", "destroy_all")
OTHERS: Final[tuple[Any, ...]] = (
    *(None, 0, 1, 7, 2**70, 1.0, 1.5, True, [], {}, {"a": 1}),
    *({"page": 0}, {"page": 1.0}, {"page": 1.5}, {"page": None}, {"limit": True}),
    *({"date": None}, {"startDate": "x"}, {"endDate": 5}),
)
TIMES_REFUSED: Final = (
    *("2026-03-01T09:00:00 Z", "2026-03-01T09:00:00Z\0", "2026-03-01\n", "1767225600", "2026-W101", "2026-W09-1", ""),
    *("2026-03-01T9:00:00Z", "2026-3-1", "2026-03-01T09:00Z", "20260301T090000Z", "2026-03-01T", "\ud800"),
    *("2026-03-01T09:00:00,5Z", "2026-03-01T09:00:00.Z", "2026-02-29", "2026-03-01T24:00:00Z", "2026-03-01T09:00:60Z"),
    *("0000-01-01", "0001-01-01T00:00:00+00:01", "9999-12-31t23:59:59-00:01", "2026-03-01T09:00:00+0100"),
)
TIMES_ACCEPTED: Final = (
    *("2026-03-01T09:00:00Z", "2026-03-01t09:00:00.123z", "2026-03-01T09:00:00.123456789+05:45", "2026-03-01"),
    *("2024-02-29", "2026-03-01T09:00:00", "0001-01-01T00:00:00+00:00", "9999-12-31"),
    *("0001-01-01T00:00:00-23:59", "9999-12-31T23:59:59.999999-00:00", "9999-12-31T23:59:59+00:01"),
)
times = st.one_of(
    st.datetimes(timezones=st.just(UTC) | st.none()).map(datetime.isoformat),
    st.dates().map(str),
    st.from_regex(TIME),
    st.tuples(st.from_regex(TIME), st.integers(0, 30), st.text(max_size=1)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]
    ),
    st.text("0123456789-:.,TtWwZz+ \n\0", max_size=30),
    st.sampled_from(TIMES_REFUSED + TIMES_ACCEPTED),
)
values = st.one_of(
    st.sampled_from([*IDS, *WORDS, *OTHERS]),
    times,
    times.map(lambda time: {"startDate": time}),
    st.text(st.characters()),
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(SOUND)))
    message = dict(SOUND[name])
    for member in draw(st.lists(st.sampled_from(sorted(message)), max_size=3, unique=True)):
        if draw(st.booleans()):
            message[member] = draw(values)
        else:
            del message[member]
    if name == "operation" and draw(st.booleans()):
        message["operation"] = draw(st.sampled_from(WORDS))
    return name, message


def judge(name: str, message: dict[str, Any], record: str) -> bool:
    by_schema, by_decoder = VALIDATORS[name].is_valid(message), is_accepted(name, message, record)
    reasons = [one for one in DIFFERENCES.values() if one.schema_accepts == by_schema and one.fits(name, message)]
    assert by_schema == by_decoder or reasons, (by_schema, by_decoder)
    return by_decoder


@given(messages())
@example(("operation", {**SOUND["operation"], "operation": "delete", "filters": {"date": 5}}))
def test_schema_and_decoder_agree(drawn: tuple[str, dict[str, Any]]) -> None:
    name, message = drawn
    judge(name, message, json.dumps(message))


@pytest.mark.parametrize("name", [name for name, sound in SOUND.items() if "timestamp" in sound])
def test_schema_and_decoder_agree_about_times(name: str) -> None:
    for times_of_kind, are_accepted in ((TIMES_ACCEPTED, True), (TIMES_REFUSED, False)):
        for time in times_of_kind:
            message = SOUND[name] | {"timestamp": time}
            assert judge(name, message, json.dumps(message)) is are_accepted, time


OF_TENANT: Final[dict[str, Any]] = {"resource_type": None, "resource_id": None}
OF_SHARD: Final[dict[str, Any]] = OF_TENANT | {"tenant": None, "request_id": None}
BOUNDS: Final = EventBounds(3, 9, EVENT_AT)
EVENTS: Final = [
    *(feed_event(kind=kind) for kind in FeedKind if kind.startswith("resource.")),
    *(feed_event(kind=kind, **OF_TENANT) for kind in FeedKind if kind.startswith("tenant.")),
    feed_event(kind=FeedKind.RESET, bounds=EventBounds(3), **OF_SHARD),
    feed_event(kind=FeedKind.GAP, bounds=BOUNDS, **OF_SHARD),
    feed_event(data=b"null"),
    feed_event(data=b'{"a": 1}'),
    feed_event(data=b"1" * 2000),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_events_are_valid_and_have_no_other_members(event: FeedEvent) -> None:
    message = json.loads(encode_event(event, 1500) or b"")
    validator = VALIDATORS["feed-event"]
    validator.validate(message)
    assert message.keys() <= SCHEMAS["feed-event"]["properties"].keys()
    for member in ("id", "type", "subject", "simpluincarnation", "partitionkey"):
        assert not validator.is_valid({key: value for key, value in message.items() if key != member})
    if event.resource_id is not None:
        assert not validator.is_valid({key: value for key, value in message.items() if key != "simpluresourceid"})


DESCRIPTION = describe("1.2.3")


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list | tuple) else set()


def test_every_route_is_described_once() -> None:
    described = {
        (method.upper(), path): operation["operationId"]
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
    }
    assert described == {(route.method, route.path): route.name for route in ROUTES}
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert DESCRIPTION["info"]["version"] == "1.2.3"


def test_references_lead_to_schemas() -> None:
    used = {one.removeprefix("#/components/schemas/") for one in references(DESCRIPTION)}
    assert used == OPENAPI_SCHEMAS.keys()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_refusals_are_described(route: Route) -> None:
    responses = DESCRIPTION["paths"][route.path][route.method.lower()]["responses"]
    assert ({"401", "403"} <= responses.keys()) == (route.access is not Access.ALL)
    assert route.answer is Answer.AT_ONCE or "503" in responses
    assert set(route.places) <= PLACES.keys()
    parameters = DESCRIPTION["paths"][route.path][route.method.lower()].get("parameters", [])
    assert all(one["description"] for one in parameters)


def test_members_of_an_operation_are_described() -> None:
    members = {*LoggedOperation.__struct_encode_fields__, *RejectedRequest.__struct_encode_fields__}
    assert members <= OPENAPI_SCHEMAS["Operation"]["properties"].keys()


def sample(schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return sample(OPENAPI_SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return sample(schema["anyOf"][0])
    values = {"string": "text", "array": [], "object": {}, "boolean": True, "number": 1.0, "integer": 1}
    return schema["enum"][0] if "enum" in schema else values[schema["type"]]


@pytest.mark.parametrize("name", ["Status", "Fleet", "Tenant", "NoTenant", "Operation", "Handler"])
def test_required_members_stay_for_viewers(name: str) -> None:
    schema = OPENAPI_SCHEMAS[name]
    answer = {member: sample(schema["properties"][member]) for member in schema["required"]}
    assert for_viewers(200, answer).keys() == answer.keys()


def test_page_has_every_path() -> None:
    page = (ROOT / "docs" / "outcomes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:[A-Z]+ )?(/[\w/{}.-]*)[^`]*`", page))
    assert {route.path for route in ROUTES} - named == set()
