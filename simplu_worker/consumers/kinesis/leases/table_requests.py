"""Requests to the tables of a Kinesis application in DynamoDB: measured, and with DynamoDB's errors as ours."""

from __future__ import annotations

import time
from itertools import product
from typing import Any, TypedDict

import msgspec

from simplu_worker.aws.clients import AWS_ERRORS, Client, error_code, translate
from simplu_worker.aws.replies import DECODERS
from simplu_worker.consumers.kinesis.leases.lease import LeaseRow
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics.instruments import DYNAMODB_REQUEST

_OPERATIONS = ("scan", "put_item", "update_item", "delete_item", "get_item", "create_table", "describe_table")
for _labels in product(_OPERATIONS, ("ok", "error", "condition_failed", "missing")):
    DYNAMODB_REQUEST.labels(*_labels)


class ConditionFailedError(Exception):
    """The row was not as expected; *row* is the actual one, if DynamoDB sent it."""

    def __init__(self, row: LeaseRow | None) -> None:
        super().__init__()
        self.row = row


class TableMissingError(PermanentError):
    """The table does not exist."""


class TableInUseError(RetryableError):
    """The table is in a state that does not allow this now."""


class TableRequests:
    """Makes requests over *client*, each with one try."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"TableRequests({self._client!r})"

    async def call(self, table: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Make one measured request to *table*; return the reply.

        Raises ConditionFailedError, and RetryableError or PermanentError by DynamoDB's error.
        """
        started_at = time.perf_counter()
        outcome = "error"
        try:
            reply: dict[str, Any] = await getattr(self._client, operation)(TableName=table, **arguments)
            outcome = "ok"
        except AWS_ERRORS as exc:
            match error_code(exc):
                case "ConditionalCheckFailedException":
                    outcome = "condition_failed"
                    raise ConditionFailedError(getattr(exc, "response", {}).get("Item")) from exc
                case "ResourceNotFoundException":
                    outcome = "missing"  # as the tables of a KCL 3.x are, where there is none
                    raise TableMissingError(f"table {table}: expected it to exist, it does not") from exc
                case "ResourceInUseException":
                    raise TableInUseError(f"table {table} is being created, changed or deleted") from exc
            raise translate(exc) from exc
        finally:
            DYNAMODB_REQUEST.labels(operation, outcome).observe(time.perf_counter() - started_at)
        return reply


class _Reply(TypedDict, total=False):
    """The members of a reply that are read; others are left out."""

    Attributes: dict[str, dict[str, Any]] | None
    ConsumedCapacity: dict[str, Any] | None
    Items: list[dict[str, dict[str, Any]]] | None
    LastEvaluatedKey: dict[str, dict[str, Any]] | None


_reply_decoder = msgspec.json.Decoder(_Reply)


def decode_rows(body: bytes) -> dict[str, Any]:
    """Return a reply with rows as botocore would, but with binary values as text. Raises msgspec.DecodeError."""
    return {name: value for name, value in _reply_decoder.decode(body).items() if value is not None}


# Of rows botocore parses each value by the service's model: a renewal takes a fifth longer, a scan twice as long.
DECODERS |= dict.fromkeys(("Scan", "UpdateItem"), decode_rows)
