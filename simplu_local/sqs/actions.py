"""The actions of the local SQS: from requests to answers, on the model; callers pass the time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from simplu_local.aws_server.account import ACCOUNT_ID
from simplu_local.sqs import requests
from simplu_local.sqs.errors import SqsError, invalid_parameter
from simplu_local.sqs.message import BATCH_ID, StoredMessage, parse_content
from simplu_local.sqs.model import SqsAccount
from simplu_local.sqs.queue import LocalQueue
from simplu_local.sqs.queue_settings import (
    MAX_DELAY_S,
    MAX_MESSAGE_BYTES,
    MAX_VISIBILITY_S,
    MAX_WAIT_S,
    settable_attributes,
    with_attributes,
)

BATCH_MAX_COUNT = 10
MAX_QUEUES_SHOWN = 1000  # API_ListQueues
SENDER_ID = "AIDAIT2UOQQY3AUEKVGXU"

SqsReply = dict[str, Any] | None


class SqsActions:
    """The account's API. `decode` and `answer` raise SqsError for every error answer."""

    def __init__(self, account: SqsAccount) -> None:
        self.account = account
        self.base_url = ""  # of the queues' URLs
        self._actions: dict[str, tuple[msgspec.json.Decoder[Any], Callable[[Any, int], SqsReply]]] = {
            name: (msgspec.json.Decoder(shape), method)
            for name, shape, method in (
                ("CreateQueue", requests.CreateQueue, self._create_queue),
                ("DeleteQueue", requests.QueueOnly, self._delete_queue),
                ("PurgeQueue", requests.QueueOnly, self._purge_queue),
                ("GetQueueUrl", requests.GetQueueUrl, self._get_queue_url),
                ("ListQueues", requests.ListQueues, self._list_queues),
                ("GetQueueAttributes", requests.GetQueueAttributes, self._get_queue_attributes),
                ("SetQueueAttributes", requests.SetQueueAttributes, self._set_queue_attributes),
                ("SendMessage", requests.SendMessage, self._send),
                ("SendMessageBatch", requests.SendMessageBatch, self._send_batch),
                ("ReceiveMessage", requests.ReceiveMessage, self._receive),
                ("DeleteMessage", requests.DeleteMessage, self._delete),
                ("DeleteMessageBatch", requests.DeleteMessageBatch, self._delete_batch),
                ("ChangeMessageVisibility", requests.ChangeMessageVisibility, self._change),
                ("ChangeMessageVisibilityBatch", requests.ChangeMessageVisibilityBatch, self._change_batch),
            )
        }

    def __repr__(self) -> str:
        return f"Actions({self.account!r})"

    def decode(self, action: str, body: bytes) -> Any:
        """Return the request in *body*."""
        if action not in self._actions:
            raise SqsError("UnknownOperationException", f"the local SQS has no action {action!r}")
        try:
            return self._actions[action][0].decode(body or b"{}")
        except msgspec.ValidationError as exc:
            if "missing required field" in str(exc):
                raise SqsError("MissingRequiredParameterException", f"The request is incomplete: {exc}") from exc
            raise SqsError("InvalidParameterValueException", f"1 validation error detected: {exc}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise SqsError("SerializationException", f"expected a JSON object: {exc}") from exc

    def answer(self, action: str, request: Any, now_ms: int) -> SqsReply:
        """Do *request* and return the answer."""
        return self._actions[action][1](request, now_ms)

    def wait_s(self, request: requests.ReceiveMessage) -> int:
        """Return how long *request* waits for messages. Raises SqsError when it is invalid."""
        queue = self._find_queue(request)
        _check_range("MaxNumberOfMessages", request.max_number_of_messages, 1, BATCH_MAX_COUNT)
        wait_s = request.wait_time_seconds
        if wait_s is None:
            return queue.settings.receive_message_wait_time_seconds
        _check_range("WaitTimeSeconds", wait_s, 0, MAX_WAIT_S)
        return wait_s

    def _find_queue(self, request: Any) -> LocalQueue:
        return self.account.find(requests.queue_name_of(request) or "")

    def _queue_url(self, queue: LocalQueue) -> str:
        return f"{self.base_url}/{ACCOUNT_ID}/{queue.name}"

    def _create_queue(self, request: requests.CreateQueue, now_ms: int) -> SqsReply:
        return {"QueueUrl": self._queue_url(self.account.create(request.queue_name, request.attributes, now_ms))}

    def _delete_queue(self, request: requests.QueueOnly, _now_ms: int) -> None:
        self.account.delete(self._find_queue(request).name)

    def _purge_queue(self, request: requests.QueueOnly, now_ms: int) -> None:
        self._find_queue(request).purge(now_ms)

    def _get_queue_url(self, request: requests.GetQueueUrl, _now_ms: int) -> SqsReply:
        return {"QueueUrl": self._queue_url(self.account.find(request.queue_name))}

    def _list_queues(self, request: requests.ListQueues, _now_ms: int) -> SqsReply:
        names = sorted(name for name in self.account.queues if name.startswith(request.queue_name_prefix))
        if not names:
            return {}
        return {"QueueUrls": [self._queue_url(self.account.queues[name]) for name in names[:MAX_QUEUES_SHOWN]]}

    def _get_queue_attributes(self, request: requests.GetQueueAttributes, now_ms: int) -> SqsReply:
        queue = self._find_queue(request)
        queue.apply_due(now_ms)
        found = queue_attributes(queue)
        names = set(request.attribute_names)
        if unknown := names - found.keys() - {"All", "RedrivePolicy", "FifoQueue", "ContentBasedDeduplication"}:
            raise SqsError("InvalidAttributeName", f"Unknown Attribute {min(unknown)}.")
        if "All" not in names:
            found = {name: value for name, value in found.items() if name in names}
        return {"Attributes": found} if found else {}

    def _set_queue_attributes(self, request: requests.SetQueueAttributes, now_ms: int) -> None:
        queue = self._find_queue(request)
        if "FifoQueue" in request.attributes:
            raise SqsError("InvalidAttributeName", "Unknown Attribute FifoQueue.")
        queue.change_settings(with_attributes(queue.settings, request.attributes), now_ms)

    def _send(self, request: requests.SendMessage, now_ms: int) -> SqsReply:
        return _send_message(self._find_queue(request), request, now_ms)

    def _send_batch(self, request: requests.SendMessageBatch, now_ms: int) -> SqsReply:
        """API_SendMessageBatch; the limit on one message also holds for all messages of a batch together."""
        queue = self._find_queue(request)
        size_bytes = sum(len(entry.message_body.encode()) for entry in request.entries)
        if size_bytes > MAX_MESSAGE_BYTES:
            text = f"Batch requests cannot be longer than {MAX_MESSAGE_BYTES} bytes. You have sent {size_bytes} bytes."
            raise SqsError("BatchRequestTooLong", text)
        return _run_batch(request.entries, lambda entry: _send_message(queue, entry, now_ms))

    def _receive(self, request: requests.ReceiveMessage, now_ms: int) -> SqsReply:
        queue = self._find_queue(request)
        visibility_s, attempt_id = request.visibility_timeout, request.receive_request_attempt_id
        if visibility_s is not None:
            _check_range("VisibilityTimeout", visibility_s, 0, MAX_VISIBILITY_S)
        if attempt_id is not None and not queue.is_fifo:
            reason = "The request include parameter that is not valid for this queue type"
            raise invalid_parameter("ReceiveRequestAttemptId", attempt_id, reason)
        messages = self.account.receive(
            queue, now_ms, limit=request.max_number_of_messages, visibility_s=visibility_s, attempt_id=attempt_id
        )
        return {"Messages": [_received_message(queue, message, request) for message in messages]} if messages else {}

    def _delete(self, request: requests.DeleteMessage, now_ms: int) -> None:
        self._find_queue(request).delete(request.receipt_handle, now_ms)

    def _delete_batch(self, request: requests.DeleteMessageBatch, now_ms: int) -> SqsReply:
        queue = self._find_queue(request)
        return _run_batch(request.entries, lambda entry: queue.delete(entry.receipt_handle, now_ms))

    def _change(self, request: requests.ChangeMessageVisibility, now_ms: int) -> None:
        self._find_queue(request).change_visibility(request.receipt_handle, request.visibility_timeout, now_ms)

    def _change_batch(self, request: requests.ChangeMessageVisibilityBatch, now_ms: int) -> SqsReply:
        queue = self._find_queue(request)
        return _run_batch(
            request.entries,
            lambda entry: queue.change_visibility(entry.receipt_handle, entry.visibility_timeout, now_ms),
        )


def queue_attributes(queue: LocalQueue) -> dict[str, str]:
    """Return all attributes of *queue*."""
    return settable_attributes(queue.settings) | {
        "QueueArn": queue.arn,
        "CreatedTimestamp": str(queue.created_ms // 1000),
        "LastModifiedTimestamp": str(queue.modified_ms // 1000),
        "ApproximateNumberOfMessages": str(queue.visible_count),
        "ApproximateNumberOfMessagesNotVisible": str(queue.in_flight_count),
        "ApproximateNumberOfMessagesDelayed": str(queue.delayed_count),
    }


def _send_message(queue: LocalQueue, entry: requests.MessageEntry, now_ms: int) -> dict[str, Any]:
    settings = queue.settings
    content = parse_content(entry, is_fifo=queue.is_fifo, by_content=settings.content_based_deduplication)
    most = settings.maximum_message_size
    if content.size_bytes > most:
        text = f"One or more parameters are invalid. Reason: Message must be shorter than {most} bytes."
        raise SqsError("InvalidParameterValueException", text)
    delay_s = entry.delay_seconds
    if delay_s is not None:
        _check_range("DelaySeconds", delay_s, 0, MAX_DELAY_S)
        if queue.is_fifo and delay_s:
            reason = "The request include parameter that is not valid for this queue type"
            raise invalid_parameter("DelaySeconds", delay_s, reason)
    sent = queue.send(content, now_ms, delay_s=delay_s)
    answer = {"MessageId": sent.message_id, "MD5OfMessageBody": content.md5_of_body}
    if content.md5_of_attributes is not None:
        answer["MD5OfMessageAttributes"] = content.md5_of_attributes
    return answer | ({"SequenceNumber": sent.sequence_number} if queue.is_fifo else {})


def _received_message(queue: LocalQueue, message: StoredMessage, request: requests.ReceiveMessage) -> dict[str, Any]:
    content = message.content
    found: dict[str, Any] = {
        "MessageId": message.message_id,
        "ReceiptHandle": queue.receipt_handle_of(message),
        "MD5OfBody": content.md5_of_body,
        "Body": content.body,
    }
    names = {*request.attribute_names, *request.message_system_attribute_names}
    if names:
        system = _system_attributes(queue, message)
        found["Attributes"] = {name: value for name, value in system.items() if "All" in names or name in names}
    attributes = _requested_attributes(content.attributes, request.message_attribute_names)
    if attributes:
        found["MessageAttributes"] = attributes
        # AWS returns the digest of the requested attributes; here only that of all attributes is known.
        if len(attributes) == len(content.attributes):
            found["MD5OfMessageAttributes"] = content.md5_of_attributes
    return found


def _system_attributes(queue: LocalQueue, message: StoredMessage) -> dict[str, str]:
    content = message.content
    found = {
        "SenderId": SENDER_ID,
        "SentTimestamp": str(message.sent_ms),
        "ApproximateReceiveCount": str(message.receive_count),
        "ApproximateFirstReceiveTimestamp": str(message.first_received_ms),
        "SequenceNumber": message.sequence_number if queue.is_fifo else None,
        "MessageDeduplicationId": content.deduplication_id,
        "MessageGroupId": content.group_id,
        "AWSTraceHeader": content.trace_header,
        "DeadLetterQueueSourceArn": message.source_arn,
    }
    return {name: value for name, value in found.items() if value is not None}


def _requested_attributes(
    attributes: dict[str, requests.MessageAttribute], names: Sequence[str]
) -> dict[str, requests.MessageAttribute]:
    """Return the message attributes that *names* select: by All, `.*`, a prefix with `.*`, or their name."""
    if not attributes or not names:
        return {}
    if "All" in names or ".*" in names:
        return attributes
    prefixes = tuple(name.removesuffix(".*") for name in names if name.endswith(".*"))
    return {name: value for name, value in attributes.items() if name in names or name.startswith(prefixes)}


def _run_batch(entries: Sequence[Any], act: Callable[[Any], SqsReply]) -> dict[str, Any]:
    """Act on each of *entries*; a rejected entry does not stop the following ones (API_BatchResultErrorEntry)."""
    if not entries:
        raise SqsError("EmptyBatchRequest", "There should be at least one entry in the request.")
    if len(entries) > BATCH_MAX_COUNT:
        text = f"Maximum number of entries per request are {BATCH_MAX_COUNT}. You have sent {len(entries)}."
        raise SqsError("TooManyEntriesInBatchRequest", text)
    if bad := [entry.id for entry in entries if not BATCH_ID.fullmatch(entry.id)]:
        raise SqsError("InvalidBatchEntryId", f"{bad[0]}: 1 to 80 letters, digits, hyphens and underscores.")
    if len({entry.id for entry in entries}) < len(entries):
        raise SqsError("BatchEntryIdsNotDistinct", "Two or more batch entries in the request have the same Id.")
    successful: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for entry in entries:
        try:
            successful.append({"Id": entry.id} | (act(entry) or {}))
        except SqsError as exc:
            failed.append(failed_entry(entry.id, exc.code, exc.message, sender_fault=exc.is_sender_fault))
    return {"Successful": successful, "Failed": failed} if failed else {"Successful": successful}


def failed_entry(entry_id: str, code: str, message: str, *, sender_fault: bool) -> dict[str, Any]:
    """Return API_BatchResultErrorEntry: the answer for a failed entry of a batch."""
    return {"Id": entry_id, "SenderFault": sender_fault, "Code": code, "Message": message}


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise invalid_parameter(name, value, f"Must be between {least} and {most}, if provided.")
