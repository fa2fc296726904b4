"""Wait until operations that were sent are in the logs of the shards, and return their outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.commands.output.display import describe_silent
from simplu_worker.commands.output.progress import CountProgress
from simplu_worker.commands.stream.input_lines import InputLine
from simplu_worker.commands.stream.send_status import SendStatus, Undecided, describe_hold
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import Operation, RejectedRecord, tenant_id_of
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.log.keys import key_of_id
from simplu_worker.vocabulary import DeadLetterReason

POLL_MIN_S: Final = 0.25
POLL_REST: Final = 4  # a poll may take a fifth of the time
KEYS_PER_QUERY: Final = 5000
LOOK_AFTER_S: Final = 2.0  # without an outcome, at the tenants
LOOK_INTERVAL_S: Final = 5.0
HELD_SHOWN: Final = 3

OperationKey = tuple[str, str]
"""A tenant id and a request id."""

LookAtTenants: TypeAlias = Callable[[Collection[str]], Awaitable[Mapping[str, Undecided]]]


class SendOutcome(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The outcome of one line; *result* is JSON text as Postgres wrote it."""

    line: int
    status: SendStatus
    request_id: str | None = None
    operation: str | None = None
    business_id: str | None = None
    location_id: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    shard_id: str | None = None
    error: str | None = None
    result: msgspec.Raw | None = None
    reason: str | None = None
    since: datetime | None = None
    target: str | None = None
    read_up_to: datetime | None = None

    @property
    def remark(self) -> str | None:
        """The error; of a held operation why and since when it is held."""
        return self.error or describe_hold(self.reason, self.target, self.since)


@dataclass
class LastPoll:
    """The last query of all logs: the shards that did not answer, and the error if the shards could not be listed.

    *held* are the tenants that were held when they were looked at last, by their ids.
    """

    pending_count: int
    has_ended: bool = False
    silent_shard_ids: list[str] = field(default_factory=list)
    error: str | None = None
    held: Mapping[str, Undecided] = field(default_factory=dict)


def describe_poll(poll: LastPoll, errors: Mapping[str, str]) -> str:
    """Return what a command waits for; *errors* are those of shards that cannot be used, by their ids."""
    waiting = f"waiting for {poll.pending_count} operations"
    if poll.held:
        named = [f"{tenant_id} is held: {held.hold}" for tenant_id, held in sorted(poll.held.items())]
        more = len(named) - HELD_SHOWN
        waiting += f"; {', '.join(named[:HELD_SHOWN])}" + (f", and {more} tenants more" if more > 0 else "")
        if poll.error is None and not poll.silent_shard_ids and not errors:
            return waiting
    if poll.error is not None:
        return f"{waiting}; the shards were not listed: {poll.error}"
    if poll.silent_shard_ids or errors:
        return f"{waiting}; {describe_silent(sorted({*poll.silent_shard_ids, *errors}), errors)}"
    if not poll.has_ended:
        return f"{waiting}; the shards have not answered yet"
    return f"{waiting}; the shards answer, and no worker has applied them yet: see /status of the workers"


async def wait_for_outcomes(
    gateway: ShardGateway,
    lines: Sequence[InputLine],
    timeout_s: float,
    progress: CountProgress,
    poll: LastPoll,
    *,
    look: LookAtTenants,
) -> dict[OperationKey, dict[str, Any]]:
    """Query the logs until they have every line that is an operation, for at most *timeout_s*.

    Returns the rows of the logs, each with its `shard_id`. *poll* is kept up to date, with what *look* finds at the
    tenants of operations that make no progress.
    """
    deadline = time.monotonic() + timeout_s
    look_at = time.monotonic() + LOOK_AFTER_S
    pending = {line.key for line in lines if line.key is not None}
    rows: dict[OperationKey, dict[str, Any]] = {}
    while True:
        started = time.monotonic()
        found = await find_operations(gateway, pending, poll)
        rows |= found
        pending -= found.keys()
        poll.pending_count, poll.has_ended = len(pending), True
        progress.show(len(rows))
        if found:
            poll.held, look_at = {}, time.monotonic() + LOOK_AFTER_S
        elif pending and look_at < time.monotonic() < deadline:
            states = await look({tenant_id for tenant_id, _ in pending})
            held = {one: state for one, state in states.items() if state.reason is not None}
            poll.held = {one: _steadied(state, poll.held.get(one)) for one, state in held.items()}
            look_at = time.monotonic() + LOOK_INTERVAL_S
        left_s = deadline - time.monotonic()
        if not pending or left_s <= 0:
            return rows
        await asyncio.sleep(min(left_s, max(POLL_MIN_S, POLL_REST * (time.monotonic() - started))))


def _steadied(state: Undecided, before: Undecided | None) -> Undecided:
    """Return *state*, or *before* if it is the same hold: ages in reports are some seconds old, more or less."""
    if before is None or before.since is None or (before.reason, before.target) != (state.reason, state.target):
        return state
    return before


