"""Run the waves of a batch in its transaction, in as few round trips as the patches that the worker merges allow.

Why the order is kept: a patch that the worker merges is put off, but not behind a wave with an operation that must see
it or that writes its resource. Operations on other resources have the same effect before it as behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simplu_worker.operations.admission import TenantRow
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.patch_merging import (
    BoundsExceededError,
    ResourceId,
    merge_in_worker,
    merge_together,
    resource_of,
    updated_by,
)
from simplu_worker.shards.apply.wave_statement import LIST, WaveStatement, wave_arguments
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import Failure


class WaveRun:
    """The waves of one batch. Operations are known by their numbers, in the order of the waves.

    `failures` are, at the end, the errors of the operations without effect, by number.
    """

    def __init__(self, connection: Connection, statement: WaveStatement, tenants: Mapping[str, TenantRow]) -> None:
        self.failures: list[tuple[int, str]] = []
        self._connection = connection
        self._statement = statement
        self._tenants = tenants
        self._waiting: list[tuple[int, Sequence[Operation]]] = []  # waves that were not sent yet
        self._patches: dict[ResourceId, list[tuple[int, Operation]]] = {}  # put off, by resource

    def __repr__(self) -> str:
        return f"WaveRun({len(self._waiting)} waves waiting, {len(self._patches)} resources with patches put off)"

    async def add_wave(self, number: int, operations: Sequence[Operation]) -> None:
        """Add a wave; *number* is that of its first operation."""
        if self._patches:
            for key in self._resources_before(operations):
                await self._merge(key)
        self._waiting.append((number, operations))

    def add_patch(self, number: int, operation: Operation) -> None:
        """Add a wave with a patch that the worker merges."""
        self._patches.setdefault(resource_of(operation), []).append((number, operation))

    async def finish(self) -> None:
        """Apply the patches that were put off, and send the last waves."""
        for key in list(self._patches):
            await self._merge(key)
        await self._send()

    def _resources_before(self, operations: Sequence[Operation]) -> list[ResourceId]:
        """Return the resources with patches put off that must be merged before a wave of *operations*."""
        resources = {resource_of(operation) for operation in operations}
        lists = {resource_of(operation)[:2] for operation in operations if operation.kind is LIST}
        return [key for key in self._patches if key in resources or key[:2] in lists]

    async def _merge(self, key: ResourceId) -> None:
        """Merge the patches of a resource that were put off."""
        patches = self._patches.pop(key)
        await self._send()  # earlier waves: the patches are merged into their result
        merged = await merge_together(self._connection, key, [operation for _, operation in patches])
        if merged is None:
            for number, operation in patches:
                await self._merge_alone(number, operation)
            return
        await self._refuse([patches[refused] for refused in merged.refused])
        if len(merged.refused) < len(patches):
            last = max(set(range(len(patches))).difference(merged.refused))
            self._add_update(*patches[last], merged.data)

    async def _merge_alone(self, number: int, operation: Operation) -> None:
        await self._send()
        try:
            updated = await merge_in_worker(self._connection, operation)
        except BoundsExceededError:
            await self._refuse([(number, operation)])
        else:
            self._waiting.append((number, [updated]))

    def _add_update(self, number: int, patch: Operation, data: str) -> None:
        self._waiting.append((number, [updated_by(patch, data)]))

    async def _refuse(self, patches: Sequence[tuple[int, Operation]]) -> None:
        failed = [(operation.tenant_id, operation.request_id, Failure.INVALID_DATA) for _, operation in patches]
        if failed:
            await self._connection.fetchmany(QUERIES["fail_operation"], failed)
            self.failures += [(number, Failure.INVALID_DATA) for number, _ in patches]

    async def _send(self) -> None:
        """Send the waves that wait. Their arguments, megabytes for each, are made when they are put on the wire."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            arguments = (wave_arguments(self._statement, *wave, self._tenants) for wave in waiting)
            rows: list[Any] = await self._connection.fetchmany(QUERIES[self._statement.query], arguments)
            self.failures += [(row["index"], row["error"]) for row in rows]
