from __future__ import annotations

import pytest

from simplu_worker.consumers.kinesis.leases.lease_rules import PATIENCE_S, STREAM_RETRY_S, Ability, Reach
from simplu_worker.vocabulary import Inability

STREAM, CITRUS = Inability.STREAM_UNAVAILABLE, Inability.CITRUS_UNREACHABLE


def test_replica_takes_all_leases_from_its_start_on() -> None:
    assert (Ability().reach(0.0), Ability().is_unable(1e9), Ability().trouble) == (Reach.ALL, False, None)


def test_trouble_that_lasts_gives_leases_away() -> None:
    ability = Ability()
    ability.note(CITRUS, now=100.0)
    ability.note(STREAM, now=110.0)  # another one: it is still unable
    assert [ability.is_unable(100.0 + PATIENCE_S + more) for more in (-0.1, 0.0, 50.0)] == [False, True, True]
    assert (ability.reach(100.0), ability.reach(1e6), ability.trouble) == (Reach.LEFT, Reach.LEFT, STREAM)


def test_replica_that_is_able_again_takes_only_free_leases_for_a_time() -> None:
    ability = Ability()
    ability.note(STREAM, now=100.0)
    ability.note(None, now=200.0)
    ability.note(None, now=220.0)
    assert [ability.reach(200.0 + PATIENCE_S + more) for more in (-0.1, 0.0)] == [Reach.FREE, Reach.ALL]
    assert not ability.is_unable(1e6)


@pytest.mark.parametrize(
    ("trouble", "then", "after_s", "expected"),
    [
        (STREAM, None, STREAM_RETRY_S - 0.1, STREAM),
        (STREAM, None, STREAM_RETRY_S, None),
        (STREAM, CITRUS, 1.0, CITRUS),
        (CITRUS, None, 1.0, None),
        (None, CITRUS, 1.0, CITRUS),
        (None, None, 1.0, None),
    ],
)
def test_replica_without_a_lease_does_not_see_whether_the_stream_answers(
    trouble: Inability | None, then: Inability | None, after_s: float, expected: Inability | None
) -> None:
    ability = Ability()
    ability.note(trouble, now=100.0)
    ability.note(then, is_reading=False, now=100.0 + after_s)
    assert ability.trouble is expected
    is_same = (trouble is None) is (expected is None)
    assert ability.is_unable(100.0 + PATIENCE_S) is (expected is not None and is_same)
