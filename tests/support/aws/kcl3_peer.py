"""A worker of the Kinesis Client Library 3.5 as its tables see it, leader or not: exactly its conditional writes.

Written from DynamoDBLeaseRefresher, LeaseDiscoverer, WorkerMetricStats, CoordinatorState and the lock client of version
3.5.1. As `kcl_peer`, it shares no code with ours.
"""

from __future__ import annotations

from support.aws.kcl_peer import Client, Row, number, write_if


def leader_row(owner: str, version: str, *, key_name: str = "leaseKey") -> Row:
    return {
        key_name: {"S": "Leader"},
        "entityType": {"S": "LEADER"},
        "ownerName": {"S": owner},
        "leaseDuration": {"S": "120000"},
        "recordVersionNumber": {"S": version},
    }


def migration_row(version: str, *, key_name: str = "leaseKey") -> Row:
    return {
        key_name: {"S": "Migration3.0"},
        "entityType": {"S": "CLIENT_VERSION_MIGRATION"},
        "cv": {"S": version},
        "mb": {"S": "kcl-leader:uuid"},
        "mts": number(1_790_000_000_000),
    }


def table_migration_row(status: str, *, key_name: str = "leaseKey") -> Row:
    return {
        key_name: {"S": "TableMigration3.5"},
        "entityType": {"S": "TABLE_MIGRATION"},
        "tm": {"S": f"TABLE_MIGRATION_STATUS_{status}"},
        "mb": {"S": "kcl-leader:uuid"},
        "mts": number(1_790_000_000_000),
    }


def worker_row(worker: str, updated_at: int, *, key_name: str = "leaseKey") -> Row:
    """Return the metrics of a worker; *updated_at* in seconds since 1970."""
    return {
        key_name: {"S": worker},
        "entityType": {"S": "WORKER_METRIC_STATS"},
        "lut": number(updated_at),
        "sts": {"M": {"C": {"L": [{"N": "12.5"}]}}},
        "opr": {"M": {"C": {"L": [{"N": "80"}]}}},
        "sup": number(1),
        "slu": number(updated_at),
    }


def stream_row(stream: str) -> Row:
    return {"leaseKey": {"S": stream}, "entityType": {"S": "STREAM"}, "streamId": {"S": "1"}}


class Kcl3Peer:
    """One worker; *held* has its copies of the rows, as after its last write to them."""

    def __init__(self, client: Client, table: str, me: str) -> None:
        self.me = me
        self.held: dict[str, Row] = {}
        self._client = client
        self._table = table

    async def read(self, lease_key: str) -> Row:
        reply = await self._client.get_item(
            TableName=self._table, Key={"leaseKey": {"S": lease_key}}, ConsistentRead=True
        )
        row: Row = reply.get("Item", {})
        return row

    async def initiate_handoff(self, row: Row, next_owner: str) -> bool:
        return await self._write(
            row,
            "SET leaseOwner = :next, checkpointOwner = :last",
            "leaseOwner = :last AND attribute_not_exists(checkpointOwner) AND leaseKey = :key",
            {":next": {"S": next_owner}, ":last": row["leaseOwner"], ":key": row["leaseKey"]},
        )

    async def assign(self, row: Row, next_owner: str) -> bool:
        """assignLease: as the leader when a graceful hand-over takes too long, or as the last owner at its end."""
        values: Row = {":next": {"S": next_owner}, ":one": number(1), ":key": row["leaseKey"]}
        conditions = ["leaseKey = :key"]
        for name in ("leaseOwner", "checkpointOwner"):
            if name in row:
                conditions.append(f"{name} = :{name}")
                values[f":{name}"] = row[name]
            else:
                conditions.append(f"attribute_not_exists({name})")
        update = "SET leaseOwner = :next REMOVE checkpointOwner ADD leaseCounter :one"
        if row.get("leaseOwner", {"S": next_owner}) != {"S": next_owner}:
            update += ", ownerSwitchesSinceCheckpoint :one"
        return await self._write(row, update, " AND ".join(conditions), values)

    async def discover(self) -> list[str]:
        """LeaseDiscoverer: begin with leases that are assigned to it, once they are handed over; return their keys."""
        reply = await self._client.scan(TableName=self._table, ConsistentRead=True)
        found = [
            row
            for row in reply["Items"]
            if row.get("leaseOwner") == {"S": self.me} and "checkpointOwner" not in row and "checkpoint" in row
        ]
        begun = [row["leaseKey"]["S"] for row in found if row["leaseKey"]["S"] not in self.held]
        self.held |= {row["leaseKey"]["S"]: row for row in found if row["leaseKey"]["S"] in begun}
        return begun

    async def renew(self, lease_key: str) -> bool:
        """renewLease: the counter and the throughput, unless a hand-over has begun."""
        return await self._write_held(
            lease_key, "SET leaseCounter = :moved, throughputKBps = :rate", "", {":rate": {"N": "1.5"}}
        )

    async def checkpoint(self, lease_key: str, checkpoint: str) -> bool:
        update = (
            "SET leaseCounter = :moved, checkpoint = :checkpoint, checkpointSubSequenceNumber = :zero, "
            "ownerSwitchesSinceCheckpoint = :zero"
        )
        return await self._write_held(lease_key, update, "", {":checkpoint": {"S": checkpoint}, ":zero": number(0)})

    async def evict(self, lease_key: str) -> bool:
        row = self.held.pop(lease_key)
        return await self._write(
            row,
            "REMOVE leaseOwner, checkpointOwner ADD leaseCounter :one",
            "leaseOwner = :me AND attribute_not_exists(checkpointOwner) AND leaseKey = :key",
            {":me": {"S": self.me}, ":one": number(1), ":key": row["leaseKey"]},
        )

    async def _write_held(self, lease_key: str, update: str, condition: str, values: Row) -> bool:
        row = self.held[lease_key]
        counter = int(row["leaseCounter"]["N"])
        condition = "leaseCounter = :counter AND attribute_not_exists(checkpointOwner)" + condition
        values = values | {":counter": number(counter), ":moved": number(counter + 1)}
        is_written = await self._write(row, update, condition, values)
        if not is_written:
            del self.held[lease_key]
        return is_written

    async def _write(self, row: Row, update: str, condition: str, values: Row) -> bool:
        reply = await write_if(
            self._client.update_item,
            TableName=self._table,
            Key={"leaseKey": row["leaseKey"]},
            UpdateExpression=update,
            ConditionExpression=condition,
            ExpressionAttributeValues=values,
            ReturnValues="ALL_NEW",
        )
        if reply is not None and row["leaseKey"]["S"] in self.held:
            self.held[row["leaseKey"]["S"]] = reply["Attributes"]
        return reply is not None
