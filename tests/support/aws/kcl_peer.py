"""A worker of the Kinesis Client Library 2.x as its lease table sees it: exactly its conditional writes.

Written from DynamoDBLeaseRefresher, DynamoDBLeaseTaker, DynamoDBLeaseRenewer and DynamoDBLeaseSerializer. It shares no
code with ours, so that a misreading of one is not a misreading of both. Its clock and its draws are handed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any, TypeAlias

from botocore.exceptions import ClientError

Row: TypeAlias = dict[str, Any]
Client: TypeAlias = Any  # of DynamoDB, as botocore makes them

VERY_OLD = 3  # enablePriorityLeaseAssignment: failover times without a renewal
PENDING = ("pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState")


def number(value: int) -> Row:
    return {"N": str(value)}


def reference_row(lease_key: str, checkpoint: str, *, owner: str | None = None, counter: int = 0) -> Row:
    row: Row = {
        "leaseKey": {"S": lease_key},
        "leaseCounter": number(counter),
        "ownerSwitchesSinceCheckpoint": number(0),
        "checkpoint": {"S": checkpoint},
        "checkpointSubSequenceNumber": number(0),
    }
    return row if owner is None else row | {"leaseOwner": {"S": owner}}


async def write_if(write: Callable[..., Awaitable[dict[str, Any]]], **request: Any) -> dict[str, Any] | None:
    """Return the answer to a conditional write; None when the condition did not hold."""
    try:
        return await write(**request)
    except ClientError as exc:
        if exc.response["Error"]["Code"] == "ConditionalCheckFailedException":
            return None
        raise


class KclPeer:
    """One worker; *held* has its copies of the rows, as after its last write to them."""

    def __init__(
        self, client: Client, table: str, me: str, *, now: Callable[[], float], failover_s: float = 10.0, draws: Random
    ) -> None:
        self.me = me
        self.held: dict[str, Row] = {}
        self._client = client
        self._table = table
        self._now = now
        self._failover_s = failover_s
        self._draws = draws
        self._seen: dict[str, tuple[str, float]] = {}  # by lease key: the counter, and since when

    async def create(self, row: Row) -> bool:
        written = await write_if(
            self._client.put_item, TableName=self._table, Item=row, ConditionExpression="attribute_not_exists(leaseKey)"
        )
        return written is not None

    async def list_rows(self) -> dict[str, Row]:
        found: dict[str, Row] = {}
        page: dict[str, Any] = {}
        while True:
            reply = await self._client.scan(TableName=self._table, **page)
            found |= {row["leaseKey"]["S"]: row for row in reply["Items"] if "checkpoint" in row}
            if not reply.get("LastEvaluatedKey"):
                return found
            page = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}

    async def take(self, row: Row) -> bool:
        switches = 0 if row.get("leaseOwner") == {"S": self.me} else 1
        update = "SET leaseCounter = :next, leaseOwner = :me"
        values = {":me": {"S": self.me}}
        if switches:
            update += " ADD ownerSwitchesSinceCheckpoint :one"
            values[":one"] = number(1)
        return await self._write(row, update, values)

    async def renew(self, lease_key: str) -> bool:
        """renewLease: the counter alone; a landed write of its own counts, any other row is the loss of the lease."""
        row = self.held[lease_key]
        if await self._write(row, "SET leaseCounter = :next", {}):
            return True
        reply = await self._client.get_item(TableName=self._table, Key={"leaseKey": {"S": lease_key}})
        found = reply.get("Item", {})
        has_landed = found.get("leaseCounter") == number(_counter(row) + 1)
        if has_landed and found.get("leaseOwner") == {"S": self.me}:
            self.held[lease_key] = found
            return True
        self.held.pop(lease_key, None)
        return False

    async def checkpoint(
        self, lease_key: str, checkpoint: str, sub_sequence_number: int = 0, *, children: tuple[str, ...] = ()
    ) -> bool:
        """updateLease: the checkpoint, in place of a prepared one. Its failure is the loss of the lease."""
        update = (
            "SET leaseCounter = :next, checkpoint = :checkpoint, checkpointSubSequenceNumber = :sub, "
            "ownerSwitchesSinceCheckpoint = :zero"
        )
        values = {":checkpoint": {"S": checkpoint}, ":sub": number(sub_sequence_number), ":zero": number(0)}
        if children:
            update += ", childShardIds = :children"
            values[":children"] = {"SS": sorted(children)}
        update += f" REMOVE {', '.join(PENDING)}"
        is_written = await self._write(self.held[lease_key], update, values)
        if not is_written:
            self.held.pop(lease_key, None)
        return is_written

    async def evict(self, lease_key: str) -> bool:
        """Release the lease, when it is still the owner (evictLease of 2.x); the KCL does not do so at its end."""
        row = self.held.pop(lease_key)
        written = await write_if(
            self._client.update_item,
            TableName=self._table,
            Key={"leaseKey": {"S": lease_key}},
            UpdateExpression="SET leaseCounter = :next REMOVE leaseOwner",
            ConditionExpression="leaseOwner = :me",
            ExpressionAttributeValues={":next": number(_counter(row) + 1), ":me": {"S": self.me}},
        )
        return written is not None

    async def delete(self, lease_key: str) -> None:
        await self._client.delete_item(TableName=self._table, Key={"leaseKey": {"S": lease_key}})

    async def renew_all(self) -> None:
        for lease_key in sorted(self.held):
            await self.renew(lease_key)

    async def take_some(self) -> list[str]:
        """Run one pass of the taker (takeLeases): very old leases, else available ones, else one that is stolen."""
        rows = await self.list_rows()
        now = self._now()
        self._observe(rows, now)
        available = [key for key, row in rows.items() if self._is_available(key, row, now)]
        return [lease_key for lease_key in self._plan_takes(rows, available, now) if await self.take(rows[lease_key])]

    def _observe(self, rows: Mapping[str, Row], now: float) -> None:
        seen: dict[str, tuple[str, float]] = {}
        for key, row in rows.items():
            counter, since = self._seen.get(key, ("", now))
            if counter != row["leaseCounter"]["N"]:
                is_new_and_free = counter == "" and "leaseOwner" not in row
                since = float("-inf") if is_new_and_free else now
            seen[key] = (row["leaseCounter"]["N"], since)
        self._seen = seen

    def _is_available(self, key: str, row: Row, now: float) -> bool:
        return "leaseOwner" not in row or now - self._seen[key][1] > self._failover_s

    def _plan_takes(self, rows: Mapping[str, Row], available: list[str], now: float) -> list[str]:
        counts = Counter(row["leaseOwner"]["S"] for key, row in rows.items() if key not in available)
        counts[self.me] += 0
        target = 1 if len(counts) >= len(rows) else -(-len(rows) // len(counts))
        need = target - counts[self.me]
        very_old = [key for key in available if now - self._seen[key][1] > VERY_OLD * self._failover_s]
        self._draws.shuffle(available)
        if very_old:
            return very_old
        if available or need <= 0:
            return available[: max(need, 0)]
        return self._plan_steal(rows, counts, target, need)

    def _plan_steal(self, rows: Mapping[str, Row], counts: Counter[str], target: int, need: int) -> list[str]:
        fullest, most = max(counts.items(), key=lambda pair: (pair[1], pair[0]))
        count = min(need, most - target)
        if count == 0 and need > 1:
            count = 1
        victims = [key for key, row in rows.items() if row.get("leaseOwner") == {"S": fullest}]
        return [] if fullest == self.me else self._draws.sample(victims, max(0, min(1, count)))

    async def _write(self, row: Row, update: str, values: Row) -> bool:
        """Write to a row if its counter is as in *row*; keep the row as written."""
        reply = await write_if(
            self._client.update_item,
            TableName=self._table,
            Key={"leaseKey": row["leaseKey"]},
            UpdateExpression=update,
            ConditionExpression="leaseCounter = :counter",
            ExpressionAttributeValues=values | {":counter": row["leaseCounter"], ":next": number(_counter(row) + 1)},
            ReturnValues="ALL_NEW",
        )
        if reply is not None:
            self.held[row["leaseKey"]["S"]] = reply["Attributes"]
        return reply is not None


def _counter(row: Row) -> int:
    return int(row["leaseCounter"]["N"])
