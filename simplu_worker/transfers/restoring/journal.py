"""The journal of a restore on the shard of its tenant, and where a restorer begins by it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.settling.rows import MovingTenant
from simplu_worker.transfers.sql_files import QUERIES
from simplu_worker.vocabulary import TenantState


class RestoreMode(StrEnum):
    """What becomes of the operations since the backup."""

    CATCH_UP = "catch-up"  # they are read again from the stream, and applied
    AS_OF_BACKUP = "as-of-backup"  # they stay undone


class RestoreStep(StrEnum):
    """The step of a restore, as the journal has it."""

    EXPORTING = "exporting"  # the tenant is fenced with a deadline, and nothing is overwritten
    REPLACING = "replacing"  # only a restorer ends the fence
    COPIED = "copied"
    DONE = "done"


class Journal(msgspec.Struct, frozen=True):
    """The journal of a tenant's last restore. *detail* names the file with the overwritten rows."""

    run: str
    move_token: int
    mode: RestoreMode
    step: RestoreStep
    writes: int
    detail: dict[str, Any]
    started_at: datetime
    written_s_ago: float

    @property
    def export(self) -> str | None:
        """The file with the rows that were overwritten."""
        return self.detail.get("export")


class Beginning(StrEnum):
    """How a restorer begins."""

    NEW = "new"  # with the fence
    GO_ON = "go on"  # where one has begun to overwrite rows
    ENDED = "ended"  # it has released the tenant, and got no answer


class RestoreTakenError(PermanentError):
    """Another restorer of the tenant has begun since."""


async def read_journal(connection: Connection, tenant_id: str) -> Journal | None:
    """Return the journal of a tenant's last restore."""
    row = await connection.fetchrow(QUERIES["find_restore"], tenant_id)
    if row is None:
        return None
    values = dict(row) | {"mode": RestoreMode(row["mode"]), "step": RestoreStep(row["step"])}
    return Journal(**values | {"detail": msgspec.json.decode(row["detail"])})


def beginning_of(
    tenant: MovingTenant | None,
    journal: Journal | None,
    mode: RestoreMode,
    own_runs: Collection[str] = (),
    earlier_run: str | None = None,
) -> Beginning:
    """Return how a restorer begins, by the tenant's row and the journal.

    *own_runs* are those of this command, *earlier_run* that of the journal when it began. Raises `RestoreTakenError` if
    another restorer has begun since, `RetryableError` while the tenant is being moved, and `PermanentError` if it
    cannot be restored.
    """
    if tenant is None:
        raise PermanentError("expected the tenant's home, got no row; run: simplu-worker tenants show")
    if journal is not None and journal.run not in {*own_runs, earlier_run}:
        raise RestoreTakenError(f"{tenant.id}: another restore has begun since; it goes on, and this one has ended")
    if tenant.state is TenantState.ACTIVE:
        is_own = journal is not None and journal.run in own_runs and journal.step is RestoreStep.DONE
        return Beginning.ENDED if is_own else Beginning.NEW
    if tenant.state is not TenantState.FENCED:
        raise PermanentError(f"{tenant.id}: expected an active tenant, got one that is {tenant.state}")
    if journal is None or journal.step is RestoreStep.DONE or journal.move_token != tenant.move_token:
        raise RetryableError(f"{tenant.id}: the tenant is being moved")
    if journal.step is RestoreStep.EXPORTING:
        return Beginning.NEW
    if journal.mode is not mode:
        raise PermanentError(
            f"{tenant.id}: expected --{journal.mode}, which an earlier command has begun with, got --{mode}"
        )
    return Beginning.GO_ON
