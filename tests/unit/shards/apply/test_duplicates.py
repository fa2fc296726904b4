from __future__ import annotations

import pytest

from simplu_worker.shards.apply.duplicates import CAREFUL_COUNT, DuplicateMemory

NEW, DUPLICATES = False, True


@pytest.mark.parametrize(
    ("batches", "forms"),
    [
        ([NEW] * 6, "cccpp" + "p"),
        ([DUPLICATES] * 100, "c" * 100),  # a catch-up fails at none of its batches
        ([DUPLICATES] * 3 + [NEW] * 5, "ccc" + "ccc" + "pp"),
        ([NEW] * 4 + [DUPLICATES] + [NEW] * 5, "cccp" + "p" + "ccc" + "pp"),
    ],
)
def test_memory_is_careful_for_a_while_after_duplicates(batches: list[bool], forms: str) -> None:
    memory, used = DuplicateMemory(careful_count=3), ""
    for has_duplicates in batches:
        used += "c" if memory.is_careful else "p"
        memory.note_applied(has_duplicates=has_duplicates)
    assert used == forms


def test_memory_is_careful_when_a_batch_is_repeated() -> None:
    memory, used = DuplicateMemory(), list[bool]()
    for is_repeated in [*[False] * (CAREFUL_COUNT + 1), True, False]:
        if is_repeated:
            memory.expect_duplicates()
        used.append(memory.is_careful)
        memory.note_applied(has_duplicates=False)

    assert used == [*[True] * CAREFUL_COUNT, False, True, True]
    assert not DuplicateMemory(careful_count=0).is_careful
