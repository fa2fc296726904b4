from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simplu_worker.shards.log import are_uuids, id_of_key, key_of_id, keys_of_ids

ID = "0123abcd-89ab-cdef-0123-456789abcdef"
DIGITS = "0123abcd89abcdef0123456789abcdef"


@pytest.mark.parametrize("text", [ID, "0" * 8 + "-0000-0000-0000-" + "0" * 12, "f" * 8 + "-ffff-ffff-ffff-" + "f" * 12])
def test_uuid_in_its_usual_form_is_16_bytes(text: str) -> None:
    assert key_of_id(text) == "01" + text.replace("-", "")
    assert len(bytes.fromhex(key_of_id(text))) == 17


@pytest.mark.parametrize(
    "text",
    [
        ID.upper(),
        ID.replace("a", "A", 1),
        DIGITS,  # two ids must not have one key
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        ID[:-1],
        f"{ID}0",
        f"{ID}\n",
        f" {ID[1:]}",
        ID.replace("-", "_"),
        ID.replace("-", "0"),
        ID.replace("0", "g", 1),
        ID.replace("9", "-", 1),
        ID.replace("0", "٠"),  # a digit, but no byte of a UUID
        ID[:-1] + "é",
        "-" * 36,
        "r1",
        "order-7:1",
        "",
        "ж" * 36,
        "😀",
    ],
)
def test_any_other_id_is_its_utf_8(text: str) -> None:
    assert key_of_id(text) == "02" + text.encode().hex()


@given(st.one_of(st.uuids().map(str), st.text(max_size=300), st.from_regex(r"\A[0-9a-gA-F-]{36}\Z")))
@example(ID)
def test_key_is_that_of_one_id_alone(text: str) -> None:
    key = key_of_id(text)
    assert id_of_key(key) == text
    assert id_of_key(f"03{key}{'0' * 20}") == text


@given(st.lists(st.one_of(st.uuids().map(str), st.just(""), st.text(max_size=40), st.just(f"{ID}\n{ID}"))))
@example([])
@example([ID, ID])
@example([f"{ID}\n{ID}"])
@example([ID, "", ID])
def test_keys_of_a_batch_are_those_of_each_id(texts: list[str]) -> None:
    assert keys_of_ids(texts) == [key_of_id(text) if text else "" for text in texts]


def test_batch_of_uuids_alone_is_recognised() -> None:
    assert are_uuids(f"{ID}\n".encode() * 3, 3)
    moved = [[ID[:place] + ID[place + 1] + "-" + ID[place + 2 :]] for place in (8, 13, 18, 23)]
    moved += [[ID[: place - 1] + "-" + ID[place - 1] + ID[place + 1 :]] for place in (8, 13, 18, 23)]
    for others in [*moved, [ID.replace("0", "g", 1)], [ID.replace("0", "X", 1)], [ID[:30], ID[30:] + ID], [ID, "0"]]:
        assert not are_uuids("".join(f"{text}\n" for text in [ID, *others]).encode(), 1 + len(others))
        assert keys_of_ids(others) == [key_of_id(text) for text in others]
