"""The client: a queue in memory that threads put on the stream, messages to queues, and questions over HTTP."""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, Self, cast, get_args
from urllib.parse import quote, urlencode, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from simplu_client.batcher import Answer, Batcher, Limits, Pending, Record
from simplu_client.errors import (
    ClosedError,
    InvalidOperationError,
    NotSentError,
    QueueFullError,
    SimpluError,
    WaitTimeoutError,
)
from simplu_client.messages import (
    ControlMessage,
    Encoded,
    InvalidMessage,
    Operation,
    OrderEvent,
    PartitionKeyRule,
    encode,
    partition_key,
    plain,
    queue_id,
    uuid7,
)
from simplu_client.outcomes import AskAgain, Outcome, ask_after_s, judge

THREADS = 4  # requests at a time
TIMEOUTS = {"connect_timeout": 5, "read_timeout": 10}
# A request that is sent again may let others of its keys wait: the batcher tries again, not the SDK.
KINESIS_CONFIG = Config(retries={"total_max_attempts": 1}, **TIMEOUTS)
SQS_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 8}, **TIMEOUTS)
ANSWER_WITHIN_S = 10  # of a request that waits for the outcome
HTTP_MARGIN_S = 5.0
THROTTLED = "ProvisionedThroughputExceededException"
NO_RESULT = "NoResult"  # of a record for which a reply has none
TOKEN = re.compile(r"[!-~]+")

log = logging.getLogger("simplu_client")


class Position(NamedTuple):
    """Where a record is in the stream, and since when at the latest."""

    stream_shard_id: str
    sequence_number: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Sent:
    """What names an operation when its outcome is asked for. *accepted* is there for operations alone.

    *accepted* has the position once Kinesis has the record, or a `NotSentError`.
    """

    request_id: str
    business_id: str
    location_id: str
    accepted: Future[Position] | None = None


@dataclass(slots=True)
class _Item:
    data: bytes
    accepted: Future[Position] = field(default_factory=Future)
    position: Position | None = None
    reason: str | None = None  # why the last try was none


