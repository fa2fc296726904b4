"""Marks in the log of changes to resources that no operation made, each in the transaction of its change.

What follows a tenant's changes (moves, repairs, restores) finds these beside the operations. A transaction has one
batch in the log, so it marks its changes once, with the rows of their tenants locked.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TypeAlias

from simplu_worker.shards.log.keys import key_of_id
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES

ChangedResource: TypeAlias = tuple[str, str, str]  # tenant, resource type and id


class MarkOrigin(StrEnum):
    """Why a resource was changed without an operation: the origin of its mark."""

    CONTROL = "control"  # a control message, or a repair
    RENAME = "rename"  # of the two ids of its batch
    ERASURE = "erasure"
    CREATION = "creation"  # the default row of a tenant that was made


class BulkChange(StrEnum):
    """A change of many of a tenant's resources: the `kind` of a batch without rows."""

    COPIED = "r"  # by a move or a restore
    IMPORTED = "i"
    DESTROYED = "d"


class BulkOrigin(StrEnum):
    """Of a bulk change, what followers of the log cannot tell by its kind."""

    RESTORE = "restore"  # copied, but by no move
    UNREAD = "unread"  # a move or a clean-up has deleted changes here that the feed had not read
    END = "end"  # the last of a destroyed tenant


async def mark_changes(
    connection: Connection, resources: Iterable[ChangedResource], origin: MarkOrigin = MarkOrigin.CONTROL
) -> None:
    """Leave a row in the log for each of *resources*, which this transaction changes."""
    named = list(resources)
    if named:
        await connection.execute(
            QUERIES["mark_changes"],
            [tenant_id for tenant_id, _, _ in named],
            [resource_type for _, resource_type, _ in named],
            [key_of_id(resource_id) for _, _, resource_id in named],
            origin,
        )


async def mark_bulk_change(
    connection: Connection, change: BulkChange, tenant_id: str, origin: BulkOrigin | None = None
) -> None:
    """Leave a batch in the log for what this transaction changes of a tenant's resources."""
    await connection.execute(QUERIES["mark_bulk_change"], change, tenant_id, [] if origin is None else [origin])
