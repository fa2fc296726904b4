"""Whether a tenant can be restored from a backup: by its rows there and on its shard, and by the positions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from simplu_worker.commands.backups.position_rules import JudgedPosition, PositionState
from simplu_worker.transfers.restoring.journal import Journal, RestoreMode, RestoreStep
from simplu_worker.vocabulary import TenantState

RETENTION_SPARE: Final = timedelta(hours=1)  # of the stream, for the restore itself and the catch-up
LOG_SHARE: Final = 0.9  # of the log's retention
REPEATED_WITHIN: Final = timedelta(hours=24)  # a restore in the same mode may be the same one by mistake


def refusal_of_database(backup: Mapping[str, Any], live: Mapping[str, Any]) -> str | None:
    """Return why the database at BACKUP_URL is no backup: rows that are deleted on the shard would go there as well."""
    if backup["is_standby"]:
        return "expected a server that takes writes, got a standby, which follows another one; promote it first"
    if (backup["started_at"], backup["database"]) == (live["started_at"], live["database"]):
        return "expected a backup, got the database of the shard itself"
    return None


def refusal_of_rows(backup: Mapping[str, Any] | None, live: Mapping[str, Any], mode: RestoreMode) -> str | None:
    """Return why the tenant's rows in a backup cannot take the place of the live ones; None if they can.

    *backup* and *live* are its rows of `tenants`.
    """
    if backup is None:
        return "expected the tenant in the backup, got none: it was made later; take a newer backup"
    if (backup["business_id"], backup["location_id"]) != (live["business_id"], live["location_id"]):
        return "expected the tenant in the backup, got another business and location with its id"
    if backup["state"] != TenantState.ACTIVE:  # a fenced one may have a part of its rows, during a restore
        return f"expected an active tenant in the backup, got one that is {backup['state']} there; take another backup"
    if backup["business_type"] != live["business_type"]:
        return f"expected the business type {live['business_type']} in the backup, got {backup['business_type']}"
    if mode is RestoreMode.CATCH_UP and backup["created_at"] != live["created_at"]:
        return (
            "expected the tenant that is in the backup, got one that was destroyed and made again since: no operation "
            "from before is applied to it; restore it with --as-of-backup"
        )
    return None


def refusal_of_positions(
    positions: Iterable[JudgedPosition], *, now: datetime, retention: timedelta, log_kept: timedelta
) -> str | None:
    """Return why the stream cannot be read again from the positions in a backup; None if it can.

    *log_kept* is OPERATION_RETENTION_HOURS: the logs of the other tenants drop the operations that come again.
    """
    for one in positions:
        if one.state is PositionState.LEVEL:
            continue
        age = timedelta() if one.since is None else now - one.since
        if one.state is PositionState.LOST or age > retention - RETENTION_SPARE:
            return (
                f"expected positions that the stream has for another {_hours(RETENTION_SPARE)} h at least, with its "
                f"retention of {_hours(retention)} h, got one of {_hours(age)} h ago ({one.stream_shard_id}); take a "
                "newer backup, or restore the tenant with --as-of-backup"
            )
        if age > log_kept * LOG_SHARE:
            return (
                f"expected positions from the last {_hours(log_kept * LOG_SHARE)} h, which the logs of all tenants "
                f"reach back to, got one of {_hours(age)} h ago ({one.stream_shard_id}); take a newer backup, or "
                "restore the tenant with --as-of-backup"
            )
    return None


def refusal_of_repetition(journal: Journal | None, mode: RestoreMode, export: Path | None) -> str | None:
    """Return why the same command does not restore a tenant twice; None if it has not restored it, or long ago.

    It restores it once more with another file as *export*: the person knows then that it is another restore.
    """
    if journal is None or (journal.step, journal.mode) != (RestoreStep.DONE, mode):
        return None
    age = timedelta(seconds=journal.written_s_ago)
    is_same_file = export is None or str(export.absolute()) == journal.export
    if age > REPEATED_WITHIN or not is_same_file:
        return None
    return (
        f"expected a tenant that was not restored within {_hours(REPEATED_WITHIN)} h, got one that was restored with "
        f"--{mode} {_hours(age)} h ago, and goes on: a second restore undoes what it has applied since. If you want "
        f"that, name another file than {journal.export} with --export"
    )


def _hours(time: timedelta) -> str:
    return f"{time.total_seconds() / 3600:.1f}".removesuffix(".0")
