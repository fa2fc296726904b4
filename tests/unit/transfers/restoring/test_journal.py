"""Where a restorer begins, by the tenant's row and the journal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.settling import MovingTenant
from simplu_worker.transfers.restoring import (
    Beginning,
    Journal,
    RestoreMode,
    RestoreStep,
    RestoreTakenError,
    beginning_of,
)
from simplu_worker.vocabulary import TenantState

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def tenant(state: TenantState, token: int = 3) -> MovingTenant:
    return MovingTenant("a-x", "a", "x", "gym", state, 1, token, None, NOW, NOW, None, 1.0, NOW, Server("1", NOW))


def journal(step: RestoreStep, run: str = "earlier", token: int = 3) -> Journal:
    return Journal(run, token, RestoreMode.AS_OF_BACKUP, step, 4, {"export": "file"}, NOW, 1.0)


@pytest.mark.parametrize(
    ("state", "found", "expected"),
    [
        (TenantState.ACTIVE, None, Beginning.NEW),
        (TenantState.ACTIVE, journal(RestoreStep.DONE), Beginning.NEW),
        (TenantState.ACTIVE, journal(RestoreStep.EXPORTING), Beginning.NEW),  # a worker has ended the fence
        (TenantState.ACTIVE, journal(RestoreStep.DONE, "own"), Beginning.ENDED),
        (TenantState.ACTIVE, journal(RestoreStep.COPIED, "own"), Beginning.NEW),  # the shard has lost the fence
        (TenantState.FENCED, journal(RestoreStep.EXPORTING), Beginning.NEW),
        (TenantState.FENCED, journal(RestoreStep.REPLACING), Beginning.GO_ON),
        (TenantState.FENCED, journal(RestoreStep.COPIED, "own"), Beginning.GO_ON),
    ],
)
def test_restorer_begins_where_the_rows_are(state: TenantState, found: Journal | None, expected: Beginning) -> None:
    assert expected == beginning_of(tenant(state), found, RestoreMode.AS_OF_BACKUP, {"own"}, "earlier")


@pytest.mark.parametrize(
    ("state", "found", "error", "text"),
    [
        (
            TenantState.ACTIVE,
            journal(RestoreStep.DONE, "another"),
            RestoreTakenError,
            "another restore has begun since",
        ),
        (TenantState.FENCED, None, RetryableError, "being moved"),
        (TenantState.FENCED, journal(RestoreStep.DONE), RetryableError, "being moved"),
        (TenantState.FENCED, journal(RestoreStep.REPLACING, token=2), RetryableError, "being moved"),
        (TenantState.MOVED, None, PermanentError, "the tenant is moved; only an active one"),
        (TenantState.DESTROYING, None, PermanentError, "the tenant is destroying"),
    ],
)
def test_restorer_is_refused_with_the_reason(
    state: TenantState, found: Journal | None, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        beginning_of(tenant(state), found, RestoreMode.AS_OF_BACKUP, {"own"}, "earlier")


def test_restore_goes_on_in_its_mode_only() -> None:
    with pytest.raises(PermanentError, match=r"expected --as-of-backup, .* got --catch-up"):
        beginning_of(tenant(TenantState.FENCED), journal(RestoreStep.REPLACING), RestoreMode.CATCH_UP, set(), "earlier")
    with pytest.raises(PermanentError, match="has no row of the tenant"):
        beginning_of(None, None, RestoreMode.CATCH_UP)
