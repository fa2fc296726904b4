"""Find operations with a wrong partition key. Pure.

They are applied: the worker takes the tenant from the record. But operations of one resource with different keys are
applied in any order, and nobody else notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from simplu_worker.operations.operation import Operation
from simplu_worker.operations.partition_key import KEY_MAX, partition_key_by
from simplu_worker.vocabulary import PartitionKeyRule

WARNING_INTERVAL_S: Final = 600.0  # of one stream shard
SHOWN_MAX: Final = 64  # characters of a key


class PartitionKeys:
    """The wrong partition keys of one stream shard since the last warning."""

    def __init__(self, rule: PartitionKeyRule) -> None:
        self._rule = rule
        self._unwarned_count = 0
        self._last: Operation | None = None
        self._warned_at = float("-inf")

    def note(self, operations: Sequence[Operation]) -> int:
        """Return how many of *operations* have a wrong key."""
        if self._rule is PartitionKeyRule.ANY:
            return 0
        keys = [(one.origin.partition_key, one.tenant_id, one.resource_type) for one in operations]
        wrong = {key for key in set(keys) if self._is_wrong(*key)}
        found = [one for key, one in zip(keys, operations, strict=True) if key in wrong] if wrong else []
        if found:
            self._last = found[-1]
            self._unwarned_count += len(found)
        return len(found)

    def _is_wrong(self, key: str | None, tenant_id: str, resource_type: str) -> bool:
        expected = partition_key_by(self._rule, tenant_id, resource_type)
        return key not in (None, expected) and len(expected) <= KEY_MAX

    def take_warning(self, now: float) -> tuple[Operation, int] | None:
        """Return the last operation with a wrong key and how many came since the last warning; None if none is due."""
        if self._last is None or not self._unwarned_count or now < self._warned_at + WARNING_INTERVAL_S:
            return None
        warning = self._last, self._unwarned_count
        self._warned_at, self._unwarned_count = now, 0
        return warning


def shown_key(key: str) -> str:
    """Return a partition key, which may be any text, for logs: cut, and without characters that are not printed."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in key[:SHOWN_MAX])
    return f"{shown}…" if len(key) > SHOWN_MAX else shown
