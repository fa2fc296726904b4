"""The attributes of a queue of the local SQS that can be set: API_CreateQueue, API_SetQueueAttributes. Pure."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import msgspec
from msgspec import Meta

from simplu_local.sqs.errors import SqsError

MAX_VISIBILITY_S = 43_200  # 12 hours
MAX_WAIT_S = 20
MAX_DELAY_S = 900
MAX_MESSAGE_BYTES = 1024 * 1024  # "Amazon SQS message quotas", since August 2025
FIFO_SUFFIX = ".fifo"


class RedrivePolicy(msgspec.Struct, rename="camel", frozen=True):
    """The dead-letter queue for messages that were received *max_receive_count* times and not deleted."""

    dead_letter_target_arn: str
    max_receive_count: Annotated[int, Meta(ge=1, le=1000)]


class QueueSettings(msgspec.Struct, rename="pascal", frozen=True, forbid_unknown_fields=True, dict=True):
    """A queue's settings; the defaults are those of a queue created without attributes.

    The retention period has no effect: a message here is never as old as its least value, a minute. Nor has encryption.
    """

    visibility_timeout: Annotated[int, Meta(ge=0, le=MAX_VISIBILITY_S)] = 30
    maximum_message_size: Annotated[int, Meta(ge=1024, le=MAX_MESSAGE_BYTES)] = MAX_MESSAGE_BYTES
    message_retention_period: Annotated[int, Meta(ge=60, le=1_209_600)] = 345_600
    delay_seconds: Annotated[int, Meta(ge=0, le=MAX_DELAY_S)] = 0
    receive_message_wait_time_seconds: Annotated[int, Meta(ge=0, le=MAX_WAIT_S)] = 0
    redrive_policy: str = ""
    sqs_managed_sse_enabled: bool = True
    fifo_queue: bool = False
    content_based_deduplication: bool = False

    @cached_property
    def redrive(self) -> RedrivePolicy | None:
        """The redrive policy, decoded."""
        return (
            msgspec.json.decode(self.redrive_policy, type=RedrivePolicy, strict=False) if self.redrive_policy else None
        )


NAMES = frozenset(QueueSettings.__struct_encode_fields__)
DEFAULTS = QueueSettings()


def parse_settings(attributes: dict[str, str], name: str) -> QueueSettings:
    """Return the settings of a queue to create. Raises InvalidAttributeName or InvalidAttributeValue."""
    settings = with_attributes(DEFAULTS, attributes)
    if settings.fifo_queue is not name.endswith(FIFO_SUFFIX):
        text = f"The name of a FIFO queue must end in {FIFO_SUFFIX}, the name of a standard queue must not: {name}"
        raise SqsError("InvalidParameterValueException", text)
    return settings


def with_attributes(settings: QueueSettings, attributes: dict[str, str]) -> QueueSettings:
    """Return *settings* changed by *attributes*. Raises InvalidAttributeName or InvalidAttributeValue."""
    for name, text in attributes.items():
        if name not in NAMES:
            raise SqsError("InvalidAttributeName", f"Unknown Attribute {name}.")
        try:
            one = msgspec.convert({name: text}, QueueSettings, strict=False)
            _ = one.redrive
        except (msgspec.ValidationError, msgspec.DecodeError) as exc:
            raise SqsError("InvalidAttributeValue", f"Invalid value for the parameter {name}.") from exc
    known = {name: text for name, text in settable_attributes(settings).items() if text}
    whole = msgspec.convert(known | attributes, QueueSettings, strict=False)
    if whole.content_based_deduplication and not whole.fifo_queue:
        raise SqsError("InvalidAttributeName", "Unknown Attribute ContentBasedDeduplication.")
    return whole


def settable_attributes(settings: QueueSettings) -> dict[str, str]:
    """Return *settings* as GetQueueAttributes lists them, without attributes that are unset or not for this queue."""
    found = {name: _text(value) for name, value in msgspec.to_builtins(settings).items() if value != ""}
    if not settings.fifo_queue:
        del found["FifoQueue"], found["ContentBasedDeduplication"]
    return found


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
