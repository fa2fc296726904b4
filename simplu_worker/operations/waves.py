"""Cut a batch into waves, so that one statement per wave has the effect of applying the batch one by one.

Why it is safe: within a wave, all reads see the rows as they were before the wave, and each resource is written at most
once. So an operation may share a wave with an earlier one unless it must see that one's effect: a write after a write
of its resource, a `read` after a write of its resource, a `list` after a write of its type. A write may share a wave
with an earlier read, which does not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from simplu_worker.operations.operation import READING_KINDS, Operation, OperationKind

LIST: Final = OperationKind.LIST  # looked up once: an enum answers slowly
READ: Final = OperationKind.READ


class Wave(msgspec.Struct, frozen=True, gc=False):
    """Positions, in the batch, of the operations that are applied together: first the reads, then the writes."""

    reads: list[int]
    writes: list[int]


def plan_waves(operations: Sequence[Operation]) -> list[Wave]:
    """Return the waves in which to apply *operations*; each operation is in exactly one, as early as it can be."""
    waves: list[Wave] = []
    next_write: dict[tuple[str, str, str | None], int] = {}  # by resource: the first wave that may write it again
    next_list: dict[tuple[str, str], int] = {}  # by type: the first wave whose reads see all writes so far
    listed: dict[tuple[str, str], int] = {}  # by type: no write before this wave, or an earlier list would see it
    for position, operation in enumerate(operations):
        kind, kind_of_resource = operation.kind, (operation.tenant_id, operation.resource_type)
        if kind is LIST:
            wave = next_list.get(kind_of_resource, 0)
            listed[kind_of_resource] = wave
        else:
            resource = operation.tenant_id, operation.resource_type, operation.resource_id
            wave = next_write.get(resource, 0)
            if kind is not READ:
                if listed:
                    wave = max(wave, listed.get(kind_of_resource, 0))
                next_write[resource] = wave + 1
                if next_list.get(kind_of_resource, 0) <= wave:
                    next_list[kind_of_resource] = wave + 1
        while len(waves) <= wave:
            waves.append(Wave(reads=[], writes=[]))
        (waves[wave].reads if kind in READING_KINDS else waves[wave].writes).append(position)
    return waves