class Client:
    """Sends to simplu-worker. One serves all threads of a process; make it after a fork.

    What is not needed may be left out: *stream* for operations, the URLs of queues for messages, and *url* with *token*
    for `wait`. *kinesis* and *sqs* are clients of boto3, made from the environment without them. *partition_key* is the
    worker's KINESIS_PARTITION_KEY.
    """

    def __init__(
        self,
        *,
        stream: str | None = None,
        order_queue_url: str | None = None,
        priority_queue_url: str | None = None,
        control_queue_url: str | None = None,
        url: str | None = None,
        token: str | None = None,
        kinesis: Any = None,
        sqs: Any = None,
        limits: Limits | None = None,
        partition_key: PartitionKeyRule = "resource-type",
    ) -> None:
        if partition_key not in get_args(PartitionKeyRule):
            raise SimpluError(f"partition_key: expected one of {get_args(PartitionKeyRule)}, got {partition_key!r}")
        self._stream, self._key_rule = stream, partition_key
        self._order_urls = {False: order_queue_url, True: priority_queue_url}
        self._control_url = control_queue_url
        self._url, self._token = url, None if token is None else token.strip()
        if self._token is not None and not TOKEN.fullmatch(self._token):
            raise SimpluError("token: expected visible ASCII characters without spaces")  # and not those it has
        has_queue = order_queue_url or priority_queue_url or control_queue_url
        self._kinesis: Any = boto3.client("kinesis", config=KINESIS_CONFIG) if stream and not kinesis else kinesis
        self._sqs: Any = boto3.client("sqs", config=SQS_CONFIG) if has_queue and not sqs else sqs
        self._batcher: Batcher[_Item] = Batcher(limits or Limits())
        self._is_closed = self._is_stopped = False
        lock = threading.Lock()
        self._work, self._room = threading.Condition(lock), threading.Condition(lock)
        names = [f"simplu-client-{number}" for number in range(THREADS)] if stream else []
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"Client({self._stream}, {self._batcher})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        left = self.close()
        if left and kind is None:
            raise left[0]

    # Operations

    def send(self, operation: Operation, *, timeout_s: float | None = None) -> Sent:
        """Queue an operation behind those of its partition key; blocks while the queue has no room for the key.

        At most for *timeout_s*, if that is given, and not in a callback of `accepted`.

        Raises:
            InvalidOperationError: the worker would refuse it.
            QueueFullError: there was no room in that time.
            ClosedError: the client is closed.

        """
        message = plain(operation)
        request_id = message["requestId"] = message.get("requestId") or _new_id()
        message["timestamp"] = message.get("timestamp") or _now_text()
        key = partition_key(message, self._key_rule)
        encoded = _encode(message, "operation", key=key)
        _required("stream", self._stream)
        item = _Item(encoded.data)
        item.accepted.set_running_or_notify_cancel()  # nobody can cancel it
        with self._room:
            # A sender, in a callback, would wait for room that only senders make.
            has_room = self._is_sender() or self._room.wait_for(
                lambda: self._is_closed or self._batcher.has_room(key, encoded.size_bytes), timeout_s
            )
            if self._is_closed:
                raise ClosedError("expected an open client")
            if not has_room:
                raise QueueFullError(f"the queue had no room for the key {key} within {timeout_s:g} s")
            self._batcher.add(item, key, encoded.size_bytes)
            self._work.notify()
        return Sent(request_id, message["businessId"], message["locationId"], item.accepted)

    def close(self, timeout_s: float = 30.0) -> list[NotSentError]:
        """Take no more operations, send those that are queued, and return what was not sent in that time."""
        deadline = time.monotonic() + timeout_s
        with self._room:
            self._is_closed = True
            self._room.notify_all()
            self._room.wait_for(lambda: not self._batcher.count, timeout_s)
            left = self._batcher.drain()
            may_be_busy = bool(left) or self._is_stopped  # with a request that has no reply
            self._is_stopped = True
            self._work.notify_all()
        # A sender, in a callback, cannot wait for itself, nor for another one that closes too.
        for thread in self._threads if not (may_be_busy or self._is_sender()) else ():
            thread.join(max(0.0, deadline - time.monotonic()))
        return self._give_up(left)

    def _is_sender(self) -> bool:
        return threading.current_thread() in self._threads

    def _run(self) -> None:
        while (batch := self._take_batch()) is not None:
            answers = self._put(batch)
            with self._room:
                settled = self._batcher.settle(batch, answers, now=time.monotonic(), draw=random.random())
                self._room.notify_all()
                self._work.notify()
            for one in settled.accepted:
                one.item.accepted.set_result(cast("Position", one.item.position))
            self._give_up(settled.given_up)

    def _take_batch(self) -> list[Record[_Item]] | None:
        with self._work:
            while not self._is_stopped:
                now = time.monotonic()
                if batch := self._batcher.next_batch(now):
                    return batch
                at = self._batcher.next_at()
                self._work.wait(None if at is None else max(0.0, at - now))
            return None

    def _put(self, batch: Sequence[Record[_Item]]) -> list[Answer]:
        # JSON lines: of an operation that the worker cannot read, the others of the record are none.
        data = [b"\n".join(one.item.data for one in record) for record in batch]
        records = [{"Data": some, "PartitionKey": record[0].key} for some, record in zip(data, batch, strict=True)]
        try:
            results = self._kinesis.put_records(StreamName=self._stream, Records=records)["Records"]
        except Exception as exc:  # noqa: BLE001 - whatever it is, these records are not known to be sent
            results = [{"ErrorCode": _reason(exc), "IsUnknown": not _is_refused(exc)}] * len(batch)
        at = datetime.now(UTC)
        reasons: Counter[str] = Counter()
        answers: list[Answer] = []
        for record, result in zip(batch, [*results, *[{}] * (len(batch) - len(results))], strict=False):
            if (stream_shard_id := result.get("ShardId")) is not None:
                position = Position(stream_shard_id, result.get("SequenceNumber", ""), at)
                for one in record:
                    one.item.position = position
                answers.append(Answer(stream_shard_id))
            else:
                reason = result.get("ErrorCode") or NO_RESULT
                for one in record:
                    one.item.reason = reason
                reasons[reason] += len(record)
                answers.append(Answer(None, bool(result.get("IsUnknown", reason != THROTTLED))))
        for reason, count in reasons.items():
            log.warning("not accepted: %d operations, %s", count, reason)
        return answers

    def _give_up(self, operations: Iterable[Pending[_Item]]) -> list[NotSentError]:
        instead = "the client was closed" if self._is_stopped else "an earlier operation of its key was not sent"
        errors: list[NotSentError] = []
        for one in operations:
            message, reason = json.loads(one.item.data), one.item.reason or instead
            error = NotSentError(message, reason, may_be_sent=one.may_be_sent)
            log.error("%s: %s", message["requestId"], error)
            one.item.accepted.set_exception(error)
            errors.append(error)
        return errors

    # Messages

    def send_order(self, event: OrderEvent, *, is_urgent: bool = False, group_id: str | None = None) -> Sent:
        """Send an order event, and return when its queue has it: events that need an order one after the other.

        In a FIFO queue *group_id* names those, else each order of a tenant is a group. Raises `InvalidOperationError`,
        `NotSentError`.
        """
        message = plain(event)
        request_id = message["deduplicationId"] = message.get("deduplicationId") or _new_id()
        url = _required("priority_queue_url" if is_urgent else "order_queue_url", self._order_urls[is_urgent])
        order = f"{message.get('businessId')}-{message.get('locationId')}-{message.get('orderId') or request_id}"
        self._send_message(url, message, "type", group_id or order)
        return Sent(request_id, message["businessId"], message["locationId"])

    def send_control(self, message: ControlMessage) -> None:
        """Send a control message, and return when its queue has it. Raises `InvalidOperationError`, `NotSentError`."""
        sent = plain(message)
        sent["timestamp"] = sent.get("timestamp") or _now_text()
        group_id = f"{sent.get('businessId')}-{sent.get('locationId') or ''}"
        url = _required("control_queue_url", self._control_url)
        self._send_message(url, sent, "messageType", group_id)

    def _send_message(self, queue_url: str, message: Mapping[str, Any], kind_name: str, group_id: str) -> None:
        request = {"QueueUrl": queue_url, "MessageBody": _encode(message, kind_name).data.decode()}
        if queue_url.endswith(".fifo"):
            request["MessageGroupId"] = queue_id(group_id)
            # SQS drops an id that the queue had in the last five minutes, of any tenant, and also if that event became
            # a dead letter. So each call has its own: the SDK's tries share it, and the worker drops repetitions.
            request["MessageDeduplicationId"] = _new_id()
        try:
            self._sqs.send_message(**request)  # which tries again
        except (BotoCoreError, ClientError) as exc:
            raise NotSentError(message, _reason(exc), may_be_sent=not _is_refused(exc)) from exc

    # Outcomes

    def wait(self, sent: Sent, timeout_s: float = 60.0) -> Outcome:
        """Return the outcome of what succeeded, as soon as the worker has decided it.

        Raises:
            NotSentError: it was given up.
            OperationFailedError: *error* says why.
            OperationRejectedError, OperationLostError: it is a dead letter.
            WaitTimeoutError: it is not decided in that time.
            UnexpectedAnswerError: the token or the address is wrong.

        """
        deadline = time.monotonic() + timeout_s
        last = AskAgain(None, "Kinesis does not have it yet")
        try:
            sent_at = None if sent.accepted is None else sent.accepted.result(timeout_s).at
        except TimeoutError:
            raise WaitTimeoutError(*last) from None
        count = 0
        while (left_s := deadline - time.monotonic()) > 0:
            count += 1
            verdict, retry_after_s = self._ask(sent, sent_at, min(ANSWER_WITHIN_S, int(left_s)))
            match verdict:
                case Outcome():
                    return verdict
                case SimpluError():
                    raise verdict
                case AskAgain():
                    last = verdict
            pause_s = max(retry_after_s, ask_after_s(count, draw=random.random()))
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
        raise WaitTimeoutError(*last)

    def _ask(self, sent: Sent, sent_at: datetime | None, wait_s: int) -> tuple[Outcome | AskAgain | SimpluError, float]:
        query = {"businessId": sent.business_id, "locationId": sent.location_id, "wait": wait_s}
        url = urlsplit(_required("url", self._url))
        path = f"{url.path.rstrip('/')}/operations/{quote(sent.request_id, safe='')}?{urlencode(query)}"
        headers = {"Authorization": f"Bearer {_required('token', self._token)}"}
        connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = connect(url.netloc, timeout=wait_s + HTTP_MARGIN_S)
        try:
            connection.connect()
            with _cut_after(connection.sock, wait_s + HTTP_MARGIN_S) as is_cut:
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                text = response.read()
        except (OSError, http.client.HTTPException) as exc:
            return AskAgain(None, type(exc).__name__), 0.0
        finally:
            connection.close()
        if is_cut.is_set():
            return AskAgain(None, "TimeoutError"), 0.0
        after = response.headers.get("Retry-After", "")
        return judge(response.status, _object_of(text), sent_at), float(after) if after.isdigit() else 0.0


@contextmanager
def _cut_after(connection: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """End what is read from *connection* after a time: its own timeout begins anew with each byte of a reply."""
    is_cut = threading.Event()

    def cut() -> None:
        is_cut.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield is_cut
    finally:
        timer.cancel()


def _encode(message: Mapping[str, Any], kind_name: str, *, key: str = "") -> Encoded:
    encoded = encode(message, kind_name, key=key)
    if isinstance(encoded, InvalidMessage):
        raise InvalidOperationError(encoded.text)
    return encoded


def _required(name: str, value: str | None) -> str:
    if value is None:
        raise SimpluError(f"expected {name} among the client's arguments, got none")
    return value


def _object_of(text: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _is_refused(exc: Exception) -> bool:
    """Return whether an AWS service has certainly not done what was asked: by its status."""
    if not isinstance(exc, ClientError):
        return False
    metadata = cast("Mapping[str, Any]", exc.response).get("ResponseMetadata", {})
    return 400 <= int(metadata.get("HTTPStatusCode", 500)) < 500


def _reason(exc: Exception) -> str:
    return str(exc.response["Error"]["Code"]) if isinstance(exc, ClientError) else type(exc).__name__


def _new_id() -> str:
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def _now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
