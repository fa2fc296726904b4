"""Merge patches in the worker: those of which the shard would take more than linear time, and judged ones.

The rows stay locked from their read to the end of the transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.operations.json_record import BOUNDS_TEXT, exceeds_bounds, is_laborious, merge_texts
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import OperationKind

ResourceId: TypeAlias = tuple[str, str, str]  # tenant, type, id

DOCUMENT_MAX_BYTES: Final = 32 * 1024 * 1024  # as Postgres stores it uncompressed; a larger one is never read
TOGETHER_MAX_BYTES: Final = 16 * 1024  # the same, of documents that are in memory together
PATCH: Final = OperationKind.PATCH  # looked up once: access to an enum member is slow


class UnmergeableError(PermanentError):
    """The merged data cannot be stored: they exceed the bounds, or Postgres refuses the patch."""


def find_laborious(
    operations: Sequence[Operation], patches: Iterable[int], large: Container[ResourceId]
) -> frozenset[int]:
    """Return those indexes of *patches* that the worker merges; *large* are resources of which it merges all."""
    return frozenset(
        index
        for index in patches
        if is_laborious(operations[index].text or "") or resource_of(operations[index]) in large
    )


def resource_of(operation: Operation) -> ResourceId:
    """Return the tenant, type and id of an operation's resource."""
    return operation.tenant_id, operation.resource_type, operation.resource_id or ""


def updated_by(patch: Operation, data: str) -> Operation:
    """Return an `update` in place of *patch*, with the *data* that it makes."""
    return msgspec.structs.replace(patch, kind=OperationKind.UPDATE, data=msgspec.Raw(data))


async def merge_each(connection: Connection, patches: Sequence[Operation]) -> list[str | UnmergeableError | None]:
    """Lock the rows of resources, and return the data of each changed by its one patch; None where there is no row."""
    keys = list(map(resource_of, patches))
    stored = await _lock(connection, keys, TOGETHER_MAX_BYTES)
    merged: list[str | UnmergeableError | None] = []
    for number, (key, patch) in enumerate(zip(keys, patches, strict=True)):
        text = patch.text or ""
        try:
            if (data := stored.get(number, "{}")) is None:  # large data are read one by one
                merged.append(await merge_into_row(connection, key, text))
            else:
                result = await _merge(data, text)
                merged.append(result if number in stored else None)
        except UnmergeableError as exc:
            merged.append(exc)
    return merged


async def merge_into_row(connection: Connection, key: ResourceId, patch: str) -> str | None:
    """Lock the row of a resource, and return its data changed by *patch*.

    None without a row. Raises `UnmergeableError`.
    """
    stored = await _lock(connection, [key], DOCUMENT_MAX_BYTES)
    return await _merge(stored[0], patch) if stored else None


async def _lock(connection: Connection, keys: Sequence[ResourceId], max_bytes: int) -> dict[int, str | None]:
    rows = await connection.fetch(QUERIES["lock_targets"], *map(list, zip(*keys, strict=True)), max_bytes)
    return {row["number"]: row["data"] for row in rows}


async def _merge(data: str | None, patch: str) -> str:
    if data is None:  # beyond the bounds, from before it was adopted
        raise UnmergeableError(f"the stored data: expected {BOUNDS_TEXT}, got more; replace them by an update")
    try:
        if len(data) + len(patch) <= TOGETHER_MAX_BYTES:
            merged = merge_texts(data, patch)
        else:
            merged = await asyncio.to_thread(merge_texts, data, patch)
    except ValueError:
        raise UnmergeableError("expected texts without U+0000 and lone surrogates, got others") from None
    if exceeds_bounds(merged):
        raise UnmergeableError(f"the merged data: expected {BOUNDS_TEXT}, got more")
    return merged.decode()
