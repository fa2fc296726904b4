"""What Redis is told, each thing once and within bounds, and when the whole cache is in doubt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.postgres.tenant_cases import failed, operation

from simplu_worker.cache.invalidations import (
    BATCH_MAX_KEYS,
    KEY_OVERHEAD_BYTES,
    EpochMoveReason,
    InvalidationBatch,
    InvalidationQueue,
    ResourceKey,
    changed_keys,
    versions_of,
)
from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.vocabulary import DeadLetterReason, Failure

HOLD = Outcome(disposition=Disposition.HOLD)
LETTER = Outcome(disposition=Disposition.DEAD_LETTER, reason=DeadLetterReason.REQUEST_ID_REUSED)
UNEXPECTED = Outcome(disposition=Disposition.FAILING, error="?")


def key(number: int, resource_type: str = "patient") -> ResourceKey:
    return ResourceKey("clinic-main", resource_type, f"{number:04}")


SIZE_BYTES = KEY_OVERHEAD_BYTES + 4 * len("clinic-mainpatient0000")


@pytest.mark.parametrize(
    ("kind", "outcome", "is_touched"),
    [
        ("create", SUCCEEDED, True),
        ("update", SUCCEEDED, True),
        ("patch", SUCCEEDED, True),
        ("delete", SUCCEEDED, True),
        ("delete", DUPLICATE, True),
        ("read", SUCCEEDED, False),
        ("list", SUCCEEDED, False),
        ("read", DUPLICATE, False),
        ("create", failed(Failure.ALREADY_EXISTS), False),
        ("patch", failed(Failure.RETRIES_EXHAUSTED), False),
        ("create", HOLD, False),
        ("create", LETTER, False),
        ("create", UNEXPECTED, False),
    ],
)
def test_touched_is_what_was_written_now_or_before(kind: str, outcome: Outcome, *, is_touched: bool) -> None:
    data = "{}" if kind in {"create", "update", "patch"} else None
    one = operation(kind, None if kind == "list" else "r1", data)

    expected = [ResourceKey("clinic-main", "patient", "r1")] if is_touched else []
    assert list(changed_keys([one], [outcome], {})) == expected


def test_touched_are_all_that_were_written() -> None:
    kinds = ["list", "create", "read", "delete"]
    batch = [operation(kind, None if kind == "list" else kind, "{}" if kind == "create" else None) for kind in kinds]
    found = [one.resource_id for one in changed_keys(batch, [SUCCEEDED] * 4, {})]
    assert found == ["create", "delete"]


def test_keys_have_the_name_sent_and_the_stored_one() -> None:
    one = operation("create", "r1", "{}", resource_type="patients")

    keys = [key.resource_type for key in changed_keys([one], [SUCCEEDED], {"patients": {"patient"}, "x": {"y"}})]

    assert keys == ["patients", "patient"]


def test_keys_are_those_of_the_contract() -> None:
    one = ResourceKey("clinic-main", "patient", "r:1")
    assert (one.entry, one.version) == ("simplu:resource:clinic-main:patient:r:1", "simplu:version:clinic-main:patient")


def test_versions_are_counted_up_once_a_batch() -> None:
    keys = [key(1), key(2), key(3, "room"), ResourceKey("other-main", "room", "1"), key(4)]
    assert versions_of(keys) == [
        "simplu:version:clinic-main:patient",
        "simplu:version:clinic-main:room",
        "simplu:version:other-main:room",
    ]


def test_invalidations_wait_once_each_in_their_order() -> None:
    waiting = InvalidationQueue()
    waiting.add([key(1), key(2), key(1)])
    assert (len(waiting), waiting.size_bytes) == (2, 2 * SIZE_BYTES)

    assert waiting.take() == InvalidationBatch(None, [key(1), key(2)])
    waiting.add([key(1)])
    assert waiting.take() == InvalidationBatch(None, [key(1)])
    assert (bool(waiting), waiting.size_bytes) == (False, 0)


def test_queue_is_empty_without_keys_and_without_an_epoch_move() -> None:
    for keys, reason, expected in (
        ([], None, False),
        ([key(1)], None, True),
        ([], EpochMoveReason.STARTED, True),
        ([key(1)], EpochMoveReason.STARTED, True),
    ):
        waiting = InvalidationQueue()
        waiting.add(keys)
        if reason is not None:
            waiting.require_epoch_move(reason)
        assert bool(waiting) is expected


def test_invalidations_are_taken_in_batches_of_a_bounded_size() -> None:
    waiting = InvalidationQueue()
    waiting.add(key(number) for number in range(BATCH_MAX_KEYS + 1))
    assert [len(waiting.take().keys), len(waiting.take().keys)] == [BATCH_MAX_KEYS, 1]


def test_invalidations_put_all_in_doubt_when_there_is_no_room() -> None:
    waiting = InvalidationQueue(max_bytes=3 * SIZE_BYTES)
    assert waiting.add(map(key, range(3))) == 0
    assert waiting.add(map(key, range(5))) == 4
    assert (len(waiting), waiting.size_bytes) == (1, SIZE_BYTES)
    assert waiting.take() == InvalidationBatch(EpochMoveReason.OVERFLOWED, [key(4)])


def test_invalidations_put_back_are_told_again() -> None:
    waiting = InvalidationQueue()
    waiting.require_epoch_move(EpochMoveReason.STARTED)
    waiting.add([key(1), key(2)])
    batch = waiting.take()
    waiting.add([key(2), key(3)])

    assert waiting.requeue(batch) == 0
    assert waiting.take() == InvalidationBatch(EpochMoveReason.STARTED, [key(2), key(3), key(1)])


def test_first_reason_to_move_the_epoch_stays() -> None:
    waiting = InvalidationQueue()
    waiting.require_epoch_move(EpochMoveReason.STARTED)
    waiting.require_epoch_move(EpochMoveReason.RECONNECTED)
    assert waiting.take().epoch_move is EpochMoveReason.STARTED
    assert waiting.take().epoch_move is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.integers(0, 30), max_size=8)),
            st.tuples(st.just("take"), st.integers(1, 10)),
            st.tuples(st.just("fail"), st.integers(1, 10)),
        ),
        max_size=40,
    )
)
def test_invalidations_forget_nothing_but_with_a_doubt(steps: list[tuple[str, list[int] | int]]) -> None:
    waiting = InvalidationQueue(max_bytes=12 * SIZE_BYTES)
    pending: set[ResourceKey] = set()
    for what, argument in steps:
        if isinstance(argument, list):
            waiting.add(key(number) for number in argument)
            pending |= {key(number) for number in argument}
        else:
            batch = waiting.take(argument)
            if what == "fail":
                waiting.requeue(batch)
            else:
                pending = set() if batch.epoch_move else pending - set(batch.keys)
        assert waiting.size_bytes == len(waiting) * SIZE_BYTES <= 12 * SIZE_BYTES
    rest = waiting.take(1000)
    assert rest.epoch_move is not None or pending <= set(rest.keys)


def test_invalidations_after_a_doubt_was_taken_are_still_told() -> None:
    waiting = InvalidationQueue(max_bytes=SIZE_BYTES)
    waiting.add([key(1), key(2)])
    assert waiting.take().epoch_move is EpochMoveReason.OVERFLOWED
    waiting.add([key(3)])
    assert waiting.take() == InvalidationBatch(None, [key(3)])


def test_queue_counts_the_keys_of_each_overflow() -> None:
    assert InvalidationQueue(max_bytes=SIZE_BYTES - 1).add([key(1), key(2), key(3)]) == 3


def test_batch_without_a_move_of_the_epoch_takes_no_other_back() -> None:
    queue = InvalidationQueue()
    queue.require_epoch_move(EpochMoveReason.STARTED)
    queue.requeue(InvalidationBatch(None, []))
    assert queue.take().epoch_move is EpochMoveReason.STARTED
