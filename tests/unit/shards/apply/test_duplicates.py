"""The form of insert follows the duplicates: careful while there are some, plain where there are none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.apply.duplicates import CAREFUL_LEAST, CAREFUL_MAX, SHORT_RUN, DuplicateMemory

NEW, DUPLICATES = False, True


def forms_of(batches: Sequence[bool], memory: DuplicateMemory) -> str:
    forms = ""
    for has_duplicates in batches:
        was_careful = memory.is_careful
        if has_duplicates and not was_careful:
            memory.note_failed()
        memory.note_applied(was_careful=was_careful or has_duplicates, has_duplicates=has_duplicates)
        forms += "c" if was_careful else "f" if has_duplicates else "p"
    return forms


@pytest.mark.parametrize(
    ("batches", "forms"),
    [
        ([NEW] * 8, "cccc" + "p" * 4),
        ([DUPLICATES] * 100, "c" * 100),  # a catch-up fails at none of its batches
        ([DUPLICATES] * 3 + [NEW] * 8, "c" * 3 + "cccc" + "p" * 4),
        ([NEW] * 5 + [DUPLICATES] + [NEW] * 16, "cccc" + "pf" + "c" * 8 + "p" * 8),
        ([NEW] * (4 + SHORT_RUN) + [DUPLICATES] + [NEW] * 8, "cccc" + "p" * SHORT_RUN + "f" + "cccc" + "p" * 4),
    ],
)
def test_memory_is_careful_for_a_while_after_duplicates(batches: list[bool], forms: str) -> None:
    assert forms_of(batches, DuplicateMemory()) == forms


def test_memory_is_careful_when_a_batch_is_repeated() -> None:
    memory = DuplicateMemory()
    forms_of([NEW] * CAREFUL_LEAST, memory)
    assert not memory.is_careful

    memory.expect_duplicates()

    assert forms_of([DUPLICATES, *[NEW] * 5], memory) == "c" * 5 + "p"


def test_memory_never_waits_longer_than_the_most() -> None:
    memory = DuplicateMemory()
    forms = ""
    while len(forms) < 20 * CAREFUL_MAX:
        forms += forms_of([NEW] if memory.is_careful else [DUPLICATES], memory)

    runs = forms.split("f")
    assert max(map(len, runs)) == CAREFUL_MAX
    assert forms.count("f") < 30


@given(batches=st.lists(st.booleans(), max_size=400))
def test_memory_fails_at_few_batches_whatever_they_have(batches: list[bool]) -> None:
    forms = forms_of(batches, DuplicateMemory())

    assert len(forms) == len(batches)
    assert forms.count("f") * CAREFUL_LEAST <= max(0, len(batches) - CAREFUL_LEAST) + CAREFUL_LEAST
    for at, form in enumerate(forms):
        if form == "f":
            assert set(forms[at + 1 : at + 1 + CAREFUL_LEAST]) <= {"c"}
    assert forms[:CAREFUL_LEAST] == "c" * min(CAREFUL_LEAST, len(batches))


@given(batches=st.lists(st.booleans(), max_size=50))
def test_memory_that_is_never_careful_tries_every_batch(batches: list[bool]) -> None:
    assert set(forms_of(batches, DuplicateMemory(careful_least=0))) <= {"p", "f"}
