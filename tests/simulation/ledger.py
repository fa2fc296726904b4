"""All records that were put, their fates, and the states that must never be (architecture, "What must always hold").

Every write to the lease table and every effect of an operation is checked at the instant at which it happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace
from simulation.simulated_shards import PostgresShards, RecordKey, record_key

from simplu_worker.consumers.kinesis.leases.lease import Lease, is_lease, lease_of
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Operation, Origin
from simplu_worker.vocabulary import DeadLetterReason, Source

ORDER_RULES = OrderRules(1_000_000)


class Put(msgspec.Struct, frozen=True):
    """One record of the stream, or a part of one; *operation* is None when it holds none."""

    index: int  # over the whole stream: the order in which records of one partition key must take effect
    position: Position
    origin: Origin
    operation: Operation | None


class PutPart(NamedTuple):
    """A part of a record that is put: an operation, or none, and its place."""

    record: bytes
    sub_sequence_number: int = 0
    part_index: int | None = None
    parts_behind: int = 0


class Ledger:
    """All records, and the first rule that was broken."""

    def __init__(self, shards: PostgresShards, *, tenant_wait: timedelta, is_closed: Callable[[str], bool]) -> None:
        self._shards = shards
        self._tenant_wait = tenant_wait
        self._is_closed = is_closed
        self.puts: list[Put] = []
        self.by_stream_shard: dict[str, list[Put]] = {}
        self.violations: list[str] = []
        self.excused: set[int] = set()  # the indexes of records that another reader took care of
        self._orders: list[Put] = []
        self._by_key: dict[RecordKey, Put] = {}
        self._last_applied: dict[tuple[Source, str], Put] = {}  # by partition key, or by group of the queue
        self._applied: dict[tuple[str, str], int] = {}  # by tenant and request id: the index of the record
        self._settled: dict[str, int] = {}  # by stream shard: how many of its first records are known to be settled
        self.lost: set[int] = set()  # the indexes of records that a shard has lost, and not got again
        self.has_lost = False
        shards.on_applied = self._note_applied
        shards.on_lost = self._note_lost

    def violate(self, rule: str) -> None:
        self.violations.append(rule)

    def note_put(
        self, parts: Sequence[PutPart], partition_key: str, answer: Mapping[str, str], arrived_at: datetime
    ) -> None:
        stream_shard_id, sequence_number = answer["ShardId"], answer["SequenceNumber"]
        for record, sub_sequence_number, part_index, parts_behind in parts:
            origin = Origin(
                Source.KINESIS,
                "operations",
                arrived_at,
                stream_shard_id=stream_shard_id,
                sequence_number=sequence_number,
                sub_sequence_number=sub_sequence_number,
                partition_key=partition_key,
                part_index=part_index,
                parts_behind=parts_behind,
            )
            decoded = decode_operation(record, origin, max_bytes=1_000_000, list_limit=100)
            operation = decoded if isinstance(decoded, Operation) else None
            position = Position(int(sequence_number), sub_sequence_number, -parts_behind)
            put = Put(len(self.puts), position, origin, operation)
            self.puts.append(put)
            self.by_stream_shard.setdefault(stream_shard_id, []).append(put)
            self._by_key[record_key(origin)] = put

    def note_order(self, body: str, group_id: str, sequence_number: str, arrived_at: datetime) -> None:
        origin = Origin(Source.SQS, "orders", arrived_at, sequence_number=sequence_number, group_id=group_id)
        decoded = decode_order(body, {}, origin, ORDER_RULES, deduplication_id=None)
        operation = decoded if isinstance(decoded, Operation) else None
        put = Put(len(self.puts), Position(int(sequence_number), 0, 0), origin, operation)
        self.puts.append(put)
        self._orders.append(put)
        self._by_key[record_key(origin)] = put

    def is_settled(self, put: Put) -> bool:
        """Whether a record was applied, or dropped for an earlier one of the same request, or is a dead letter."""
        if put.index in self.excused or record_key(put.origin) in self._shards.letters:
            return True
        operation = put.operation
        if operation is None:
            return False
        return self._shards.log.get((operation.tenant_id, operation.request_id)) == operation.digest

    def excuse_orders(self, keys: Sequence[tuple[str, str]]) -> None:
        """Expect no more of the order events of *keys*, by tenant and request: a backup lacks them."""
        gone = set(keys)
        self.excused |= {
            put.index
            for put in self._orders
            if put.operation is not None and (put.operation.tenant_id, put.operation.request_id) in gone
        }

    def first_unsettled(self, stream_shard_id: str) -> Put | None:
        puts = self.by_stream_shard.get(stream_shard_id, [])
        count = self._settled.get(stream_shard_id, 0)
        while count < len(puts) and self.is_settled(puts[count]):
            count += 1
        self._settled[stream_shard_id] = count
        return puts[count] if count < len(puts) else None

    def first_never_settled(self, stream_shard_id: str) -> Put | None:
        """Return the same, without the records that a shard has lost: the worker may not know of the loss yet."""
        puts = self.by_stream_shard.get(stream_shard_id, [])
        return next((put for put in puts if put.index not in self.lost and not self.is_settled(put)), None)

    def open_operations(self) -> list[Put]:
        return [put for put in self.puts if put.operation is not None and not self.is_settled(put)]

    def unsettled(self) -> list[str]:
        orders = [f"order event {put.index}" for put in self._orders if not self.is_settled(put)]
        return orders + [one for one in self.by_stream_shard if self.first_unsettled(one)]

    def check_fates(self) -> None:
        for put in self.puts:
            expected = self._expected_letter(put)
            reason = self._shards.letters.get(record_key(put.origin))
            if self.has_lost and DeadLetterReason.REQUEST_ID_REUSED in (reason, expected):
                continue  # which of two was first may be decided anew, with another outcome
            if reason is DeadLetterReason.UNKNOWN_TENANT and self._may_be_given_up(put):
                continue
            if reason != expected:
                self.violate(f"record {put.index}: expected the dead letter {expected}, came {reason}")
            is_given_up = reason is DeadLetterReason.RETRIES_EXHAUSTED  # its row was written
            if reason is not None and not is_given_up and put.index in self._applied.values():
                self.violate(f"record {put.index} is applied and a dead letter ({reason})")

    def watch_lease(
        self, key: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, *, replica: str | None
    ) -> None:
        rows = [row for row in (before, after) if row is not None]
        if not all(map(is_lease, rows)):
            if replica not in (None, key):  # a follower writes its own metrics
                self.violate(f"{replica} wrote to a row that is no lease: {rows}")
            return
        old, new = (None if row is None else lease_of(row) for row in (before, after))
        if replica is not None and old is not None and new is not None:
            self._check_writer(old, new, replica)
        if new is None:
            if old is None or old.checkpoint != SHARD_END:
                self.violate(f"lease {key} was deleted before its end: {old}")
            return
        if after is not None and any(not next(iter(value.values())) for value in after.values()):
            self.violate(f"lease {key} has an empty attribute: {after}")
        if old is not None and (new.counter < old.counter or new.checkpoint < old.checkpoint):
            self.violate(f"lease {key} went back from {old.counter}, {old.checkpoint} to {new}")
        if old is None or new.checkpoint != old.checkpoint:
            self._check_checkpoint(new)

    def _check_writer(self, old: Lease, new: Lease, replica: str) -> None:
        if old.checkpoint_owner == replica and new.checkpoint_owner is None and new.owner not in (old.owner, replica):
            self.violate(f"{replica} hands lease {old.lease_key} over to {new.owner}, and not to {old.owner}")
        is_taken = new.actual_owner == replica and new.counter == old.counter + 1
        is_own = old.actual_owner in (None, replica)
        for_people = replace(new, hash_range=old.hash_range)
        if not is_own and not is_taken and for_people != old:
            self.violate(f"{replica} wrote to lease {old.lease_key} of {old.actual_owner}: {new}")

    def _check_checkpoint(self, lease: Lease) -> None:
        pending = self.first_never_settled(lease.lease_key) if self.lost else self.first_unsettled(lease.lease_key)
        if pending is not None and lease.checkpoint >= pending.position:
            self.violate(f"checkpoint {lease.checkpoint.checkpoint} of {lease.lease_key} passed record {pending.index}")
        if lease.checkpoint == SHARD_END and not self._is_closed(lease.lease_key):
            self.violate(f"SHARD_END of {lease.lease_key}, which is open")

    def _note_lost(self, keys: Sequence[tuple[str, str]]) -> None:
        self.has_lost = self.has_lost or bool(keys)
        self._settled.clear()
        gone = {self._applied.pop(key) for key in keys}
        self.lost |= {
            put.index
            for put in self.puts
            if put.operation is not None and (put.operation.tenant_id, put.operation.request_id) in set(keys)
        }
        for line in {_line(self.puts[index].origin) for index in gone}:
            left = [index for index in self._applied.values() if _line(self.puts[index].origin) == line]
            self._last_applied.pop(line, None)
            if left:
                self._last_applied[line] = self.puts[max(left)]

    def _note_applied(self, operation: Operation) -> None:
        origin = operation.origin
        put = self._by_key[record_key(origin)]
        # Not those under the same request id that are another operation: their reader does not know of the loss yet.
        self.lost -= {index for index in self.lost if _identity(self.puts[index].operation) == _identity(operation)}
        key = (operation.tenant_id, operation.request_id)
        if self._shards.tenants[operation.tenant_id].shard_id in self._shards.held_back:
            self.violate(f"record {put.index} took effect over a gap that nobody has accepted")
        if key in self._applied:
            self.violate(f"record {put.index} took effect twice")
        self._applied[key] = put.index
        line = _line(origin)
        last = self._last_applied.get(line)
        if last is not None and last.index > put.index:
            self.violate(f"record {put.index} of {origin.stream_shard_id} took effect after {last.index} of {line}")
        self._last_applied[line] = put

    def _may_be_given_up(self, put: Put) -> bool:
        created_at = None if put.operation is None else self._shards.tenants[put.operation.tenant_id].created_at
        is_order = put.origin.source is Source.SQS
        return is_order and created_at is not None and put.origin.arrived_at + self._tenant_wait <= created_at

    def _expected_letter(self, put: Put) -> DeadLetterReason | None:
        operation = put.operation
        if operation is None:
            return DeadLetterReason.INVALID_JSON
        created_at = self._shards.tenants[operation.tenant_id].created_at
        is_of_stream = operation.origin.source is Source.KINESIS  # for an order event it is never too late
        if created_at is None or (is_of_stream and operation.origin.arrived_at + self._tenant_wait <= created_at):
            return DeadLetterReason.UNKNOWN_TENANT
        logged = self._shards.log.get((operation.tenant_id, operation.request_id))
        if operation.request_id in self._shards.poison and logged in {None, operation.digest}:
            return DeadLetterReason.RETRIES_EXHAUSTED
        if logged != operation.digest:  # of two, the other one may have been given up first
            return DeadLetterReason.REQUEST_ID_REUSED
        return None


def _line(origin: Origin) -> tuple[Source, str]:
    return origin.source, origin.partition_key or origin.group_id or ""


def _identity(operation: Operation | None) -> tuple[str, str, bytes] | None:
    return None if operation is None else (operation.tenant_id, operation.request_id, operation.digest)
