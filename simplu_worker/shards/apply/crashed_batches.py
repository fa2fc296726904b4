"""Apply a batch at which the worker's own code raised what nobody foresaw: tenant by tenant, then one by one.

An operation that raises alone is tried again as one that its shard refuses, then it is a dead letter, without a row in
the log. Where nothing was ever applied, no operation is at fault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from simplu_worker.errors import WorkerError, place_of
from simplu_worker.operations.dead_letter import defect_text
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.write_attempt import STOPPING, key_of
from simplu_worker.vocabulary import DeadLetterReason

TRIES_MAX: Final = 4
REMEMBERED_MAX: Final = 1000  # operations that raised, of which the last are remembered

Apply: TypeAlias = Callable[[Sequence[Operation]], Awaitable[list[Outcome]]]


class CrashedBatches:
    """The operations that raised alone, and how often."""

    def __init__(self) -> None:
        self.has_applied = False
        self._tries: dict[tuple[str, str], int] = {}

    async def apply_apart(self, apply: Apply, operations: Sequence[Operation]) -> list[Outcome]:
        """Return the outcomes of *operations*, by *apply* for those of each tenant.

        Raises as *apply* without one at fault.
        """
        outcomes = [HOLD] * len(operations)
        by_tenant: defaultdict[str, list[int]] = defaultdict(list)
        for index, operation in enumerate(operations):
            by_tenant[operation.tenant_id].append(index)
        for indexes in by_tenant.values():
            own = [operations[index] for index in indexes]
            try:
                applied = await apply(own)
            except WorkerError:
                raise
            except Exception:  # noqa: BLE001  # whatever a defect raises
                applied = await self._apply_singly(apply, own)
            self.has_applied = True
            for index, outcome in zip(indexes, applied, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def _apply_singly(self, apply: Apply, operations: Sequence[Operation]) -> list[Outcome]:
        outcomes = [HOLD] * len(operations)
        for index, operation in enumerate(operations):
            try:
                (outcomes[index],) = await apply([operation])
            except WorkerError:
                raise
            except Exception as exc:
                if not self.has_applied or isinstance(exc, MemoryError):
                    raise
                outcomes[index] = self._count(operation, exc)
            else:
                self.has_applied = True
            if outcomes[index].disposition in STOPPING:
                break
        return outcomes

    def _count(self, operation: Operation, exc: Exception) -> Outcome:
        key = key_of(operation)
        tries = self._tries.pop(key, 0) + 1
        if tries >= TRIES_MAX:
            reason = DeadLetterReason.INTERNAL_ERROR
            return Outcome(disposition=Disposition.DEAD_LETTER, reason=reason, error=defect_text(exc))
        self._tries[key] = tries
        if len(self._tries) > REMEMBERED_MAX:
            del self._tries[next(iter(self._tries))]
        return Outcome(disposition=Disposition.UNEXPECTED, error=place_of(exc))
