"""The tables in DynamoDB that are shared with the Kinesis Client Library: leases, and in 3.x its leader and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Collection, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any, Final, TypedDict

import msgspec
import structlog

from simplu_worker.aws.clients import AWS_ERRORS, DECODERS, Client, error_code, translate
from simplu_worker.consumers.kinesis.leases import kcl_leader
from simplu_worker.consumers.kinesis.leases import lease as rows
from simplu_worker.consumers.kinesis.leases.lease import Lease, LeaseRow, Progress, ReadAhead
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import DYNAMODB_REQUEST
from simplu_worker.timing.clock import UtcClock

_OPERATIONS = ("scan", "put_item", "update_item", "delete_item", "get_item", "create_table", "describe_table")
for _labels in product(_OPERATIONS, ("ok", "error", "condition_failed", "missing")):
    DYNAMODB_REQUEST.labels(*_labels)


class ConditionFailedError(Exception):
    """The row was not as expected; *row* is the actual one, if sent."""

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

    async def call(self, table: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Make one measured request; return the reply."""
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

    async def scan(self, table: str, **arguments: Any) -> tuple[list[LeaseRow], float]:
        """Return all rows, and the read capacity that they took."""
        found: list[LeaseRow] = []
        units = 0.0
        page: dict[str, Any] = {}
        while True:
            reply = await self.call(table, "scan", **arguments, **page)
            found += reply["Items"]
            units += reply.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
            if not reply.get("LastEvaluatedKey"):
                return found, units
            page = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}


class _Reply(TypedDict, total=False):
    """The members of a reply that are read; others are left out."""

    Attributes: dict[str, dict[str, Any]] | None
    ConsumedCapacity: dict[str, Any] | None
    Items: list[dict[str, dict[str, Any]]] | None
    LastEvaluatedKey: dict[str, dict[str, Any]] | None


_reply_decoder = msgspec.json.Decoder(_Reply)


def decode_rows(body: bytes) -> dict[str, Any]:
    """Return a reply with rows, binary values as text. Raises msgspec.DecodeError."""
    return {name: value for name, value in _reply_decoder.decode(body).items() if value is not None}


# Of rows botocore parses each value by the service's model: a renewal takes a fifth longer, a scan twice as long.
DECODERS |= dict.fromkeys(("Scan", "UpdateItem"), decode_rows)


log = structlog.get_logger(__name__)

