"""Messages of the local SQS: their content, its validation, and their receipt handles. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from enum import Enum
from typing import NamedTuple

import msgspec

from simplu_local.aws_server.sealing import seal, unseal
from simplu_local.sqs.errors import SqsError, invalid_parameter, missing_parameter
from simplu_local.sqs.requests import MessageAttribute, MessageEntry

# API_SendMessage, MessageBody: "A message can include only XML, JSON, and unformatted text. The following Unicode
# characters are allowed"; others cause InvalidMessageContents.
REFUSED_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MAX_ATTRIBUTES = 10  # "Amazon SQS message quotas"
ID = re.compile(r"[!-~]{1,128}")  # API_SendMessage, MessageGroupId, MessageDeduplicationId
BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")  # API_SendMessageBatchRequestEntry, Id
# Sequence numbers are 20 digits and grow, not by one: "FIFO queue delivery logic".
FIRST_SEQUENCE_NUMBER, SEQUENCE_STEP = 18_800_000_000_000_000_000, 256
HANDLE = struct.Struct(">IQQ")


class MessageState(Enum):
    """The state of a message. A delayed one was never received; one in flight is hidden from other receivers."""

    DELAYED = "delayed"
    VISIBLE = "visible"
    IN_FLIGHT = "in flight"
    GONE = "gone"


class MessageContent(msgspec.Struct, frozen=True):
    """The content of a message, as its sender gave it."""

    body: str
    attributes: dict[str, MessageAttribute]
    trace_header: str | None
    group_id: str | None
    deduplication_id: str | None
    size_bytes: int
    md5_of_body: str
    md5_of_attributes: str | None


class StoredMessage:
    """A message in a queue. *number* is its place in the queue's order.

    *receipt* is the number of its last receive, and *ticket* the number of the last change that hid it.
    """

    __slots__ = (
        "change_count",
        "content",
        "due_ms",
        "first_received_ms",
        "message_id",
        "number",
        "receipt",
        "receive_count",
        "received_ms",
        "sent_ms",
        "source_arn",
        "state",
        "ticket",
    )

    def __init__(self, content: MessageContent, *, message_id: str, number: int, sent_ms: int) -> None:
        self.content = content
        self.message_id = message_id
        self.number = number
        self.sent_ms = sent_ms
        self.source_arn: str | None = None  # in a dead-letter queue: the queue that it was moved from
        self.state = MessageState.VISIBLE
        self.due_ms = 0
        self.ticket = 0
        self.receipt = 0
        self.receive_count = 0
        self.received_ms = 0
        self.first_received_ms = 0
        self.change_count = 0  # of its visibility timeout, since the last receive

    def __repr__(self) -> str:
        return f"Message({self.number}, {self.state.value}, received {self.receive_count} times)"

    @property
    def sequence_number(self) -> str:
        """The sequence number, by which receivers order the messages of a FIFO queue."""
        return str(FIRST_SEQUENCE_NUMBER + self.number * SEQUENCE_STEP)


class Receipt(NamedTuple):
    """The parts of a receipt handle: the numbers of the queue, of the message in it and of the receive."""

    queue_number: int
    number: int
    receipt: int


def seal_receipt(receipt: Receipt) -> str:
    """Return the receipt handle, an opaque text."""
    return seal(HANDLE.pack(*receipt))


def unseal_receipt(handle: str, queue_number: int) -> Receipt:
    """Return the receipt of *handle*. Raises ReceiptHandleIsInvalid when this queue did not issue it."""
    payload = unseal(handle)
    if payload is None or len(payload) != HANDLE.size:
        raise invalid_handle(handle)
    receipt = Receipt(*HANDLE.unpack(payload))
    if receipt.queue_number != queue_number:
        raise invalid_handle(handle)
    return receipt


def invalid_handle(handle: str) -> SqsError:
    """Return the error for a text that is no receipt handle of the queue."""
    return SqsError("ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid receipt handle.')


def parse_content(entry: MessageEntry, *, is_fifo: bool, by_content: bool) -> MessageContent:
    """Return the content that *entry* sends. Raises the errors of API_SendMessage."""
    trace_header = _trace_header(entry)
    _check_text(entry.message_body)
    if not entry.message_body:
        raise missing_parameter("MessageBody")
    if len(entry.message_attributes) > MAX_ATTRIBUTES:
        count = len(entry.message_attributes)
        text = f"Number of message attributes [{count}] exceeds the allowed maximum [{MAX_ATTRIBUTES}]."
        raise SqsError("InvalidParameterValueException", text)
    body = entry.message_body.encode()
    values = {name: _attribute_bytes(name, attribute) for name, attribute in entry.message_attributes.items()}
    size_bytes = len(body) + sum(
        len(name.encode()) + len(entry.message_attributes[name].data_type) + len(data) for name, data in values.items()
    )
    deduplication_id = entry.message_deduplication_id
    for name, value in (("MessageGroupId", entry.message_group_id), ("MessageDeduplicationId", deduplication_id)):
        if value is not None and not ID.fullmatch(value):
            raise invalid_parameter(name, value, "expected 1 to 128 letters, digits or punctuation")
    if is_fifo:
        deduplication_id = _deduplication_id(entry, body, by_content=by_content)
    elif deduplication_id is not None:
        reason = "The request include parameter that is not valid for this queue type"
        raise invalid_parameter("MessageDeduplicationId", deduplication_id, reason)
    return MessageContent(
        body=entry.message_body,
        attributes=entry.message_attributes,
        trace_header=trace_header,
        group_id=entry.message_group_id,
        deduplication_id=deduplication_id,
        size_bytes=size_bytes,
        md5_of_body=hashlib.md5(body, usedforsecurity=False).hexdigest(),
        md5_of_attributes=_attributes_md5(entry.message_attributes, values) if values else None,
    )


def _deduplication_id(entry: MessageEntry, body: bytes, *, by_content: bool) -> str:
    """Return the id by which the queue recognizes a duplicate: "Using the message deduplication ID"."""
    if entry.message_group_id is None:
        raise missing_parameter("MessageGroupId")
    if entry.message_deduplication_id is not None:
        return entry.message_deduplication_id
    if by_content:
        return hashlib.sha256(body).hexdigest()
    text = (
        "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly"
    )
    raise SqsError("InvalidParameterValueException", text)


def _trace_header(entry: MessageEntry) -> str | None:
    names = [name for name in entry.message_system_attributes if name != "AWSTraceHeader"]
    if names:
        raise SqsError("InvalidParameterValueException", f"Message system attribute name '{names[0]}' is invalid.")
    found = entry.message_system_attributes.get("AWSTraceHeader")
    return None if found is None else found.string_value


def _check_text(text: str) -> None:
    if REFUSED_CHARACTERS.search(text):
        reason = "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to "
        raise SqsError("InvalidMessageContents", reason + "#xFFFD | #x10000 to #x10FFFF")


def _attribute_bytes(name: str, attribute: MessageAttribute) -> bytes:
    """Return the bytes of a message attribute. Raises InvalidParameterValue unless it has a type and a value."""
    kind = attribute.data_type.partition(".")[0]
    if kind == "Binary" and attribute.binary_value:
        try:
            return base64.b64decode(attribute.binary_value, validate=True)
        except binascii.Error as exc:
            raise SqsError("SerializationException", f"{name}: expected base64: {exc}") from exc
    if kind in {"String", "Number"} and attribute.string_value:
        _check_text(attribute.string_value)
        return attribute.string_value.encode()
    if kind not in {"String", "Number", "Binary"}:
        text = f"The message attribute '{name}' has an invalid message attribute type, the set of supported types is "
        raise SqsError("InvalidParameterValueException", text + "Binary, Number, and String.")
    text = f"The message attribute '{name}' must contain a non-empty value of its type '{attribute.data_type}'."
    raise SqsError("InvalidParameterValueException", text)


def _attributes_md5(attributes: dict[str, MessageAttribute], values: dict[str, bytes]) -> str:
    """Return the digest that clients check: "Calculating the MD5 message digest for message attributes"."""
    digest = hashlib.md5(usedforsecurity=False)
    for name, value in sorted(values.items()):
        kind = attributes[name].data_type
        for part in (name.encode(), kind.encode()):
            digest.update(len(part).to_bytes(4, "big") + part)
        digest.update(b"\x02" if kind.startswith("Binary") else b"\x01")
        digest.update(len(value).to_bytes(4, "big") + value)
    return digest.hexdigest()
