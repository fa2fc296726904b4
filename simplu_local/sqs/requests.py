"""The requests of the SQS API that the local one implements, with the names of its model. Pure."""

from __future__ import annotations

from typing import Any

import msgspec


class MessageAttribute(msgspec.Struct, rename="pascal", frozen=True, omit_defaults=True):
    """API_MessageAttributeValue; a binary value is base64."""

    data_type: str
    string_value: str | None = None
    binary_value: str | None = None


class QueueRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Base of the requests about one queue."""

    queue_url: str


class CreateQueue(msgspec.Struct, rename="pascal", kw_only=True):
    """API_CreateQueue."""

    queue_name: str
    attributes: dict[str, str] = {}


class GetQueueUrl(msgspec.Struct, rename="pascal", kw_only=True):
    """API_GetQueueUrl."""

    queue_name: str


class ListQueues(msgspec.Struct, rename="pascal", kw_only=True):
    """API_ListQueues, without pages."""

    queue_name_prefix: str = ""


class QueueOnly(QueueRequest):
    """API_DeleteQueue, API_PurgeQueue: only the queue."""


class GetQueueAttributes(QueueRequest):
    """API_GetQueueAttributes."""

    attribute_names: list[str] = []


class SetQueueAttributes(QueueRequest):
    """API_SetQueueAttributes."""

    attributes: dict[str, str]


class MessageEntry(msgspec.Struct, rename="pascal", kw_only=True):
    """API_SendMessageBatchRequestEntry, without its Id."""

    message_body: str
    delay_seconds: int | None = None
    message_attributes: dict[str, MessageAttribute] = {}
    message_system_attributes: dict[str, MessageAttribute] = {}
    message_group_id: str | None = None
    message_deduplication_id: str | None = None


class SendMessage(MessageEntry):
    """API_SendMessage."""

    queue_url: str


class ReceiveMessage(QueueRequest):
    """API_ReceiveMessage."""

    attribute_names: list[str] = []
    message_system_attribute_names: list[str] = []
    message_attribute_names: list[str] = []
    max_number_of_messages: int = 1
    visibility_timeout: int | None = None
    wait_time_seconds: int | None = None
    receive_request_attempt_id: str | None = None


class ReceiptEntry(msgspec.Struct, rename="pascal", kw_only=True):
    """API_DeleteMessageBatchRequestEntry, without its Id."""

    receipt_handle: str


class DeleteMessage(ReceiptEntry):
    """API_DeleteMessage."""

    queue_url: str


class VisibilityEntry(ReceiptEntry):
    """API_ChangeMessageVisibilityBatchRequestEntry, without its Id."""

    visibility_timeout: int


class ChangeMessageVisibility(VisibilityEntry):
    """API_ChangeMessageVisibility."""

    queue_url: str


class SendEntry(MessageEntry, kw_only=True):
    """API_SendMessageBatchRequestEntry."""

    id: str


class DeleteEntry(ReceiptEntry, kw_only=True):
    """API_DeleteMessageBatchRequestEntry."""

    id: str


class ChangeEntry(VisibilityEntry, kw_only=True):
    """API_ChangeMessageVisibilityBatchRequestEntry."""

    id: str


class SendMessageBatch(QueueRequest):
    """API_SendMessageBatch."""

    entries: list[SendEntry]


class DeleteMessageBatch(QueueRequest):
    """API_DeleteMessageBatch."""

    entries: list[DeleteEntry]


class ChangeMessageVisibilityBatch(QueueRequest):
    """API_ChangeMessageVisibilityBatch."""

    entries: list[ChangeEntry]


BatchRequest = SendMessageBatch | DeleteMessageBatch | ChangeMessageVisibilityBatch


def queue_name_of(request: Any) -> str | None:
    """Return the name of the queue in *request*; none when it has no queue URL."""
    url = getattr(request, "queue_url", None)
    return None if url is None else str(url).rstrip("/").rsplit("/", 1)[-1]
