"""Wait until operations that were sent are in the logs of the shards; else find out why they are not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from simplu_worker.assembly.aws import open_leases
from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.output import describe_silent, print_note
from simplu_worker.commands.stream.input_lines import InputLine, LineReport, names_in
from simplu_worker.commands.stream.send_status import SendStatus, Undecided
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fleet.fleet_report import hold_reason, read_status
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import RejectedRecord, tenant_id_of
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.log import key_of_id
from simplu_worker.shards.types import StreamShards
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import Absence, DeadLetterReason

LOOK_UP_S: Final = 10.0  # for all tenants together


async def find_undecided(
    settings: Settings, shards: Shards, tenant_ids: Collection[str], *, is_stream: bool = True
) -> dict[str, Undecided]:
    """Return the state of each tenant; less of it where a service does not answer.

    Ask before the log is read: an operation applied in between must not count as decided and absent.
    """
    leases = await _read_leases(settings) if is_stream and tenant_ids else []
    known = dict.fromkeys(tenant_ids, Undecided())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_UP_S):
            for tenant_id in tenant_ids:
                known[tenant_id] = await _find_one(settings, shards, leases, tenant_id)
    return known


async def _find_one(settings: Settings, shards: Shards, leases: Sequence[Lease], tenant_id: str) -> Undecided:
    status = read_status(leases, tenant_id)
    stream_name = (settings.kinesis_stream_name or "").rpartition("/")[2]
    gateway = shards.gateway
    try:
        found = await gateway.lookups.read_positions_at_home(
            tenant_id, StreamShards(stream_name, status.stream_shard_ids)
        )
    except WorkerError:  # the survey of the shards has named every server without an answer
        shard_id, undecided = None, Undecided()
        with contextlib.suppress(WorkerError):
            address = await shards.locator.locate(tenant_id)
            shard_id = None if address is None else address.shard_id
    else:
        absence = found if isinstance(found, Absence) else None
        reason = hold_reason(absence, status, is_paused=gateway.paused_s(tenant_id) > 0)
        read_up_to = None if reason or isinstance(found, Absence) else status.up_to([found])
        shard_id, undecided = gateway.cached_shard_id(tenant_id), Undecided(reason, read_up_to)
    return with_report(undecided, leases, tenant_id, shard_id, now=utc_now())


def with_report(
    undecided: Undecided, leases: Iterable[Lease], tenant_id: str, shard_id: str | None, *, now: datetime
) -> Undecided:
    """Return *undecided* with the oldest hold of the tenant or its shard that replicas have reported. Pure."""
    names = {f"tenant {tenant_id}", *(() if shard_id is None else (f"shard {shard_id}",))}
    held = [one for lease in leases if lease.report is not None for one in lease.report.held if one.target in names]
    if not held:
        return undecided
    oldest = max(held, key=lambda one: one.age_s)
    return Undecided(oldest.reason, since=now - timedelta(seconds=oldest.age_s), target=oldest.target)


async def _read_leases(settings: Settings) -> list[Lease]:
    if settings.kinesis_stream_name is None:
        return []
    try:
        async with open_leases(settings) as (table, _):
            return await table.scan()
    except WorkerError as exc:
        print_note(f"how far the stream is read is not known: {exc}")
        return []


POLL_MIN_S: Final = 0.25
POLL_REST: Final = 4  # a poll may take a fifth of the time
KEYS_PER_QUERY: Final = 5000

OperationKey = tuple[str, str]
"""A tenant id and a request id."""


class SendOutcome(LineReport, frozen=True, kw_only=True):
    """The outcome of one line; *result* is JSON text as Postgres wrote it."""

    status: SendStatus
    result: msgspec.Raw | None = None
    reason: str | None = None
    since: datetime | None = None
    target: str | None = None
    read_up_to: datetime | None = None

    @property
    def remark(self) -> str | None:
        """The error, or the hold."""
        return self.error or Undecided(self.reason, since=self.since, target=self.target).hold


@dataclass
class LastPoll:
    """What became of the last query of all logs."""

    silent_shard_ids: list[str] = field(default_factory=list)
    error: str | None = None


def describe_poll(poll: LastPoll, errors: Mapping[str, str]) -> str:
    """Return for what a command waits; *errors* are those of unusable shards, by id."""
    if poll.error is not None:
        return f"the shards were not listed: {poll.error}"
    if silent := sorted({*poll.silent_shard_ids, *errors}):
        return describe_silent({one: errors.get(one, "") for one in silent})
    return "the shards answer, and no worker has applied the others yet: see /status of the workers"


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


async def find_rejected(
    gateway: ShardGateway, keys: Collection[OperationKey], since: datetime
) -> dict[OperationKey, dict[str, Any]]:
    """Return rows like the log's for records rejected after *since*."""
    try:
        found = await gateway.lookups.find_rejections(keys)
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
    """Return the outcome of each line, in order; *rows* are those of the logs."""
    outcomes = [_outcome(line, rows.get(line.key) if line.key else None, waited=waited) for line in sent]
    return outcomes + [_describe(line, SendStatus.NOT_SENT) for line in unsent]


def interrupted_outcomes(lines: Sequence[InputLine], *, sent_count: int, under_way_count: int) -> list[SendOutcome]:
    """Return the outcomes of *lines* so far: those of the request under way may be on the stream or not."""
    unknown_up_to = sent_count + under_way_count
    return [
        *(_describe(line, SendStatus.SENT) for line in lines[:sent_count]),
        *(_describe(line, SendStatus.UNKNOWN) for line in lines[sent_count:unknown_up_to]),
        *(_describe(line, SendStatus.NOT_SENT) for line in lines[unknown_up_to:]),
    ]


def with_undecided(outcome: SendOutcome, undecided: Mapping[str, Undecided]) -> SendOutcome:
    """Return an outcome with the state of its tenant, where no log has the operation."""
    if outcome.status is not SendStatus.UNKNOWN:
        return outcome
    known = undecided[tenant_id_of(outcome.business_id or "", outcome.location_id or "")]
    status = SendStatus.UNKNOWN if known.reason is None else SendStatus.HELD
    return msgspec.structs.replace(outcome, status=status, **msgspec.structs.asdict(known))


def _outcome(line: InputLine, row: Mapping[str, Any] | None, *, waited: bool) -> SendOutcome:
    if isinstance(line.decoded, RejectedRecord) or not waited:
        return _describe(line, SendStatus.SENT)
    if row is None:
        return _describe(line, SendStatus.UNKNOWN)
    outcome = _describe(line, SendStatus(row["status"]), shard_id=row["shard_id"], error=row["error"])
    if outcome.status is SendStatus.REJECTED:
        return outcome
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
