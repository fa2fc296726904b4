"""What a mover reports of its tenant when it ends."""

from __future__ import annotations

import pytest

from simplu_worker.transfers.moving.types import Move, describe_state
from simplu_worker.vocabulary import MovePhase

MOVE = Move("clinic-main", "a", "b")
AGAIN = "run the same command again to go on"


@pytest.mark.parametrize(
    ("phases", "has_left", "state"),
    [
        (
            (MovePhase.PREPARE, MovePhase.COPY, MovePhase.CATCH_UP, MovePhase.VERIFY, MovePhase.REHEARSE),
            False,
            f"the tenant goes on on shard a; {AGAIN}, or tenants rollback --stay --apply to delete the copy",
        ),
        (
            (MovePhase.PREPARE, MovePhase.COPY),
            True,
            f"the tenant has left shard a, and waits for its rows on shard b; {AGAIN}",
        ),
        (
            (MovePhase.FENCE, MovePhase.LAST_DELTA, MovePhase.COMMIT),
            False,
            f"the tenant is on shard a or on its way, and workers go on; {AGAIN}",
        ),
        (
            (MovePhase.ACTIVATE,),
            True,
            f"the tenant has left shard a: workers activate it; {AGAIN}",
        ),
        (
            (MovePhase.CERTIFY, MovePhase.PUBLISH),
            True,
            "the tenant is on shard b; run the same command again to compare and to publish it",
        ),
    ],
)
def test_state_of_the_tenant(phases: tuple[MovePhase, ...], has_left: bool, state: str) -> None:  # noqa: FBT001  # a parameter of the test
    assert {describe_state(MOVE, phase, has_left=has_left) for phase in phases} == {state}
