"""Wait until operations that were sent are in the logs of the shards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from simplu_worker.commands.stream.input_lines import InputLine, LineReport, names_in
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import RejectedRecord
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.log import key_of_id
from simplu_worker.vocabulary import DeadLetterReason

POLL_MIN_S: Final = 0.25
POLL_REST: Final = 4  # a poll may take a fifth of the time
KEYS_PER_QUERY: Final = 5000

OperationKey = tuple[str, str]
"""A tenant id and a request id."""


class SendStatus(StrEnum):
    """The status of one line."""

    NOT_SENT = "not sent"
    SENT = "sent"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"  # not in the log in time: held, or a dead letter; or the command ended while it was put


class SendOutcome(LineReport, frozen=True, kw_only=True):
    """The outcome of one line; *result* is JSON text as Postgres wrote it."""

    status: SendStatus
    result: msgspec.Raw | None = None


class FoundOperations(NamedTuple):
    """The rows of the logs, with their `shard_id`; the shards that did not answer; and why none could be asked."""

    rows: Mapping[OperationKey, Mapping[str, Any]]
    silent_shard_ids: Sequence[str] = ()
    error: str | None = None


async def wait_for_outcomes(
    gateway: ShardGateway, lines: Sequence[InputLine], timeout_s: float, show: Callable[[int], None]
) -> FoundOperations:
    """Query the logs until they have all *lines*, for at most *timeout_s*; show how many, and return what was found."""
    deadline = time.monotonic() + timeout_s
    pending = {line.key for line in lines if line.key is not None}
    rows: dict[OperationKey, Mapping[str, Any]] = {}
    while True:
        started = time.monotonic()
        found = await find_operations(gateway, pending)
        rows |= found.rows
        pending -= rows.keys()
        show(len(rows))
        left_s = deadline - time.monotonic()
        if not pending or left_s <= 0:
            return found._replace(rows=rows)
        await asyncio.sleep(min(left_s, max(POLL_MIN_S, POLL_REST * (time.monotonic() - started))))


async def find_operations(gateway: ShardGateway, keys: Iterable[OperationKey]) -> FoundOperations:
    """Query all logs once."""
    ordered = sorted(keys)
    rows: dict[OperationKey, Mapping[str, Any]] = {}
    silent: set[str] = set()
    error: str | None = None
    for first in range(0, len(ordered), KEYS_PER_QUERY):
        some = ordered[first : first + KEYS_PER_QUERY]
        try:
            tenant_ids, requests = [key[0] for key in some], [key_of_id(key[1]) for key in some]
            survey = await gateway.lookups.survey("find_operations", tenant_ids, requests)
        except RetryableError as exc:
            error = str(exc)  # Citrus does not list the shards now: the next poll queries these keys again
            continue
        silent |= set(survey.silent_shard_ids)
        rows |= {(row["tenant_id"], row["request_id"]): row | {"shard_id": shard_id} for shard_id, row in survey.rows}
    return FoundOperations(rows, sorted(silent), error)


def outcome_of(line: InputLine, status: SendStatus, row: Mapping[str, Any] | None) -> SendOutcome:
    """Return the outcome of *line*, which was sent or not, by the *row* of a log, if one has it."""
    decoded, names = line.decoded, names_in(line)
    if isinstance(decoded, RejectedRecord):
        return SendOutcome(**names, status=status, error=f"{decoded.reason}: {decoded.error}")
    if row is None:
        return SendOutcome(**names, status=status)
    if bytes(row["digest"]) != decoded.digest:
        names |= {"status": SendStatus.FAILED, "error": DeadLetterReason.REQUEST_ID_REUSED}
    else:
        result = None if row["result"] is None else msgspec.Raw(row["result"].encode())
        names |= {"status": SendStatus(row["status"]), "error": row["error"], "result": result}
    return SendOutcome(**names, shard_id=row["shard_id"])
