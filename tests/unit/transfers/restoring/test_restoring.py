"""How a restorer begins, by the rows, and its file of overwritten rows."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.settling import MovingTenant, SupersededError, Transfer
from simplu_worker.transfers.restoring import Beginning, ExportFile, RestoreMode, beginning_of
from simplu_worker.vocabulary import TenantState, TransferStep

NOW = datetime(2026, 11, 1, tzinfo=UTC)
EARLIER = "3/earlier"


def tenant(state: TenantState, token: int = 3) -> MovingTenant:
    return MovingTenant("a-x", "a", "x", "gym", state, 1, token, None, NOW, NOW, None, 1.0, NOW, Server("1", NOW))


def journal(step: TransferStep, run: str = "earlier", token: int = 3) -> Transfer:
    return Transfer("backup", f"{token}/{run}", step, 4, {"mode": RestoreMode.AS_OF_BACKUP}, NOW, NOW)


@pytest.mark.parametrize(
    ("state", "found", "expected"),
    [
        (TenantState.ACTIVE, None, Beginning.NEW),
        (TenantState.ACTIVE, journal(TransferStep.DONE), Beginning.NEW),
        (TenantState.ACTIVE, journal(TransferStep.OPEN), Beginning.NEW),  # a worker has ended the fence
        (TenantState.ACTIVE, journal(TransferStep.DONE, "own"), Beginning.ENDED),
        (TenantState.ACTIVE, journal(TransferStep.COPIED, "own"), Beginning.NEW),  # the shard has lost the fence
        (TenantState.FENCED, journal(TransferStep.OPEN), Beginning.NEW),
        (TenantState.FENCED, journal(TransferStep.REPLACING), Beginning.GO_ON),
        (TenantState.FENCED, journal(TransferStep.COPIED, "own"), Beginning.GO_ON),
    ],
)
def test_restorer_begins_where_the_rows_are(state: TenantState, found: Transfer | None, expected: Beginning) -> None:
    assert expected == beginning_of(tenant(state), found, RestoreMode.AS_OF_BACKUP, {"3/own", "2/earlier"}, EARLIER)


@pytest.mark.parametrize(
    ("state", "found", "error", "text"),
    [
        (
            TenantState.ACTIVE,
            journal(TransferStep.DONE, "another"),
            SupersededError,
            "another restore has started since",
        ),
        (TenantState.FENCED, None, RetryableError, "being moved"),
        (TenantState.FENCED, journal(TransferStep.DONE), RetryableError, "being moved"),
        (TenantState.FENCED, journal(TransferStep.REPLACING, token=2), RetryableError, "being moved"),
        (TenantState.MOVED, None, PermanentError, "the tenant is moved; only an active one"),
        (TenantState.DESTROYING, None, PermanentError, "the tenant is destroying"),
    ],
)
def test_restorer_is_refused_with_the_reason(
    state: TenantState, found: Transfer | None, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        beginning_of(tenant(state), found, RestoreMode.AS_OF_BACKUP, {"3/own", "2/earlier"}, EARLIER)


def test_restore_goes_on_in_its_mode_only() -> None:
    with pytest.raises(PermanentError, match=r"expected --as-of-backup, .* got --catch-up"):
        beginning_of(tenant(TenantState.FENCED), journal(TransferStep.REPLACING), RestoreMode.CATCH_UP, set(), EARLIER)
    with pytest.raises(PermanentError, match="has no row of the tenant"):
        beginning_of(None, None, RestoreMode.CATCH_UP)


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, open_file = tmp_path / "export.jsonl", os.open

    def open_full(made: Path, flags: int, mode: int) -> int:
        os.close(open_file(made, flags, mode))
        return open_file(FULL, os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(PermanentError, match="expected room for the tenant's rows at"), ExportFile(path, {}) as file:
        file.finish()
    assert not path.exists()
