"""Control messages: their type, their members, and what is wrong with the others."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.sqs.messages import ControlType, NotYet, ShardCreation, decode_control
from simplu_worker.consumers.sqs.verdicts import Bury, Later, after_trouble, after_unexpected
from simplu_worker.errors import TryAgainLaterError
from simplu_worker.operations.operation import DeadLetterReason, Origin, Rejected, Source

ORIGIN = Origin(source=Source.SQS, name="control", arrived_at=datetime(2026, 1, 2, tzinfo=UTC), message_id="m")
CREATION = {"businessId": "b", "locationId": "l", "businessType": "dental", "timestamp": "2026-01-02T03:04:05+02:00"}
CREATED = ShardCreation(
    business_id="b",
    location_id="l",
    business_type="dental",
    requested_at=datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC),
    shard_id=None,
    connection_string=None,
)


def body(**members: Any) -> str:
    """Return the body of a `SHARD_CREATION` with *members* changed."""
    return json.dumps({**CREATION, **members})


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        (body(), {"MessageType": "SHARD_CREATION"}),
        (body(messageType="SHARD_CREATION"), {}),
        (body(messageType="UPDATE_RESOURCE_ID"), {"MessageType": "SHARD_CREATION"}),
        (body(), {}),
        (body(messageType=None, adminEmail=None), {}),
        (body(shardId="", connectionString="", other=[1, {"a": 2}]), {}),
        (json.dumps({"Type": "Notification", "Message": body()}), {}),
    ],
)
def test_creation_is_decoded_wherever_its_type_is_named(text: str, attributes: dict[str, str]) -> None:
    """The attribute names the type, else the body, else its members do; SNS may be around it; extras are ignored."""
    assert decode_control(text, attributes, ORIGIN) == CREATED


def test_creation_keeps_the_wish_for_a_shard_but_does_not_show_its_password() -> None:
    """The connection string is there for the provisioner, and in no log."""
    decoded = decode_control(body(shardId="s-1", connectionString="postgres://u:hidden@h/d"), {}, ORIGIN)
    assert isinstance(decoded, ShardCreation)
    assert (decoded.shard_id, decoded.connection_string) == ("s-1", "postgres://u:hidden@h/d")
    assert "hidden" not in repr(decoded)


@pytest.mark.parametrize(
    ("text", "attributes", "expected"),
    [
        (body(), {"MessageType": "SHARD_DESTRUCTION"}, ControlType.SHARD_DESTRUCTION),
        (body(messageType="UPDATE_RESOURCE_ID"), {}, ControlType.UPDATE_RESOURCE_ID),
        (
            json.dumps(
                {
                    "Type": "Notification",
                    "Message": "{}",
                    "MessageAttributes": {"MessageType": {"Type": "String", "Value": "ADMIN_ACCOUNT_CREATION"}},
                }
            ),
            {},
            ControlType.ADMIN_ACCOUNT_CREATION,
        ),
    ],
)
def test_later_types_are_left_alone(text: str, attributes: dict[str, str], expected: ControlType) -> None:
    """A type of the contract that is not built yet is neither handled nor refused."""
    assert NotYet(expected) == decode_control(text, attributes, ORIGIN)


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ("", DeadLetterReason.INVALID_JSON, "JSON"),
        ("{", DeadLetterReason.INVALID_JSON, "JSON"),
        (b"\xff{}", DeadLetterReason.INVALID_JSON, "UTF-8"),
        ("[" * 100_000, DeadLetterReason.INVALID_JSON, "deep"),
        ("[]", DeadLetterReason.INVALID_MESSAGE, "object"),
        (body(businessId=1), DeadLetterReason.INVALID_MESSAGE, "businessId"),
        (body(businessId=""), DeadLetterReason.INVALID_MESSAGE, "businessId"),
        (body(locationId="x" * 129), DeadLetterReason.INVALID_MESSAGE, "locationId"),
        (body(locationId="a\0b"), DeadLetterReason.INVALID_MESSAGE, "locationId"),
        (body(businessId="a\ud800"), DeadLetterReason.INVALID_MESSAGE, "businessId"),
        (body(timestamp="yesterday"), DeadLetterReason.INVALID_MESSAGE, "timestamp"),
        (body(timestamp="0001-01-01T00:00:00+02:00"), DeadLetterReason.INVALID_MESSAGE, "timestamp"),
        ('{"businessType":"dental"}', DeadLetterReason.INVALID_MESSAGE, "businessId"),
        ("{}", DeadLetterReason.UNKNOWN_TYPE, "SHARD_CREATION, SHARD_DESTRUCTION"),
        (body(adminEmail="a@b"), DeadLetterReason.UNKNOWN_TYPE, "MessageType"),
        (body(messageType="SHARD_CREATE"), DeadLetterReason.UNKNOWN_TYPE, "'SHARD_CREATE'"),
        (body(messageType=7), DeadLetterReason.UNKNOWN_TYPE, "'7'"),
        (json.dumps({"Type": "Notification", "Message": "{"}), DeadLetterReason.INVALID_JSON, "JSON"),
    ],
)
def test_message_is_rejected_naming_what_was_expected(text: str | bytes, reason: DeadLetterReason, named: str) -> None:
    """What can never be a control message says why."""
    rejected = decode_control(text, {}, ORIGIN)
    assert isinstance(rejected, Rejected)
    assert (reason, True) == (rejected.reason, named in rejected.error)


def test_rejected_message_carries_the_ids_that_could_be_read() -> None:
    """The log and the dead letter name the tenant where the message does."""
    rejected = decode_control(body(timestamp=1), {}, ORIGIN)
    assert isinstance(rejected, Rejected)
    assert (rejected.business_id, rejected.location_id, rejected.origin) == ("b", "l", ORIGIN)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = st.sampled_from(
    [*CREATION, "messageType", "adminEmail", "shardId", "connectionString", "Type", "Message", "MessageAttributes"]
)


@given(
    text=st.binary(max_size=50)
    | st.text(max_size=50)
    | st.text(alphabet=st.characters(), max_size=20)
    | st.dictionaries(MEMBERS, JSON_VALUES | st.sampled_from(["Notification", "{}", body()]), max_size=6).map(
        json.dumps
    ),
    attributes=st.dictionaries(st.sampled_from(["MessageType", "Other"]), st.text(max_size=20), max_size=2),
)
def test_decoding_decides_whatever_comes(text: str | bytes, attributes: dict[str, str]) -> None:
    """Any bytes, any text, any attributes: a decision, never an exception."""
    assert isinstance(decode_control(text, attributes, ORIGIN), ShardCreation | NotYet | Rejected)


@pytest.mark.parametrize(
    ("receive_count", "retry_after_s", "draw", "expected"),
    [
        (1, None, 0.0, 1),
        (3, None, 0.99, 4),
        (7, None, 0.99, 60),
        (500, None, 0.0, 30),
        (1, 20.0, 0.0, 20),
        (1, 9e9, 0.0, 60),
    ],
)
def test_trouble_puts_off_up_to_a_minute(
    receive_count: int, retry_after_s: float | None, draw: float, expected: int
) -> None:
    """A dependency's trouble never ends in a dead letter, only in longer pauses."""
    trouble = TryAgainLaterError("down", retry_after_s=retry_after_s)
    assert Later(expected) == after_trouble(trouble, receive_count=receive_count, draw=draw)


@pytest.mark.parametrize(("receive_count", "expected"), [(0, 1), (1, 1), (2, 5), (3, 16)])
def test_unexpected_error_follows_the_configured_delays(receive_count: int, expected: int) -> None:
    """Each further try has its own delay, in whole seconds as SQS takes them."""
    delays_s = (1.0, 5.0, 15.5)
    assert Later(expected) == after_unexpected(KeyError("x"), receive_count=receive_count, delays_s=delays_s)


def test_unexpected_error_gives_up_after_the_last_delay_without_its_text() -> None:
    """After the last delay the message is a dead letter, which names the kind of error only."""
    verdict = after_unexpected(KeyError("secret"), receive_count=4, delays_s=(1.0, 5.0, 15.0))
    assert isinstance(verdict, Bury)
    assert (verdict.reason, "secret" in verdict.error) == (DeadLetterReason.RETRIES_EXHAUSTED, False)
