"""Split a batch into waves, so that one statement per wave has the effect of applying the batch one by one. Pure.

Why it is safe: within a wave, all reads see the rows as they were before the wave, and each resource is written at most
once. So an operation may share a wave with an earlier one unless it must see that one's effect: a write after a write
of its resource, a `read` after a write of its resource, a `list` after a write of its type or of the settings, which
have the time zone of its days. A write may share a wave with an earlier read, which does not see it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from simplu_worker.operations.operation import Operation
from simplu_worker.vocabulary import OperationKind

LIST: Final = OperationKind.LIST  # looked up once: access to an enum member is slow
READ: Final = OperationKind.READ
SETTINGS: Final = "settings"  # the resource type


class Wave(msgspec.Struct, frozen=True, gc=False):
    """The indexes, in the batch, of the operations that are applied together: first the reads, then the writes."""

    reads: list[int]
    writes: list[int]


def plan_waves(operations: Sequence[Operation]) -> list[Wave]:
    """Return the waves in which to apply *operations*; each operation is in exactly one, as early as it can be."""
    reads: list[list[int]] = []
    writes: list[list[int]] = []
    listing = {operation.tenant_id for operation in operations if operation.kind is LIST}
    next_write: dict[tuple[str, str, str | None], int] = {}  # by resource: the first wave that may write it again
    next_list: dict[tuple[str, str], int] = {}  # by type: the first wave with reads that see all writes so far
    listed: dict[tuple[str, str], int] = {}  # by type: the earliest wave of a write that no earlier list may see
    for index, operation in enumerate(operations):
        kind, tenant_id = operation.kind, operation.tenant_id
        if kind is LIST:
            of_type, of_settings = (tenant_id, operation.resource_type), (tenant_id, SETTINGS)
            into, wave = reads, max(next_list.get(of_type, 0), next_list.get(of_settings, 0))
            listed[of_type] = max(listed.get(of_type, 0), wave)
            listed[of_settings] = max(listed.get(of_settings, 0), wave)
        else:
            resource = tenant_id, operation.resource_type, operation.resource_id
            into, wave = reads, next_write.get(resource, 0)
            if kind is not READ:
                into = writes
                if tenant_id in listing:
                    of_type = tenant_id, operation.resource_type
                    wave = max(wave, listed.get(of_type, 0))
                    next_list[of_type] = max(next_list.get(of_type, 0), wave + 1)
                next_write[resource] = wave + 1
        if wave == len(reads):
            reads.append([])
            writes.append([])
        into[wave].append(index)
    return [Wave(*both) for both in zip(reads, writes, strict=True)]


def isolate(waves: Sequence[Sequence[int]], isolated: Collection[int]) -> Sequence[Sequence[int]]:
    """Return *waves* with each of the operations *isolated* in a wave of its own, right behind its former one.

    Its former wave writes no resource of it, and contains the reads that must not see it.
    """
    if not isolated:
        return waves
    apart: list[Sequence[int]] = []
    for wave in waves:
        rest = [index for index in wave if index not in isolated]
        apart += [rest] if rest else []
        apart += [[index] for index in wave if index in isolated]
    return apart
