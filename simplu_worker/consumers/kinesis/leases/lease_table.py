"""The lease table in DynamoDB, shared with the Kinesis Client Library.

Why it is safe: every write expects the counter as it was read (a release: the owner), so one of two writers learns that
it lost. Every write but a lease's creation names the attributes that it changes, so other attributes survive. Scans are
eventually consistent, as the KCL's are: a stale row only makes a write fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import product
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.aws.clients import AWS_ERRORS, DECODERS, Client, error_code, translate
from simplu_worker.consumers.kinesis.leases.lease import (
    HELD,
    PENDING_TENANTS,
    READ_TO,
    STARTED_AT,
    Lease,
    LeaseRow,
    ReadAhead,
    UnreadableLeaseError,
    attributes_of,
    is_own_landed_write,
    lease_of,
    row_of,
)
from simplu_worker.consumers.kinesis.stream.positions import Position
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics.instruments import DYNAMODB_REQUEST

log = structlog.get_logger(__name__)

KEY = "leaseKey"
OWNER_INDEX = "LeaseOwnerToLeaseKeyIndex"  # a KCL 3.x that takes the table over waits until it has this index
READY_STATES = frozenset({"ACTIVE", "UPDATING"})
STATE_POLL_INTERVAL_S = 0.5
UNCHANGED: Final = ReadAhead(Position(0), frozenset())  # compared by identity: leave the attributes of the row

_OPERATIONS = ("scan", "put_item", "update_item", "delete_item", "get_item", "create_table", "describe_table")
for _labels in product(_OPERATIONS, ("ok", "error", "condition_failed")):
    DYNAMODB_REQUEST.labels(*_labels)

# The attributes that a checkpoint changes. A real checkpoint supersedes the KCL's two-phase ("pending") one.
_SET_CHECKPOINT = "checkpoint = :checkpoint, checkpointSubSequenceNumber = :sub, ownerSwitchesSinceCheckpoint = :zero"
_REMOVE_PENDING = "pendingCheckpoint, pendingCheckpointSubSequenceNumber, pendingCheckpointState"


class KclLeader(msgspec.Struct, frozen=True):
    """The leader of a KCL 3.x application, as its coordinator table contains it."""

    owner: str
    record_version: str  # changes with every heartbeat of a live leader
    client_version: str  # CLIENT_VERSION_3X and CLIENT_VERSION_3X_WITH_ROLLBACK: the leader assigns the leases


class LeaseTable:
    """The rows of the lease table *name*; every method is one or a few requests over *client*.

    All raise RetryableError or PermanentError, by DynamoDB's error. A write that raised RetryableError may have landed;
    its repetition with the same lease finds out.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._unreadable: set[str] = set()
        self.scan_capacity = 0.0  # of the last scan, in read capacity units

    def __repr__(self) -> str:
        return f"<LeaseTable {self.name}, {len(self._unreadable)} unreadable rows>"

    async def ensure(self) -> None:
        """Create the table unless it exists, and wait until it is ready; idempotent, also among replicas.

        Raises PermanentError when a table of that name is not a lease table.
        """
        while True:
            table = await self._describe()
            if table is None:
                await self._create_table()
            elif table["TableStatus"] in READY_STATES:
                return self._check_key(table)
            else:
                await asyncio.sleep(STATE_POLL_INTERVAL_S)

    async def scan(self, *, is_consistent: bool = False) -> list[Lease]:
        """Return all leases, without rows of other kinds and unreadable rows (logged once).

        Unless *is_consistent*, which costs twice as much, a row may be a second old.
        """
        leases: list[Lease] = []
        page: dict[str, Any] = {}
        self.scan_capacity = 0.0
        while True:
            reply = await self._call("scan", ReturnConsumedCapacity="TOTAL", ConsistentRead=is_consistent, **page)
            self.scan_capacity += reply.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
            leases += [lease for row in reply["Items"] if (lease := self._parse(row))]
            if not reply.get("LastEvaluatedKey"):
                return leases
            page = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}

    async def find(self, lease_key: str) -> Lease | None:
        """Return a lease by a consistent read; None without a row, or with an unreadable one."""
        reply = await self._call("get_item", Key={KEY: {"S": lease_key}}, ConsistentRead=True)
        row = reply.get("Item")
        return self._parse(row) if row else None

    def is_unreadable(self, lease_key: str) -> bool:
        """Return whether the row was there when it was last read, but not a lease as the KCL writes it."""
        return lease_key in self._unreadable

    async def create(self, lease: Lease) -> bool:
        """Write *lease* as a new row; return False when there is a row, which stays as it is."""
        try:
            await self._call("put_item", Item=row_of(lease), ConditionExpression=f"attribute_not_exists({KEY})")
        except _ConditionFailedError:
            return False
        return True

    async def take(self, lease: Lease, me: str, *, start_at: datetime | None = None) -> Lease | None:
        """Make *me* the owner; return the lease as written, or None when its counter has moved since it was read.

        *start_at* pins the start of an unread lease to an instant, unless it is pinned already.
        """
        values = {
            ":counter": _number(lease.counter),
            ":next": _number(lease.counter + 1),
            ":me": {"S": me},
            ":switch": _number(0 if lease.owner == me else 1),
        }
        pin = ""
        if start_at is not None:
            pin = f", {STARTED_AT} = if_not_exists({STARTED_AT}, :started)"
            values[":started"] = {"S": start_at.isoformat()}
        update = (
            f"SET leaseCounter = :next, leaseOwner = :me{pin} "
            "REMOVE checkpointOwner ADD ownerSwitchesSinceCheckpoint :switch"
        )
        try:
            return await self._update(lease, update, "leaseCounter = :counter", values)
        except _ConditionFailedError as failed:
            row = await self._find_instead(lease, failed)
        return row if row is not None and is_own_landed_write(lease, row, me=me) else None

    async def renew(
        self,
        lease: Lease,
        checkpoint: Position | None = None,
        *,
        pending_tenants: frozenset[str] | None = None,
        ahead: ReadAhead | None = UNCHANGED,
    ) -> Lease | None:
        """Renew a lease that its owner holds; in the same write, set its checkpoint and its pending tenants.

        Returns the lease as written, for the next write; None when another owner has it. An earlier try that landed
        without an answer counts as this one. If its checkpoint was lower, or it wrote other attributes, this try is
        written over it; when the answer to that is lost, too, the lease is returned as the earlier try left it.

        Without *pending_tenants*, or with none, the list in the row stays. *ahead* None removes the row's.
        """
        values: dict[str, Any] = {":counter": _number(lease.counter), ":next": _number(lease.counter + 1)}
        sets = ["leaseCounter = :next"]
        removes: list[str] = []
        if pending_tenants:
            sets.append(f"{PENDING_TENANTS} = :pending")
            values[":pending"] = {"SS": sorted(pending_tenants)}
        _add_ahead(ahead, lease, sets, removes, values)
        if checkpoint is not None:
            sets.append(_SET_CHECKPOINT)
            removes.append(_REMOVE_PENDING)
            values |= _checkpoint_values(checkpoint)
        try:
            return await self._update(lease, _update_expression(sets, removes), "leaseCounter = :counter", values)
        except _ConditionFailedError as failed:
            row = await self._find_instead(lease, failed)
        if row is None or lease.owner is None or not is_own_landed_write(lease, row, me=lease.owner):
            return None
        higher = checkpoint if checkpoint is not None and row.checkpoint < checkpoint else None
        has_tenants = not pending_tenants or row.pending_tenants == pending_tenants
        if higher is None and has_tenants and (ahead is UNCHANGED or row.ahead == ahead):
            return row
        try:
            return await self.renew(row, higher, pending_tenants=pending_tenants, ahead=ahead)
        except RetryableError:
            return row  # it is renewed; the next renewal writes the rest, and recognises this one if it landed

    async def release(
        self, lease: Lease, checkpoint: Position | None = None, *, ahead: ReadAhead | None = UNCHANGED
    ) -> bool:
        """Release the lease, with a last checkpoint, so that others may take it at once.

        Returns False when another owner has it already: then nothing was changed. The write expects the owner and not
        the counter, so a renewal in flight does no harm.
        """
        values = {":owner": {"S": lease.owner or ""}, ":one": _number(1)}
        sets: list[str] = []
        removes = ["leaseOwner"]
        _add_ahead(ahead, lease, sets, removes, values)
        if checkpoint is not None:
            sets.append(_SET_CHECKPOINT)
            removes.append(_REMOVE_PENDING)
            values |= _checkpoint_values(checkpoint)
        update = f"{_update_expression(sets, removes)} ADD leaseCounter :one"
        try:
            await self._update(lease, update, "leaseOwner = :owner", values)
        except _ConditionFailedError as failed:
            row = await self._find_instead(lease, failed)
            return row is not None and row.owner is None and checkpoint in (None, row.checkpoint)
        return True

    async def write_metadata(self, lease: Lease) -> None:
        """Write the children and the hash range of a lease, as far as it has them, whatever its owner and counter.

        Nothing is written when the row is gone: a deleted lease must not come back as half a row.
        """
        parts: dict[str, dict[str, Any]] = {
            name: value
            for name, value in row_of(lease).items()
            if name in {"childShardIds", "startingHashKey", "endingHashKey"}
        }
        if not parts:
            return
        update = "SET " + ", ".join(f"{name} = :{name}" for name in parts)
        with contextlib.suppress(_ConditionFailedError):
            await self._update(
                lease, update, f"attribute_exists({KEY})", {f":{name}": value for name, value in parts.items()}
            )

    async def delete(self, lease: Lease) -> bool:
        """Delete the row unless it was written since it was read; return whether it was deleted."""
        try:
            await self._call(
                "delete_item",
                Key={KEY: {"S": lease.lease_key}},
                ConditionExpression="leaseCounter = :counter",
                ExpressionAttributeValues={":counter": _number(lease.counter)},
            )
        except _ConditionFailedError:
            return False
        return True

    async def find_kcl_leader(self) -> KclLeader | None:
        """Return the leader of the KCL 3.x for this table; None without its coordinator table."""
        try:
            leader = await self._get_coordinator_row("Leader")
            migration = await self._get_coordinator_row("Migration3.0")
        except _NotFoundError:
            return None
        return KclLeader(
            owner=str(leader.get("ownerName", {}).get("S", "")),
            record_version=str(leader.get("recordVersionNumber", {}).get("S", "")),
            client_version=str(migration.get("cv", {}).get("S", "")),
        )

    async def _get_coordinator_row(self, key: str) -> dict[str, dict[str, Any]]:
        table = f"{self.name}-CoordinatorState"
        reply = await self._call("get_item", table=table, Key={"key": {"S": key}}, ConsistentRead=True)
        row: dict[str, dict[str, Any]] = reply.get("Item", {})
        return row

    async def _describe(self) -> dict[str, Any] | None:
        try:
            reply = await self._call("describe_table")
        except _NotFoundError:
            return None
        table: dict[str, Any] = reply["Table"]
        return table

    async def _create_table(self) -> None:
        owner = "leaseOwner"
        try:
            await self._call(
                "create_table",
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in (KEY, owner)],
                KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
                GlobalSecondaryIndexes=[
                    {
                        "IndexName": OWNER_INDEX,
                        "KeySchema": [
                            {"AttributeName": owner, "KeyType": "HASH"},
                            {"AttributeName": KEY, "KeyType": "RANGE"},
                        ],
                        "Projection": {"ProjectionType": "KEYS_ONLY"},
                    },
                ],
            )
        except _InUseError:
            return  # another replica was faster
        log.info("lease_table.created", table=self.name)

    def _check_key(self, table: dict[str, Any]) -> None:
        key = [(part["AttributeName"], part["KeyType"]) for part in table["KeySchema"]]
        if key != [(KEY, "HASH")]:
            raise PermanentError(
                f"table {self.name}: expected a lease table with the key {KEY}, got the key {key}; "
                "set KINESIS_APPLICATION_NAME to a name that no other table has",
            )

    async def _update(self, lease: Lease, update: str, condition: str, values: dict[str, Any]) -> Lease | None:
        reply = await self._call(
            "update_item",
            Key={KEY: {"S": lease.lease_key}},
            UpdateExpression=update,
            ConditionExpression=condition,
            ExpressionAttributeValues=values,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        return self._parse(reply["Attributes"])

    async def _find_instead(self, lease: Lease, failed: _ConditionFailedError) -> Lease | None:
        """Return the lease that failed the condition; DynamoDB Local and others do not send it with the error."""
        return await self.find(lease.lease_key) if failed.row is None else self._parse(failed.row)

    def _parse(self, row: LeaseRow) -> Lease | None:
        lease_key = str(row[KEY]["S"])
        try:
            lease = lease_of(row)
        except UnreadableLeaseError as exc:
            if lease_key not in self._unreadable:
                log.warning("lease.unreadable", lease_key=lease_key, problem=str(exc))
            self._unreadable.add(lease_key)
            return None
        self._unreadable.discard(lease_key)
        return lease

    async def _call(self, operation: str, *, table: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Make one measured request; translate DynamoDB's errors."""
        started_at = time.perf_counter()
        outcome = "error"
        try:
            reply: dict[str, Any] = await getattr(self._client, operation)(TableName=table or self.name, **arguments)
            outcome = "ok"
        except AWS_ERRORS as exc:
            match error_code(exc):
                case "ConditionalCheckFailedException":
                    outcome = "condition_failed"
                    raise _ConditionFailedError(getattr(exc, "response", {}).get("Item")) from exc
                case "ResourceNotFoundException":
                    raise _NotFoundError(f"table {self.name}: expected it to exist, it does not") from exc
                case "ResourceInUseException":
                    raise _InUseError(f"table {self.name} is being created, changed or deleted") from exc
            raise translate(exc) from exc
        finally:
            DYNAMODB_REQUEST.labels(operation, outcome).observe(time.perf_counter() - started_at)
        return reply


_reply_decoder = msgspec.json.Decoder(dict[str, Any])


def decode_rows(body: bytes) -> dict[str, Any]:
    """Return a reply with rows as botocore would, but with undecoded binary attributes: the worker uses none.

    Raises msgspec.DecodeError.
    """
    return {name: value for name, value in _reply_decoder.decode(body).items() if value is not None}


DECODERS.update(dict.fromkeys(("ScanOutput", "UpdateItemOutput"), decode_rows))


class _ConditionFailedError(Exception):
    """The row was not as expected; *row* is the actual one, if DynamoDB sent it."""

    def __init__(self, row: LeaseRow | None) -> None:
        super().__init__()
        self.row = row


class _NotFoundError(PermanentError):
    """The table does not exist."""


class _InUseError(RetryableError):
    """The table is in a state that does not allow this now."""


def _number(value: int) -> dict[str, str]:
    return {"N": str(value)}


def _add_ahead(
    ahead: ReadAhead | None, lease: Lease, sets: list[str], removes: list[str], values: dict[str, dict[str, Any]]
) -> None:
    """Add to the parts of an update those that write *ahead* into the row of *lease*."""
    if ahead is UNCHANGED or ahead == lease.ahead:
        return
    if ahead is None:
        removes += [READ_TO, HELD]
        return
    for name, value in attributes_of(ahead).items():
        sets.append(f"{name} = :{name}")
        values[f":{name}"] = value


def _update_expression(sets: Sequence[str], removes: Sequence[str]) -> str:
    parts = [f"SET {', '.join(sets)}" if sets else "", f"REMOVE {', '.join(removes)}" if removes else ""]
    return " ".join(part for part in parts if part)


def _checkpoint_values(checkpoint: Position) -> dict[str, Any]:
    return {
        ":checkpoint": {"S": checkpoint.checkpoint},
        ":sub": _number(checkpoint.sub_sequence_number),
        ":zero": _number(0),
    }
