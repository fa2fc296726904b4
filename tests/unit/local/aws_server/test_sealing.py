"""Opaque texts of the local AWS: a payload survives, and every changed text is rejected."""

from __future__ import annotations

import base64

import pytest

from simplu_local.aws_server.sealing import seal, unseal


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256))])
def test_payload_is_the_same_when_it_was_sealed(payload: bytes) -> None:
    assert unseal(seal(payload)) == payload


def test_text_is_rejected_when_one_character_is_another() -> None:
    text = seal(b"8 bytes.")
    others = [text[:at] + ("B" if text[at] == "A" else "A") + text[at + 1 :] for at in range(len(text))]
    assert {unseal(one) for one in others} == {None}


@pytest.mark.parametrize("text", ["", "not base64!", "AAA", base64.b64encode(b"no checksum").decode()])
def test_text_is_rejected_when_it_was_not_sealed(text: str) -> None:
    assert unseal(text) is None
