"""JSON lines of operations and order events, completed, judged as by the worker. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage
from simplu_worker.consumers.kinesis.stream.aggregation import Part, parts_of_record
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.json_record import parse_record
from simplu_worker.operations.operation import KEY_MAX, Operation, Origin, RejectedRecord, partition_key_by
from simplu_worker.vocabulary import DeadLetterReason, PartitionKeyRule, Source

SQS_ID: Final = re.compile(r"[!-~]{1,128}")  # SQS API reference, SendMessage: alphanumeric and punctuation


_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class InputLine(msgspec.Struct, frozen=True):
    """A line, or a part of one, by its number; the *partition_key* of an order event is its group."""

    number: int
    record: bytes
    partition_key: str
    decoded: Operation | RejectedRecord

    @property
    def key(self) -> tuple[str, str] | None:
        """The tenant id and the request id; None for a rejected record."""
        if isinstance(self.decoded, RejectedRecord):
            return None
        return self.decoded.tenant_id, self.decoded.request_id


class LineReport(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """What a command prints of a line."""

    line: int
    request_id: str | None = None
    operation: str | None = None
    business_id: str | None = None
    location_id: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    shard_id: str | None = None
    error: str | None = None

    @property
    def tenant(self) -> str:
        """The tenant's names."""
        return " ".join(filter(None, (self.business_id, self.location_id)))

    @property
    def resource(self) -> str:
        """The type and the id."""
        return " ".join(filter(None, (self.resource_type, self.resource_id)))


def names_in(line: InputLine) -> dict[str, Any]:
    """Return the members of a `LineReport` that the line itself gives."""
    decoded = line.decoded
    names = {name: getattr(decoded, name) for name in ("request_id", "business_id", "location_id", "resource_id")}
    if isinstance(decoded, Operation):
        names |= {"operation": decoded.kind, "resource_type": decoded.resource_type}
    return names | {"line": line.number}


def parse_lines(
    text: bytes,
    *,
    now: datetime,
    new_id: Callable[[], str],
    max_bytes: int,
    list_limit: int,
    key_rule: PartitionKeyRule = PartitionKeyRule.RESOURCE_TYPE,
) -> list[InputLine]:
    """Return the lines of *text*, with missing request ids and timestamps. An array is taken apart as by the worker."""
    origin = Origin(source=Source.KINESIS, name="", arrived_at=now)
    defaults = {"timestamp": now.isoformat().replace("+00:00", "Z")}
    found: list[InputLine] = []
    for number, raw in _numbered(text):
        for part in parts_of_record(raw, "") or [Part("", raw)]:
            record = complete_record(part.data, {"requestId": new_id()} | defaults)
            decoded = decode_operation(record, origin, max_bytes=max_bytes, list_limit=list_limit)
            if part.refusal is not None:
                decoded = RejectedRecord(DeadLetterReason.TOO_LARGE, part.refusal, origin)
            found.append(InputLine(number, record, partition_key_of(decoded, number, key_rule), decoded))
    return found


def parse_events(text: bytes, *, now: datetime, new_id: Callable[[], str], rules: OrderRules) -> list[InputLine]:
    """Return order events, with missing ids. The group is `groupId`, else the order."""
    origin = Origin(source=Source.SQS, name="", arrived_at=now)
    found: list[InputLine] = []
    for number, raw in _numbered(text):
        record = complete_record(raw, {"deduplicationId": new_id()})
        decoded = decode_order(record.decode("utf-8", "replace"), {}, origin, rules, deduplication_id=None)
        group = msgspec.json.decode((_members(record) or {}).get("groupId", b"null"))
        names = decoded.business_id, decoded.location_id, decoded.resource_id
        key = group if group and isinstance(group, str) else _key_of(names, number)
        found.append(InputLine(number, record, key, decoded))
    return found


def _numbered(text: bytes) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(text.split(b"\n"), 1):
        if stripped := raw.strip():
            yield number, stripped


def _key_of(names: Iterable[str | None], number: int) -> str:
    return "-".join(filter(None, names)) or f"line-{number}"


def message_of(line: InputLine, *, is_fifo: bool, run_id: str) -> OutgoingMessage:
    """Return the message of an order event; a group that breaks the rules of SQS for ids is hashed.

    SQS drops an id that the queue had in the last five minutes, even another tenant's. So ids are new in each run; the
    worker drops repetitions.
    """
    own_id = hashlib.sha256(run_id.encode() + b"\0" + line.record).hexdigest()
    fifo = FifoIds(group_id=_sqs_id(line.partition_key), deduplication_id=own_id)
    return OutgoingMessage(body=line.record.decode("utf-8", "replace"), fifo=fifo if is_fifo else None)


def _sqs_id(text: str) -> str:
    return text if SQS_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()


def complete_record(record: bytes, defaults: Mapping[str, str]) -> bytes:
    """Return *record* with the *defaults* of missing members; unchanged without any, and if it is no JSON object."""
    members = _members(record)
    if members is None:
        return record
    missing = {name: value for name, value in defaults.items() if bytes(members.get(name, b"null")) == b"null"}
    return msgspec.json.encode(members | missing) if missing else record


def _members(record: bytes) -> dict[str, Any] | None:
    try:
        return parse_record(record, _members_decoder)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def partition_key_of(decoded: Operation | RejectedRecord, number: int, rule: PartitionKeyRule) -> str:
    """Return a record's partition key, hashed if too long; a rejected line without ids has its own."""
    if isinstance(decoded, Operation):
        key = partition_key_by(rule, decoded.tenant_id, decoded.resource_type)
    else:
        key = _key_of((decoded.business_id, decoded.location_id), number)
    return key if len(key) <= KEY_MAX else hashlib.sha256(key.encode()).hexdigest()
