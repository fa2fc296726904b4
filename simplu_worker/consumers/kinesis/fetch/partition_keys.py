"""Find operations with a wrong partition key. Pure.

They are applied: the worker takes the tenant from the record, and Kinesis has lost nothing. But operations of one
resource with different keys, or put on different stream shards, are applied in any order, and nobody else notices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.stream.aggregation import hash_of
from simplu_worker.consumers.kinesis.stream.positions import HashRange
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.partition_key import KEY_MAX, partition_key_by
from simplu_worker.vocabulary import PartitionKeyProblem, PartitionKeyRule

WARNING_INTERVAL_S: Final = 600.0  # of one stream shard
SHOWN_MAX: Final = 64  # characters of a key
REMEMBERED_MAX: Final = 4096  # right keys of one stream shard: about half a megabyte

_Key: TypeAlias = tuple[str | None, str, str]  # of a tenant and a type


class WrongKey(msgspec.Struct, frozen=True):
    """The partition key of one operation, as people see it, and what is wrong with it."""

    business_id: str
    location_id: str
    partition_key: str
    problem: PartitionKeyProblem


class PartitionKeys:
    """The partition keys of one stream shard: how many were wrong, and the last of them."""

    def __init__(self, rule: PartitionKeyRule, hash_range: HashRange | None) -> None:
        """*hash_range* is the stream shard's; None when it is unknown."""
        self._rule = rule
        self._hash_range = hash_range
        self._right: set[_Key] = set()  # some of the keys that were right
        self._wrong_count = 0
        self._unwarned_count = 0
        self._last: WrongKey | None = None
        self._warned_at: float | None = None

    def __repr__(self) -> str:
        return f"PartitionKeys({self._rule}, {self._wrong_count} wrong)"

    def note(self, operations: Sequence[Operation]) -> Counter[PartitionKeyProblem]:
        """Return how many of *operations* have which problem. A known key costs a look-up."""
        problems: Counter[PartitionKeyProblem] = Counter()
        if self._rule is PartitionKeyRule.ANY:
            return problems
        keys = [(one.origin.partition_key, one.tenant_id, one.resource_type) for one in operations]
        wrong: dict[_Key, PartitionKeyProblem] = {}
        for key in set(keys) - self._right:
            if (problem := self._problem_of(*key)) is not None:
                wrong[key] = problem
            else:
                self._remember(key)
        if wrong:
            for key, operation in zip(keys, operations, strict=True):
                if (found := wrong.get(key)) is not None:
                    problems[found] += 1
                    last = operation, found
            self._note_wrong(*last, problems.total())
        return problems

    def _remember(self, key: _Key) -> None:
        if len(self._right) >= REMEMBERED_MAX:
            self._right.clear()
        self._right.add(key)

    def _problem_of(self, key: str | None, tenant_id: str, resource_type: str) -> PartitionKeyProblem | None:
        expected = partition_key_by(self._rule, tenant_id, resource_type)
        if key is None:
            return None
        if key != expected and len(expected) <= KEY_MAX:
            return PartitionKeyProblem.ANOTHER_KEY
        own = self._hash_range
        if own is not None and not own.first <= hash_of(key) <= own.last:
            return PartitionKeyProblem.EXPLICIT_HASH_KEY
        return None

    def _note_wrong(self, operation: Operation, problem: PartitionKeyProblem, count: int) -> None:
        key = shown_key(operation.origin.partition_key or "")
        self._last = WrongKey(operation.business_id, operation.location_id, key, problem)
        self._wrong_count += count
        self._unwarned_count += count

    def take_warning(self, now: float) -> tuple[WrongKey, int] | None:
        """Return the last wrong key and how many came since the last warning; None while no warning is due."""
        is_recent = self._warned_at is not None and now < self._warned_at + WARNING_INTERVAL_S
        if self._last is None or not self._unwarned_count or is_recent:
            return None
        warning = self._last, self._unwarned_count
        self._warned_at, self._unwarned_count = now, 0
        return warning

    def status(self) -> dict[str, Any]:
        """Return the number of operations with a wrong key, and the last one, for the status."""
        if self._last is None:
            return {"wrongKeys": 0, "lastWrongKey": None}
        last = self._last
        members = {"businessId": last.business_id, "locationId": last.location_id}
        members |= {"partitionKey": last.partition_key, "problem": last.problem}
        return {"wrongKeys": self._wrong_count, "lastWrongKey": members}


def shown_key(key: str) -> str:
    """Return a partition key, which may be any text, for logs: cut, and without characters that are not printed."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in key[:SHOWN_MAX])
    return f"{shown}…" if len(key) > SHOWN_MAX else shown
