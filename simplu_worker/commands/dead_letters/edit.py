"""A dead letter that a person corrects: its record is sent again as another operation, under a new request id. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.stream.aggregation import unpack
from simplu_worker.dead_letters.letter import ParsedDeadLetter
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import KEY_MAX, Operation, RejectedRecord, derived_request_id, partition_key_by
from simplu_worker.vocabulary import PartitionKeyRule, Source

REPLAY_MEMBER: Final = "simpluReplay"  # names the position of a record that is replayed under its own id

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class EditRules(msgspec.Struct, frozen=True):
    """The worker's stream, and its limits for operations."""

    stream: str | None
    key_rule: PartitionKeyRule
    operation_max_bytes: int
    list_result_limit: int


class EditedRecord(msgspec.Struct, frozen=True):
    """The record to send in place of a dead letter's; *old_request_id* is the id that the letter's operation had."""

    record: bytes
    partition_key: str
    operation: Operation
    old_request_id: str

    def facts(self) -> dict[str, Any]:
        """Return the members of the plan, without content."""
        one = self.operation
        return {
            "operation": one.kind,
            "businessId": one.business_id,
            "locationId": one.location_id,
            "resourceType": one.resource_type,
            "resourceId": one.resource_id,
            "requestId": one.request_id,
            "oldRequestId": self.old_request_id,
            "partitionKey": self.partition_key,
        }


class NotEditableError(Exception):
    """A dead letter that cannot be corrected here; the text is for people."""


def edit_record(parsed: ParsedDeadLetter, text: str, request_id: str, rules: EditRules) -> EditedRecord:
    """Return the record to send for a letter, whose record a person has replaced by *text*, under a new *request_id*.

    Raises NotEditableError for a letter of which that would lose a part, and ValueError for a text that would become a
    dead letter again.
    """
    _check_editable(parsed, rules)
    letter = parsed.letter
    try:
        members = _members_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise ValueError(f"record: expected a JSON object, got another text ({exc})") from None
    members.pop(REPLAY_MEMBER, None)
    members["requestId"] = msgspec.Raw(msgspec.json.encode(request_id))
    record = msgspec.json.encode(members)
    decoded = decode_operation(record, letter.origin, rules.operation_max_bytes, rules.list_result_limit)
    if isinstance(decoded, RejectedRecord):
        error = f"record: it would become a dead letter again ({decoded.reason}: {decoded.error})"
        raise ValueError(error)  # noqa: TRY004  (the text is at fault)
    old_request_id = letter.request_id or derived_request_id(letter.origin)
    if request_id == old_request_id:
        raise ValueError("requestId: expected a new one, got that of the dead letter, under which it would be dropped")
    key = partition_key_by(rules.key_rule, decoded.tenant_id, decoded.resource_type)
    return EditedRecord(record, key[:KEY_MAX], decoded, old_request_id)


def _check_editable(parsed: ParsedDeadLetter, rules: EditRules) -> None:
    letter, origin = parsed.letter, parsed.letter.origin
    if parsed.whole is not None:
        raise NotEditableError("the dead letter has only the beginning of its record: replay it, or have it sent anew")
    if origin.source is not Source.KINESIS:
        raise NotEditableError(
            "expected a record of the stream, got a message of a queue: have its producer correct it"
        )
    if origin.name != rules.stream:
        raise NotEditableError(f"expected KINESIS_STREAM_NAME to be {origin.name!r}, got {rules.stream!r}")
    is_whole_record = origin.part_index is None
    if letter.parts is not None or (
        is_whole_record and unpack(letter.record, origin.partition_key or "", origin.sub_sequence_number) is not None
    ):
        raise NotEditableError("the record has several operations, of which one text would replace all: replay it")
