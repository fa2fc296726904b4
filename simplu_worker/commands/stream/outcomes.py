"""Wait until operations that were sent are in the logs of the shards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

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


@dataclass
class LastPoll:
    """What became of the last query of all logs."""

    silent_shard_ids: list[str] = field(default_factory=list)
    error: str | None = None


async def wait_for_outcomes(
    gateway: ShardGateway, lines: Sequence[InputLine], timeout_s: float, show: Callable[[int], None], poll: LastPoll
) -> dict[OperationKey, dict[str, Any]]:
    """Query the logs until they have all *lines*, for at most *timeout_s*; show how many, and return their rows."""
    deadline = time.monotonic() + timeout_s
    pending = {line.key for line in lines if line.key is not None}
    rows: dict[OperationKey, dict[str, Any]] = {}
    while True:
        started = time.monotonic()
        rows |= await find_operations(gateway, pending, poll)
        pending -= rows.keys()
        show(len(rows))
        left_s = deadline - time.monotonic()
        if not pending or left_s <= 0:
            return rows
        await asyncio.sleep(min(left_s, max(POLL_MIN_S, POLL_REST * (time.monotonic() - started))))


async def find_operations(
    gateway: ShardGateway, keys: Iterable[OperationKey], poll: LastPoll
) -> dict[OperationKey, dict[str, Any]]:
    """Query all logs once; return their rows with their `shard_id`; note in *poll* what failed."""
    ordered = sorted(keys)
    rows: dict[OperationKey, dict[str, Any]] = {}
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
    poll.silent_shard_ids, poll.error = sorted(silent), error
    return rows


def send_outcomes(
    lines: Sequence[InputLine],
    done: int,
    under_way: int = 0,
    rows: Mapping[OperationKey, Mapping[str, Any]] | None = None,
) -> list[SendOutcome]:
    """Return the outcomes of *lines*, of which so many were put, and others may be put or not.

    *rows* are those of the logs; None without a wait.
    """
    outcomes = [_outcome(line, rows) for line in lines[:done]]
    outcomes += [_describe(line, SendStatus.UNKNOWN) for line in lines[done : done + under_way]]
    return outcomes + [_describe(line, SendStatus.NOT_SENT) for line in lines[done + under_way :]]


def _outcome(line: InputLine, rows: Mapping[OperationKey, Mapping[str, Any]] | None) -> SendOutcome:
    if isinstance(line.decoded, RejectedRecord) or rows is None:
        return _describe(line, SendStatus.SENT)
    if (row := rows.get((line.decoded.tenant_id, line.decoded.request_id))) is None:
        return _describe(line, SendStatus.UNKNOWN)
    outcome = _describe(line, SendStatus(row["status"]), shard_id=row["shard_id"], error=row["error"])
    if bytes(row["digest"]) != line.decoded.digest:
        return msgspec.structs.replace(outcome, status=SendStatus.FAILED, error=DeadLetterReason.REQUEST_ID_REUSED)
    result = row["result"]
    return outcome if result is None else msgspec.structs.replace(outcome, result=msgspec.Raw(result.encode()))


def _describe(
    line: InputLine, status: SendStatus, *, shard_id: str | None = None, error: str | None = None
) -> SendOutcome:
    if isinstance(line.decoded, RejectedRecord):
        error = f"{line.decoded.reason}: {line.decoded.error}"
    return SendOutcome(**names_in(line), status=status, shard_id=shard_id, error=error)