async def find_operations(
    gateway: ShardGateway, keys: Iterable[OperationKey], poll: LastPoll
) -> dict[OperationKey, dict[str, Any]]:
    """Query all logs once; return the rows that they have, each with its `shard_id`, and note in *poll* what failed."""
    ordered = sorted(keys)
    rows: dict[OperationKey, dict[str, Any]] = {}
    silent: set[str] = set()
    error: str | None = None
    for first in range(0, len(ordered), KEYS_PER_QUERY):
        some = ordered[first : first + KEYS_PER_QUERY]
        try:
            tenant_ids, requests = [key[0] for key in some], [key_of_id(key[1]) for key in some]
            survey = await gateway.survey("find_operations", tenant_ids, requests)
        except RetryableError as exc:
            error = str(exc)  # Citrus does not list the shards now: the next poll queries these keys again
            continue
        silent |= set(survey.silent_shard_ids)
        rows |= {(row["tenant_id"], row["request_id"]): row | {"shard_id": shard_id} for shard_id, row in survey.rows}
    poll.silent_shard_ids, poll.error = sorted(silent), error
    return rows


async def find_rejected(
    gateway: ShardGateway, keys: Collection[OperationKey], since: datetime
) -> dict[OperationKey, dict[str, Any]]:
    """Return rows like those of the log for records rejected after *since*; none where a shard does not answer."""
    try:
        found = await gateway.find_rejections(keys)
    except WorkerError:
        return {}  # the query of the logs has named it
    return {
        key: {"status": SendStatus.REJECTED, "shard_id": one.shard_id, "error": f"{one.reason}: {one.error}"}
        for key, one in found.items()
        if one.rejected_at > since
    }


def send_outcomes(
    sent: Iterable[InputLine],
    unsent: Iterable[InputLine],
    rows: Mapping[OperationKey, Mapping[str, Any]],
    *,
    waited: bool,
) -> list[SendOutcome]:
    """Return the outcome of each line, in order; *rows* are the rows that the logs have of the sent ones."""
    outcomes = [_outcome(line, rows.get(line.key) if line.key else None, waited=waited) for line in sent]
    return outcomes + [_describe(line, SendStatus.NOT_SENT) for line in unsent]


def interrupted_outcomes(lines: Sequence[InputLine], *, sent_count: int, under_way_count: int) -> list[SendOutcome]:
    """Return the outcomes of *lines* when the command ended before them: the first so many had been put by then.

    The lines of the request that was under way may be on the stream or not.
    """
    unknown_up_to = sent_count + under_way_count
    return [
        *(_describe(line, SendStatus.SENT) for line in lines[:sent_count]),
        *(_describe(line, SendStatus.UNKNOWN) for line in lines[sent_count:unknown_up_to]),
        *(_describe(line, SendStatus.NOT_SENT) for line in lines[unknown_up_to:]),
    ]


def with_undecided(outcome: SendOutcome, undecided: Mapping[str, Undecided]) -> SendOutcome:
    """Return an outcome with the state of its tenant, where no log has the operation; *undecided* is by tenant id."""
    if outcome.status is not SendStatus.UNKNOWN:
        return outcome
    known = undecided[tenant_id_of(outcome.business_id or "", outcome.location_id or "")]
    if known.reason is None:
        return msgspec.structs.replace(outcome, read_up_to=known.read_up_to)
    return msgspec.structs.replace(
        outcome, status=SendStatus.HELD, reason=known.reason, since=known.since, target=known.target
    )


def _outcome(line: InputLine, row: Mapping[str, Any] | None, *, waited: bool) -> SendOutcome:
    if isinstance(line.decoded, RejectedRecord) or not waited:
        return _describe(line, SendStatus.SENT)
    if row is None:
        return _describe(line, SendStatus.UNKNOWN)
    if row["status"] == SendStatus.REJECTED:
        outcome = _describe(line, SendStatus.REJECTED)
        return msgspec.structs.replace(outcome, shard_id=row["shard_id"], error=row["error"])
    if bytes(row["digest"]) != line.decoded.digest:
        outcome = _describe(line, SendStatus.FAILED)
        return msgspec.structs.replace(outcome, shard_id=row["shard_id"], error=DeadLetterReason.REQUEST_ID_REUSED)
    return msgspec.structs.replace(
        _describe(line, SendStatus(row["status"])),
        shard_id=row["shard_id"],
        error=row["error"],
        result=None if row["result"] is None else msgspec.Raw(row["result"].encode()),
    )


def _describe(line: InputLine, status: SendStatus) -> SendOutcome:
    match line.decoded:
        case Operation() as operation:
            return SendOutcome(
                line=line.number,
                status=status,
                request_id=operation.request_id,
                operation=operation.kind,
                business_id=operation.business_id,
                location_id=operation.location_id,
                resource_type=operation.resource_type,
                resource_id=operation.resource_id,
            )
        case RejectedRecord() as bad:
            return SendOutcome(
                line=line.number,
                status=status,
                request_id=bad.request_id,
                business_id=bad.business_id,
                location_id=bad.location_id,
                resource_id=bad.resource_id,
                error=f"{bad.reason}: {bad.error}",
            )
