"""The lease table in DynamoDB, shared with the Kinesis Client Library."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import product
from typing import Any, Final, TypedDict

import msgspec
import structlog

from simplu_worker.aws.clients import AWS_ERRORS, DECODERS, Client, error_code, translate
from simplu_worker.consumers.kinesis.leases import shard_tree
from simplu_worker.consumers.kinesis.leases.lease import (
    HELD,
    METERED_BY,
    PENDING_TENANTS,
    READ_TO,
    READ_UP_TO,
    REPORT,
    RETRY,
    STARTED_AT,
    THROUGHPUT,
    UNABLE,
    HoldRetry,
    Lease,
    LeaseReport,
    LeaseRow,
    ReadAhead,
    UnreadableLeaseError,
    attributes_of,
    encode_report,
    encode_retry,
    has_hand_over_begun,
    is_lease,
    is_own_landed_write,
    lease_of,
    read_up_to_text,
    row_of,
)
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.consumers.kinesis.stream.client import Stream, StreamShard
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
UNCHANGED: Final = ReadAhead(
    positions.Position(0), frozenset()
)  # compared by identity: leave the attributes of the row


class LeaseTable:
    """The rows of the lease table *name*; all methods raise RetryableError or PermanentError.

    A write that raised RetryableError may have landed; its repetition with the same lease finds out.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.requests = TableRequests(client)
        self._unreadable: dict[str, str] = {}  # what is wrong with a row, by lease key
        self.other_rows: tuple[LeaseRow, ...] = ()  # of the last scan: those of the KCL 3.5 that are not leases
        self.scan_capacity = 0.0  # of the last scan, in read capacity units

    async def ensure(self) -> None:
        """Create the table unless it exists, and wait until it is ready."""
        while True:
            table = await self._describe()
            if table is None:
                await self._create_table()
            elif (state := table["TableStatus"]) in READY_STATES:
                return self._check_key(table)
            elif state in PASSING_STATES:
                await asyncio.sleep(STATE_POLL_INTERVAL_S)
            else:
                raise RetryableError(
                    f"table {self.name}: expected one that can be used, got {state}; enable its KMS key, or restore it"
                )

    async def scan(self, *, is_consistent: bool = False) -> list[Lease]:
        """Return all leases, without rows of other kinds (`other_rows`) and unreadable ones (logged once).

        Unless *is_consistent*, a row may be a second old. Raises PermanentError if no row can be read.
        """
        leases: list[Lease] = []
        others: list[LeaseRow] = []
        page: dict[str, Any] = {}
        self.scan_capacity = 0.0
        while True:
            reply = await self.requests.call(
                self.name, "scan", ReturnConsumedCapacity="TOTAL", ConsistentRead=is_consistent, **page
            )
            self.scan_capacity += reply.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
            leases += [lease for row in reply["Items"] if (lease := self._parse(row))]
            others += [row for row in reply["Items"] if not is_lease(row)]
            if not reply.get("LastEvaluatedKey"):
                self.other_rows = tuple(others)
                self._require_readable(leases)
                return leases
            page = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}

    def _require_readable(self, leases: Sequence[Lease]) -> None:
        if self._unreadable and not leases:
            lease_key, problem = next(iter(self._unreadable.items()))
            raise PermanentError(
                f"table {self.name}: no row is a lease as the KCL writes it, such as {lease_key} ({problem}); correct "
                "the rows, or set KINESIS_APPLICATION_NAME to a name of its own"
            )

    async def find(self, lease_key: str) -> Lease | None:
        """Return a lease by a consistent read; None without a readable row."""
        reply = await self.requests.call(self.name, "get_item", Key={KEY: {"S": lease_key}}, ConsistentRead=True)
        row = reply.get("Item")
        return self._parse(row) if row else None

    def is_unreadable(self, lease_key: str) -> bool:
        """Return whether the row, when last read, was unreadable."""
        return lease_key in self._unreadable

    async def create(self, lease: Lease) -> bool:
        """Write *lease* as a new row; return False when there is one."""
        try:
            await self.requests.call(
                self.name, "put_item", Item=row_of(lease), ConditionExpression=f"attribute_not_exists({KEY})"
            )
        except ConditionFailedError:
            return False
        return True

    async def take(self, lease: Lease, me: str, *, start_at: datetime | None = None) -> Lease | None:
        """Make *me* the owner; return the lease as written, or None when its counter has moved.

        *start_at* pins the start of an unread lease, unless it is pinned already.
        """
        return await self._take(lease, me, "leaseCounter = :counter", start_at)

    async def _take(self, lease: Lease, me: str, condition: str, start_at: datetime | None) -> Lease | None:
        changes = _Changes(me, counter=_number(lease.counter), switch=_number(0 if lease.actual_owner == me else 1))
        changes.sets += ["leaseOwner = :me", f"{METERED_BY} = :me"]
        changes.set(leaseCounter=_number(lease.counter + 1))
        changes.removes += ["checkpointOwner", UNABLE]
        if start_at is not None:
            changes.sets.append(f"{STARTED_AT} = if_not_exists({STARTED_AT}, :started)")
            changes.values[":started"] = {"S": start_at.isoformat()}
        update = f"{changes.expression()} ADD ownerSwitchesSinceCheckpoint :switch"
        try:
            return await self._update(lease, update, condition, changes.values)
        except ConditionFailedError as failed:
            row = await self._find_instead(lease, failed)
        return row if row is not None and is_own_landed_write(lease, row, me=me) else None

    async def begin(self, lease: Lease, me: str, *, start_at: datetime | None = None) -> Lease | None:
        """Begin to hold a lease that a KCL 3.x leader has assigned to *me*; None when it is not any more.

        Expects the owner, too: a leader that assigns it again leaves the counter.
        """
        condition = "leaseCounter = :counter AND leaseOwner = :me AND attribute_not_exists(checkpointOwner)"
        return await self._take(lease, me, condition, start_at)

    async def renew(
        self,
        lease: Lease,
        me: str,
        checkpoint: positions.Position | None = None,
        *,
        pending_tenants: frozenset[str] | None = None,
        ahead: ReadAhead | None = UNCHANGED,
        read_up_to: datetime | None = None,
        throughput_kbps: float | None = None,
        report: LeaseReport | None = None,
        is_given_away: bool = False,
    ) -> Lease | None:
        """Renew a lease that *me* holds; in the same write, set its checkpoint and its progress.

        Returns the lease as written; None when another owner has it. With a `checkpoint_owner` (*me*), another worker
        waits for `release`. An earlier try that landed without an answer counts as this one; where it wrote less, this
        try is written over it.

        Without *pending_tenants*, *throughput_kbps* or *report* those of the row stay; *ahead* or *read_up_to* None
        remove the row's.
        """
        changes = _Changes(me, counter=_number(lease.counter))
        changes.set(
            leaseCounter=_number(lease.counter + 1),
            **{
                METERED_BY: {"S": me},
                THROUGHPUT: None if throughput_kbps is None else {"N": f"{throughput_kbps:.3f}"},
                REPORT: None if report is None else {"S": encode_report(report)},
                PENDING_TENANTS: {"SS": sorted(pending_tenants)} if pending_tenants else None,
                READ_UP_TO: None if read_up_to is None else {"S": read_up_to_text(read_up_to, me)},
                UNABLE: {"S": me} if is_given_away else None,
            },
        )
        before = {READ_UP_TO: lease.read_up_to, UNABLE: lease.unable_of}
        changes.removes += [
            name for name, value in before.items() if value is not None and f":{name}" not in changes.values
        ]
        changes.set_progress(lease, checkpoint, ahead)
        try:
            condition = f"leaseCounter = :counter AND {self._held_condition(lease)}"
            return await self._update(lease, changes.expression(), condition, changes.values)
        except ConditionFailedError as failed:
            row = await self._find_instead(lease, failed)
        if row is None:
            return None
        again = partial(
            self.renew, pending_tenants=pending_tenants, ahead=ahead, read_up_to=read_up_to, is_given_away=is_given_away
        )
        if has_hand_over_begun(lease, row, me=me) and row.counter == lease.counter:
            return await again(row, me, checkpoint, throughput_kbps=throughput_kbps, report=report)
        if not is_own_landed_write(lease, row, me=me):
            return None
        higher = checkpoint if checkpoint is not None and row.checkpoint < checkpoint else None
        has_tenants = not pending_tenants or row.pending_tenants == pending_tenants
        if higher is None and has_tenants and (ahead is UNCHANGED or row.ahead == ahead):
            return row
        try:
            return await again(row, me, higher)
        except RetryableError:
            return row  # it is renewed; the next renewal writes the rest, and recognises this one if it landed

    async def release(
        self,
        lease: Lease,
        me: str,
        checkpoint: positions.Position | None = None,
        *,
        ahead: ReadAhead | None = UNCHANGED,
    ) -> bool:
        """Release a lease of *me*, with a last checkpoint; return False when *me* does not hold it.

        One that a KCL 3.x leader has assigned to another worker stays that worker's. The write expects the owner and
        not the counter, so a renewal in flight does no harm.
        """
        changes = _Changes(me, one=_number(1))
        changes.removes.append("leaseOwner" if lease.checkpoint_owner is None else "checkpointOwner")
        changes.set_progress(lease, checkpoint, ahead)
        update = f"{changes.expression()} ADD leaseCounter :one"
        try:
            await self._update(lease, update, self._held_condition(lease), changes.values)
        except ConditionFailedError as failed:
            row = await self._find_instead(lease, failed)
        else:
            return True
        if row is not None and has_hand_over_begun(lease, row, me=me):
            return await self.release(row, me, checkpoint, ahead=ahead)
        next_owner = None if lease.checkpoint_owner is None else lease.owner
        return row is not None and row.actual_owner == next_owner and checkpoint in (None, row.checkpoint)

    async def write_children(self, lease: Lease, me: str, children: Collection[str]) -> None:
        """Write the *children* of a lease, if *me* still holds it."""
        values = {":children": {"SS": sorted(children)}, ":me": {"S": me}}
        try:
            await self._update(lease, "SET childShardIds = :children", self._held_condition(lease), values)
        except ConditionFailedError as failed:
            row = await self._find_instead(lease, failed)
            if row is not None and has_hand_over_begun(lease, row, me=me):
                await self.write_children(row, me, children)

    async def write_retry(self, lease: Lease, retry: HoldRetry) -> bool:
        """Write a request to the owner of *lease*; return False when that is another now."""
        values = {":retry": {"S": encode_retry(retry)}, ":me": {"S": lease.actual_owner}}
        try:
            await self._update(lease, f"SET {RETRY} = :retry", self._held_condition(lease), values)
        except ConditionFailedError:
            return False
        return True

    async def write_hash_range(self, lease_key: str, hash_range: positions.HashRange) -> None:
        """Write the hash range, if the row is there: half a row must not come back."""
        values = {":first": {"S": str(hash_range.first)}, ":last": {"S": str(hash_range.last)}}
        update = "SET startingHashKey = :first, endingHashKey = :last"
        with contextlib.suppress(ConditionFailedError):
            await self._update(Lease(lease_key, positions.TRIM_HORIZON), update, f"attribute_exists({KEY})", values)

    async def delete(self, lease: Lease) -> bool:
        """Delete the row unless it was written since; return whether it was deleted."""
        try:
            await self.requests.call(
                self.name,
                "delete_item",
                Key={KEY: {"S": lease.lease_key}},
                ConditionExpression="leaseCounter = :counter",
                ExpressionAttributeValues={":counter": _number(lease.counter)},
            )
        except ConditionFailedError:
            return False
        return True

    async def _describe(self) -> dict[str, Any] | None:
        try:
            reply = await self.requests.call(self.name, "describe_table")
        except TableMissingError:
            return None
        table: dict[str, Any] = reply["Table"]
        return table

    async def _create_table(self) -> None:
        try:
            await self.requests.call(self.name, "create_table", **TABLE_DEFINITION)
        except TableInUseError:
            return  # another replica was faster
        log.info("lease_table.created", table=self.name)

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

    async def _update(self, lease: Lease, update: str, condition: str, values: dict[str, Any]) -> Lease | None:
        reply = await self.requests.call(
            self.name,
            "update_item",
            Key={KEY: {"S": lease.lease_key}},
            UpdateExpression=update,
            ConditionExpression=condition,
            ExpressionAttributeValues=values,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        return self._parse(reply["Attributes"])

    async def _find_instead(self, lease: Lease, failed: ConditionFailedError) -> Lease | None:
        return await self.find(lease.lease_key) if failed.row is None else self._parse(failed.row)

    def _parse(self, row: LeaseRow) -> Lease | None:
        lease_key = str(row[KEY]["S"])
        try:
            lease = lease_of(row)
        except UnreadableLeaseError as exc:
            if lease_key not in self._unreadable:
                log.warning("lease.unreadable", lease_key=lease_key, problem=str(exc))
            self._unreadable[lease_key] = str(exc)
            return None
        self._unreadable.pop(lease_key, None)
        return lease


def _number(value: int) -> dict[str, str]:
    return {"N": str(value)}


class _Changes:
    """What one update of a row sets and removes; its condition may name `:me` and *values*."""

    def __init__(self, me: str, **values: dict[str, Any]) -> None:
        self.sets: list[str] = []
        self.removes: list[str] = []
        self.values: dict[str, Any] = {":me": {"S": me}} | {f":{name}": value for name, value in values.items()}

    def set(self, **attributes: dict[str, Any] | None) -> None:
        for name, value in attributes.items():
            if value is not None:
                self.sets.append(f"{name} = :{name}")
                self.values[f":{name}"] = value

    def set_progress(self, lease: Lease, checkpoint: positions.Position | None, ahead: ReadAhead | None) -> None:
        if ahead is None and lease.ahead is not None:
            self.removes += [READ_TO, HELD]
        elif ahead is not None and ahead is not UNCHANGED and ahead != lease.ahead:
            self.set(**attributes_of(ahead))
        if checkpoint is not None:  # a real one supersedes the KCL's two-phase ("pending") one
            self.set(
                checkpoint={"S": checkpoint.checkpoint},
                checkpointSubSequenceNumber=_number(checkpoint.sub_sequence_number),
                ownerSwitchesSinceCheckpoint=_number(0),
            )
            self.removes += [
                "pendingCheckpoint",
                "pendingCheckpointSubSequenceNumber",
                "pendingCheckpointState",
            ]

    def expression(self) -> str:
        parts = [f"SET {', '.join(self.sets)}" if self.sets else "", f"REMOVE {', '.join(self.removes)}"]
        return " ".join(parts if self.removes else parts[:1])


class LeaseSyncer:
    """Creates leases from listings; raises RetryableError or PermanentError, as stream and table do."""

    def __init__(self, stream: Stream, table: LeaseTable, position: str | datetime, *, utc: UtcClock) -> None:
        """*position* is `KINESIS_INITIAL_POSITION`."""
        self._stream = stream
        self._table = table
        self._position = position
        self._utc = utc

    async def sync_at_start(self, leases: Sequence[Lease]) -> list[Lease]:
        """Create the leases missing at the start; return all."""
        initial = self._initial_position()
        if not leases:
            first = shard_tree.first_leases(await self._list_at(initial), initial)
            # The leases of a faster replica count: if the stream was resharded in between, those of this listing would
            # start the reading a second time.
            leases = await self._table.scan(is_consistent=True)
            if not leases:
                return await self._create(first)
        return [*leases, *await self._create(await self._find_missing(leases, await self._list_all()))]

    async def _find_missing(self, leases: Sequence[Lease], listing: Sequence[StreamShard]) -> list[Lease]:
        # Scans again, consistently: where a stream shard starts depends on whether its parent has a lease.
        if shard_tree.missing_leases(listing, {lease.lease_key for lease in leases}, self._initial_position()):
            leases = await self._table.scan(is_consistent=True)
        return shard_tree.missing_leases(listing, {lease.lease_key for lease in leases}, self._initial_position())

    async def _create(self, wanted: Sequence[Lease]) -> list[Lease]:
        created = [lease for lease in wanted if await self._table.create(lease)]
        for lease in created:
            start = lease.checkpoint.checkpoint
            log.info("lease.created", stream_shard_id=lease.lease_key, parent=None, checkpoint=start)
        return created

    async def sync(self) -> list[Lease]:
        """List the stream and create the missing leases; return those."""
        leases, listing = await self._table.scan(), await self._list_all()
        return await self._create(await self._find_missing(leases, listing))

    async def audit(self, leases: Iterable[Lease]) -> None:
        """Look for a hole in the *leases* of a scan, which may be a stale one; create those that are missing."""
        if shard_tree.first_hole_in_leases(leases) is not None and await self.sync():
            log.warning("leases.incomplete", stream=self._stream.name)

    def _initial_position(self) -> shard_tree.InitialPosition:
        if isinstance(self._position, datetime):
            return shard_tree.InitialPosition(positions.AT_TIMESTAMP, self._position)
        if self._position == "LATEST":
            return shard_tree.InitialPosition(positions.LATEST, self._utc())
        return shard_tree.InitialPosition(positions.TRIM_HORIZON)

    async def _list_at(self, initial: shard_tree.InitialPosition) -> list[StreamShard]:
        at: positions.TrimHorizon | positions.Latest | positions.AtTimestamp = positions.TrimHorizon()
        if initial.checkpoint == positions.LATEST:
            at = positions.Latest()
        elif initial.started_at is not None:
            at = positions.AtTimestamp(initial.started_at)
        stream_shards = await self._stream.list_stream_shards(at)
        hole = shard_tree.first_hole([shard.hash_range for shard in stream_shards])
        if hole is not None:
            raise RetryableError(
                f"stream {self._stream.name}: expected stream shards for all hash keys, got none from {hole.first} on"
            )
        return stream_shards

    async def _list_all(self) -> list[StreamShard]:
        stream_shards = await self._stream.list_stream_shards()
        if shard_tree.is_torn(stream_shards):
            raise RetryableError(f"stream {self._stream.name} was resharded between two pages of its listing")
        return stream_shards