KEY = "leaseKey"
OWNER_INDEX = "LeaseOwnerToLeaseKeyIndex"  # a KCL 3.x that takes the table over waits until it has this index
TABLE_DEFINITION: Final[Mapping[str, Any]] = {
    "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in (KEY, "leaseOwner")],
    "KeySchema": [{"AttributeName": KEY, "KeyType": "HASH"}],
    "GlobalSecondaryIndexes": [
        {
            "IndexName": OWNER_INDEX,
            "KeySchema": [
                {"AttributeName": "leaseOwner", "KeyType": "HASH"},
                {"AttributeName": KEY, "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        },
    ],
}
READY_STATES = frozenset({"ACTIVE", "UPDATING"})
PASSING_STATES = frozenset({"CREATING", "DELETING"})  # the others last until a person acts
STATE_POLL_INTERVAL_S = 0.5


class LeaseTable:
    """The rows of the lease table *name*; all methods raise RetryableError or PermanentError.

    A write that raised RetryableError may have landed; its repetition with the same lease finds out.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.requests = TableRequests(client)
        self._unreadable: dict[str, str] = {}  # what is wrong with a row, by lease key
        self.other_rows: Sequence[LeaseRow] = ()  # of the last scan: those of the KCL 3.5 that are not leases
        self.scan_capacity = 0.0  # of the last scan, in read capacity units

    async def ensure(self) -> None:
        """Create the table unless it exists, and wait until it is ready."""
        while True:
            try:
                table = (await self.requests.call(self.name, "describe_table"))["Table"]
            except TableMissingError:
                with contextlib.suppress(TableInUseError):  # another replica was faster
                    await self.requests.call(self.name, "create_table", **TABLE_DEFINITION)
                    log.info("lease_table.created", table=self.name)
                continue
            if (state := table["TableStatus"]) in READY_STATES:
                return self._check_key(table)
            if state not in PASSING_STATES:
                raise RetryableError(
                    f"table {self.name}: expected one that can be used, got {state}; enable its KMS key, or restore it"
                )
            await asyncio.sleep(STATE_POLL_INTERVAL_S)

    async def scan(self, *, is_consistent: bool = False) -> list[Lease]:
        """Return all leases, without rows of other kinds (`other_rows`) and unreadable ones (logged once).

        Unless *is_consistent*, a row may be a second old. Raises PermanentError if no row can be read.
        """
        found, self.scan_capacity = await self.requests.scan(
            self.name, ReturnConsumedCapacity="TOTAL", ConsistentRead=is_consistent
        )
        self.other_rows = [row for row in found if not rows.is_lease(row)]
        leases = [lease for row in found if (lease := self._parse(row))]
        if self._unreadable and not leases:
            lease_key, problem = next(iter(self._unreadable.items()))
            raise PermanentError(
                f"table {self.name}: no row is a lease as the KCL writes it, such as {lease_key} ({problem}); correct "
                "the rows, or set KINESIS_APPLICATION_NAME to a name of its own"
            )
        return leases

    async def find(self, lease_key: str) -> Lease | None:
        """Return a lease by a consistent read; None without a row. Raises RetryableError for one that is unreadable."""
        reply = await self.requests.call(self.name, "get_item", Key={KEY: {"S": lease_key}}, ConsistentRead=True)
        lease = self._parse(reply.get("Item"))
        if lease is None and lease_key in self._unreadable:
            raise RetryableError(f"table {self.name}: the lease {lease_key} cannot be read; correct its row")
        return lease

    async def create(self, lease: Lease) -> bool:
        """Write *lease* as a new row; return False when there is one."""
        condition = f"attribute_not_exists({KEY})"
        return await _is_met(
            self.requests.call(self.name, "put_item", Item=rows.row_of(lease), ConditionExpression=condition)
        )

    async def take(
        self, lease: Lease, me: str, *, start_at: datetime | None = None, is_assigned: bool = False
    ) -> Lease | None:
        """Make *me* the owner; return the lease as written, or None when its counter has moved.

        *start_at* pins the start of an unread lease, unless it is pinned already. Where *is_assigned* by a KCL 3.x
        leader, it has to be so still: a leader that assigns it again leaves the counter.
        """
        attributes = {"leaseCounter": _number(lease.counter + 1), "checkpointOwner": None, rows.UNABLE: None}
        switch = _number(0 if lease.actual_owner == me else 1)
        changes = _Changes(me, attributes, counter=_number(lease.counter), switch=switch)
        changes.sets += ["leaseOwner = :me", f"{rows.METERED_BY} = :me"]
        if start_at is not None:
            changes.sets.append(f"{rows.STARTED_AT} = if_not_exists({rows.STARTED_AT}, :started)")
            changes.values[":started"] = {"S": start_at.isoformat()}
        update = f"{changes.expression()} ADD {rows.SWITCHES} :switch"
        condition = "leaseCounter = :counter"
        if is_assigned:
            condition += " AND leaseOwner = :me AND attribute_not_exists(checkpointOwner)"
        try:
            return await self._update(lease.lease_key, update, condition, changes.values)
        except ConditionFailedError as failed:
            row = self._parse(failed.row)
        return row if row is not None and rows.is_own_landed_write(lease, row, me=me) else None

    async def renew(self, lease: Lease, me: str, progress: Progress = Progress()) -> Lease | None:  # noqa: B008  (frozen)
        """Renew a lease that *me* holds, with its progress; return it as written, None when another owner has it.

        With a `checkpoint_owner` (*me*), another worker waits for `release`. An earlier try that landed without an
        answer counts as this one; where it wrote less, this try is written over it.
        """
        attributes = progress.attributes(me) | {"leaseCounter": _number(lease.counter + 1)}
        changes = _Changes(me, attributes, counter=_number(lease.counter))
        condition = f"leaseCounter = :counter AND {self._held_condition(lease)}"
        try:
            return await self._update(lease.lease_key, changes.expression(), condition, changes.values)
        except ConditionFailedError as failed:
            row = self._parse(failed.row)
        if row is not None and rows.has_hand_over_begun(lease, row, me=me) and row.counter == lease.counter:
            return await self.renew(row, me, progress)
        if row is None or not rows.is_own_landed_write(lease, row, me=me):
            return None
        if (left := progress.after(row)) is None:
            return row
        try:
            return await self.renew(row, me, left)
        except RetryableError:
            return row  # it is renewed; the next renewal writes the rest, and recognises this one if it landed

    async def release(
        self, lease: Lease, me: str, checkpoint: positions.Position | None, ahead: ReadAhead | None
    ) -> bool:
        """Release a lease of *me*, with its last progress; return False when *me* does not hold it.

        One that a KCL 3.x leader has assigned to another worker stays that worker's. The write expects the owner and
        not the counter, so a renewal in flight does no harm.
        """
        owner = "leaseOwner" if lease.checkpoint_owner is None else "checkpointOwner"
        changes = _Changes(me, {owner: None} | rows.position_attributes(checkpoint, ahead), one=_number(1))
        update = f"{changes.expression()} ADD leaseCounter :one"
        try:
            await self._update(lease.lease_key, update, self._held_condition(lease), changes.values)
        except ConditionFailedError as failed:
            row = self._parse(failed.row)
        else:
            return True
        if row is not None and rows.has_hand_over_begun(lease, row, me=me):
            return await self.release(row, me, checkpoint, ahead)
        next_owner = None if lease.checkpoint_owner is None else lease.owner
        return row is not None and row.actual_owner == next_owner and checkpoint in (None, row.checkpoint)

    async def write_retry(self, lease: Lease, retry: str) -> bool:
        """Write a person's request to the owner of *lease*; return False when that is another now."""
        values = {":retry": {"S": retry}, ":me": {"S": lease.actual_owner}}
        return await _is_met(
            self._update(lease.lease_key, f"SET {rows.RETRY} = :retry", self._held_condition(lease), values)
        )

    async def write_children(self, lease_key: str, children: Collection[str]) -> None:
        """Write the *children* of a stream shard that has ended."""
        await self._write_fact(lease_key, "SET childShardIds = :children", {":children": {"SS": sorted(children)}})

    async def write_hash_range(self, lease_key: str, hash_range: positions.HashRange) -> None:
        """Write the hash range."""
        values = {":first": {"S": str(hash_range.first)}, ":last": {"S": str(hash_range.last)}}
        await self._write_fact(lease_key, "SET startingHashKey = :first, endingHashKey = :last", values)

    async def delete(self, lease: Lease) -> bool:
        """Delete the row unless it was written since; return whether it was deleted."""
        return await _is_met(
            self.requests.call(
                self.name,
                "delete_item",
                Key={KEY: {"S": lease.lease_key}},
                ConditionExpression="leaseCounter = :counter",
                ExpressionAttributeValues={":counter": _number(lease.counter)},
            )
        )

    async def _write_fact(self, lease_key: str, update: str, values: dict[str, Any]) -> None:
        # The stream says the same to everybody, so any replica may write it; half a row must not come back.
        await _is_met(self._update(lease_key, update, f"attribute_exists({KEY})", values))

    def _check_key(self, table: dict[str, Any]) -> None:
        key = [(part["AttributeName"], part["KeyType"]) for part in table["KeySchema"]]
        if key != [(KEY, "HASH")]:
            raise PermanentError(
                f"table {self.name}: expected a lease table with the key {KEY}, got the key {key}; "
                "set KINESIS_APPLICATION_NAME to a name that no other table has",
            )

    def _held_condition(self, lease: Lease) -> str:
        # No hand-over has begun since it was read.
        if lease.checkpoint_owner is None:
            return "leaseOwner = :me AND attribute_not_exists(checkpointOwner)"
        return "checkpointOwner = :me"

    async def _update(self, lease_key: str, update: str, condition: str, values: dict[str, Any]) -> Lease | None:
        reply = await self.requests.call(
            self.name,
            "update_item",
            Key={KEY: {"S": lease_key}},
            UpdateExpression=update,
            ConditionExpression=condition,
            ExpressionAttributeValues=values,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        return self._parse(reply["Attributes"])

    def _parse(self, row: LeaseRow | None) -> Lease | None:
        if row is None:
            return None
        lease_key = str(row[KEY]["S"])
        try:
            lease = rows.lease_of(row)
        except ValueError as exc:
            if lease_key not in self._unreadable:
                log.warning("lease.unreadable", lease_key=lease_key, problem=str(exc))
            self._unreadable[lease_key] = str(exc)
            return None
        self._unreadable.pop(lease_key, None)
        return lease


async def _is_met(request: Awaitable[object]) -> bool:
    # Whether the condition of a request was met.
    try:
        await request
    except ConditionFailedError:
        return False
    return True


def _number(value: int) -> dict[str, str]:
    return {"N": str(value)}


class _Changes:
    """An update of a row: sets *attributes*, but removes those that are None; its condition may name *values*."""

    def __init__(self, me: str, attributes: Mapping[str, Any], **values: dict[str, Any]) -> None:
        self.sets = [f"{name} = :{name}" for name, value in attributes.items() if value is not None]
        self.removes = [name for name, value in attributes.items() if value is None]
        values |= {"me": {"S": me}} | {name: value for name, value in attributes.items() if value is not None}
        self.values: dict[str, Any] = {f":{name}": value for name, value in values.items()}

    def expression(self) -> str:
        parts = {"SET": self.sets, "REMOVE": self.removes}
        return " ".join(f"{verb} {', '.join(clauses)}" for verb, clauses in parts.items() if clauses)


CHECK_INTERVAL_S: Final = 35.0  # a live leader writes a new version every 30 s, a live worker new metrics
OWNERS_NAMED: Final = 3


class KclLeaderWatch:
    """Knows whether a live leader of the KCL 3.x assigns the leases."""

    def __init__(
        self,
        table: LeaseTable,
        coordinator: str | None = None,
        worker_metrics: str | None = None,
        *,
        follows: bool = False,
    ) -> None:
        """With *follows* the replica takes what the leader assigns to it.

        The KCL has a table of its *coordinator* and of *worker_metrics* until they are moved into the lease table; None
        is the name that it derives.
        """
        self.table = table
        self.coordinator = coordinator or f"{table.name}-CoordinatorState"
        self.worker_metrics = worker_metrics or f"{table.name}-WorkerMetricStats"
        self.follows = follows
        self._states: tuple[kcl_leader.KclState, ...] = ()  # at the last looks, newest first
        self._owners: list[str] = []
        self._refusal: str | None = None  # at the last look

    @property
    def is_leading(self) -> bool:
        """Whether a live leader assigns the leases."""
        return bool(self._leading_owners())

    @property
    def state(self) -> kcl_leader.KclState | None:
        """The state at the last look; None before."""
        return next(iter(self._states), None)

    @property
    def leaders(self) -> str | None:
        """The names of the leader, or of live workers while there is none; None without any."""
        owners = self._leading_owners()
        return ", ".join(owners[:OWNERS_NAMED]) + (", …" if len(owners) > OWNERS_NAMED else "") if owners else None

    @property
    def trouble(self) -> str | None:
        """Why this replica takes no leases; None when it may."""
        if (names := self.leaders) is None:
            return self._refusal
        if self.follows:
            return None
        return (
            f"table {self.table.name}: the Kinesis Client Library 3.x at {names} assigns its leases; "
            "stop that application, set KINESIS_APPLICATION_NAME to another name, or KINESIS_KCL_FOLLOWER=true to be "
            "assigned leases by it"
        )

    @property
    def outlook(self) -> str | None:
        """What the KCL's application is about to do; None when that is nothing, or it leads already."""
        state = self.state
        text = None if state is None or self.is_leading or self.follows else kcl_leader.outlook_of(state)
        return text and f"table {self.table.name}: {text}"

    async def check(self) -> None:
        """Look for a leader in the last scan of the lease table, and in the KCL's other tables.

        A table that may not be read is `trouble`, unless the others show a leader.

        Raises RetryableError, and keeps the last result then.
        """
        refusals: list[str] = []
        found = [
            (self.table.name, self.table.other_rows),
            (self.coordinator, await self._scan(self.coordinator, refusals)),
        ]
        if kcl_leader.state_of(found).is_version_leading:  # else the workers do not matter
            found.append((self.worker_metrics, await self._scan(self.worker_metrics, refusals)))
        state = kcl_leader.state_of(found)
        self._owners = kcl_leader.leading_owners(state, self._states)
        self._states = (state, *self._states)[: kcl_leader.LOOKS]
        self._refusal = next(iter(refusals), None)

    def _leading_owners(self) -> list[str]:
        scanned = kcl_leader.state_of([(self.table.name, self.table.other_rows)])
        return self._owners or kcl_leader.new_leaders(scanned, self.state)

    async def _scan(self, table: str, refusals: list[str]) -> Sequence[LeaseRow]:
        try:
            found, _ = await self.table.requests.scan(table, ConsistentRead=True)
        except TableMissingError:
            return ()
        except PermanentError as exc:
            log.warning("kcl_leader.unread", table=table, error=str(exc))
            refusals.append(
                f"table {table}: it may not be read ({exc}), and it would show a leader of the Kinesis Client Library "
                "3.x; no lease is taken; allow dynamodb:Scan on it"
            )
            return ()
        return found


REPORT_INTERVAL_S: Final = 10.0  # the KCL reports every 30 s by default, and calls a worker dead after two intervals
METRICS_KEY: Final = "wid"  # of the table that only has worker metrics


class KclFollower:
    """The row of this replica's metrics: a leader of the KCL 3.x gives leases to workers with a fresh one only."""

    def __init__(self, watch: KclLeaderWatch, *, me: str, utc: UtcClock) -> None:
        self._requests = watch.table.requests
        self._watch = watch
        self._me = me
        self._utc = utc
        self._measured = time.process_time(), time.monotonic()
        self._percents: deque[float] = deque(maxlen=kcl_leader.VALUES_MAX)
        self._written: tuple[str, str] | None = None  # the table with the row, and its key
        self.trouble: str | None = None

    async def report(self) -> None:
        """Write the metrics where the KCL reads them. A failure is `trouble`."""
        before, self._measured = self._measured, (time.process_time(), time.monotonic())
        self._percents.append(kcl_leader.cpu_percent(before, self._measured))
        self.trouble = None
        state = self._watch.state
        if state is None or not kcl_leader.is_reporting_wanted(state):
            return
        try:
            await self._write(state)
        except (RetryableError, PermanentError) as exc:
            self.trouble = f"the metrics for the Kinesis Client Library 3.x could not be written: {exc}"
            log.warning("kcl_follower.unreported", error=str(exc))

    async def leave(self) -> None:
        """Delete the row; if that fails, it expires."""
        if self._written is None:
            return
        table, key_name = self._written
        with contextlib.suppress(RetryableError, PermanentError):
            await self._requests.call(table, "delete_item", Key={key_name: {"S": self._me}})
        self._written = None

    async def _write(self, state: kcl_leader.KclState) -> None:
        # A KCL before 3.5 expects no such rows among the leases; an application that began with 3.5 has no other table.
        lease_table = self._watch.table.name
        if not kcl_leader.has_moved_metrics(state):
            try:
                return await self._put(self._watch.worker_metrics, METRICS_KEY)
            except TableMissingError:
                if lease_table not in state.version_tables:
                    raise
        return await self._put(lease_table, KEY)

    async def _put(self, table: str, key_name: str) -> None:
        row = kcl_leader.metrics_row(key_name, self._me, list(self._percents), at_s=int(self._utc().timestamp()))
        await self._requests.call(table, "put_item", Item=row)
        self._written = table, key_name
