"""The next step of a mover, by the rows of both shards, and what it reports when it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.settling import MovingTenant, Progress, Transfer
from simplu_worker.transfers.moving.types import (
    Move,
    Situation,
    continued_progress,
    describe_state,
    situation_of,
    warm_progress,
)
from simplu_worker.vocabulary import MovePhase, TenantState, TransferStep

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVER, OTHER_SERVER = Server("1", NOW), Server("2", NOW)
KEEPS = timedelta(hours=1)


def tenant(state: str, token: int = 3, **changes: Any) -> MovingTenant:
    row = MovingTenant("b-l", "b", "l", "gym", TenantState(state), 1, token, None, NOW, NOW, None, 1.0, NOW, SERVER)
    return replace(row, **changes)


MOVED = tenant("moved", moved_to="target")


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (tenant("active"), None, "move"),
        (tenant("active"), tenant("incoming"), "move"),
        (tenant("active"), tenant("ready"), "move"),
        (tenant("active"), tenant("moved"), "move"),
        (tenant("active"), tenant("destroyed"), "move"),
        (tenant("fenced"), tenant("ready"), "move"),
        (MOVED, tenant("ready", 3), "activate"),
        (MOVED, tenant("ready", 2), "copy again"),
        (MOVED, tenant("incoming", 3), "copy again"),
        (MOVED, None, "copy again"),
        (MOVED, tenant("active"), "arrived"),
        (None, tenant("active"), "arrived"),
        (MOVED, tenant("moved"), "elsewhere"),
        (MOVED, tenant("destroying"), "gone"),
        (tenant("moved", moved_to="third"), None, "elsewhere"),
        (tenant("destroying"), None, "gone"),
        (tenant("destroyed"), tenant("incoming"), "gone"),
        (tenant("incoming"), None, "elsewhere"),
        (tenant("incoming", moved_to="target"), None, "elsewhere"),
        (None, None, "elsewhere"),
    ],
)
def test_situation(source: MovingTenant | None, target: MovingTenant | None, expected: str) -> None:
    assert situation_of(source, target, target_shard_id="target") == Situation(expected)


PROGRESS = Progress(SERVER, 1, NOW - timedelta(minutes=30), cursors={"resources": ("a", "b")})


def arrival_of(place: str, token: int, step: TransferStep, progress: Progress, at: datetime = NOW) -> Transfer:
    return Transfer(place, str(token), step, 1, msgspec.to_builtins(progress), at, NOW)


ARRIVAL = arrival_of("source", 2, TransferStep.OPEN, PROGRESS)


@pytest.mark.parametrize(
    ("target", "arrival", "source", "is_kept"),
    [
        (tenant("incoming"), ARRIVAL, tenant("active"), True),
        (tenant("ready"), ARRIVAL, tenant("active"), True),
        (tenant("moved"), ARRIVAL, tenant("active"), False),
        (None, ARRIVAL, tenant("active"), False),
        (tenant("incoming"), None, tenant("active"), False),
        (tenant("incoming"), replace(ARRIVAL, place="third"), tenant("active"), False),
        (tenant("incoming"), ARRIVAL, tenant("active", server=OTHER_SERVER), False),  # promoted, or started again
        (tenant("incoming"), ARRIVAL, tenant("active", epoch=2), False),  # it was away since
        (tenant("incoming"), ARRIVAL, tenant("active", read_at=PROGRESS.barrier), True),
        (tenant("incoming"), ARRIVAL, tenant("active", read_at=PROGRESS.barrier + KEEPS), False),
        (tenant("incoming"), ARRIVAL, tenant("active", read_at=NOW + KEEPS), False),  # the log may lack rows
        (tenant("incoming"), ARRIVAL, tenant("active", read_at=NOW - KEEPS), False),  # the clock was set back
    ],
)
def test_copy_is_continued(
    target: MovingTenant | None,
    arrival: Transfer | None,
    source: MovingTenant,
    is_kept: bool,  # noqa: FBT001
) -> None:
    assert continued_progress(source, "source", target, arrival, KEEPS) == (PROGRESS if is_kept else None)


AT_TARGET = replace(PROGRESS, target_server=SERVER)
CAME = arrival_of("target", 5, TransferStep.READY, AT_TARGET, NOW - timedelta(minutes=10))
LEFT = Transfer("source", "5", TransferStep.DONE, 1, {}, NOW, NOW)
WHOLE = tenant("moved", 5, moved_to="source")


@pytest.mark.parametrize(
    ("target", "departure", "arrival", "source", "is_warm"),
    [
        (WHOLE, LEFT, CAME, tenant("active", 6), True),
        (tenant("incoming", 5), LEFT, CAME, tenant("active", 6), False),
        (None, LEFT, CAME, tenant("active", 6), False),
        (WHOLE, None, CAME, tenant("active", 6), False),
        (WHOLE, LEFT, None, tenant("active", 6), False),
        (WHOLE, replace(LEFT, step="cleaning", token="6"), CAME, tenant("active", 6), False),
        (WHOLE, replace(LEFT, step="cleaning"), CAME, tenant("active", 6), False),
        (replace(WHOLE, move_token=6), LEFT, CAME, tenant("active", 6), False),  # a cleanup has begun
        (WHOLE, LEFT, replace(CAME, token="4"), tenant("active", 6), False),  # another move
        (WHOLE, LEFT, replace(CAME, step="open"), tenant("active", 6), False),
        (WHOLE, LEFT, CAME, tenant("active", 6, server=OTHER_SERVER), False),
        (WHOLE, LEFT, CAME, tenant("active", 6, epoch=2), False),
        (WHOLE, LEFT, CAME, tenant("active", 6, read_at=NOW + KEEPS), False),
    ],
)
def test_way_back_is_warm(
    target: MovingTenant | None,
    departure: Transfer | None,
    arrival: Transfer | None,
    source: MovingTenant,
    is_warm: bool,  # noqa: FBT001
) -> None:
    progress = warm_progress(source, target, departure, arrival, KEEPS)
    assert progress == (replace(PROGRESS, barrier=CAME.ready_at) if is_warm else None)


MOVE = Move("clinic-main", "a", "b")
AGAIN = "run the same command again to continue"


@pytest.mark.parametrize(
    ("phases", "has_left", "state"),
    [
        (
            (MovePhase.PREPARE, MovePhase.COPY, MovePhase.CATCH_UP, MovePhase.VERIFY, MovePhase.REHEARSE),
            False,
            f"the tenant stays on shard a; {AGAIN}, or tenants rollback --stay --apply to delete the copy",
        ),
        (
            (MovePhase.PREPARE, MovePhase.COPY),
            True,
            f"the tenant has left shard a, and waits for its rows on shard b; {AGAIN}",
        ),
        (
            (MovePhase.FENCE, MovePhase.LAST_DELTA, MovePhase.COMMIT),
            False,
            f"the tenant is on shard a or is leaving it, and workers continue; {AGAIN}",
        ),
        ((MovePhase.ACTIVATE,), True, f"the tenant has left shard a: workers activate it; {AGAIN}"),
        (
            (MovePhase.CERTIFY, MovePhase.PUBLISH),
            True,
            "the tenant is on shard b; run the same command again to compare and to publish it",
        ),
    ],
)
def test_state_of_the_tenant(phases: tuple[MovePhase, ...], has_left: bool, state: str) -> None:  # noqa: FBT001  # a parameter of the test
    assert {describe_state(MOVE, phase, has_left=has_left) for phase in phases} == {state}
