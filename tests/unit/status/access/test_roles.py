"""The role of a caller by its token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.status.access.roles import Tokens
from simplu_worker.vocabulary import Role

BOTH = Tokens(operator="tok\u00e9n", viewer="look")


@pytest.mark.parametrize(
    ("tokens", "sent", "expected"),
    [
        (BOTH, "Bearer tok\u00e9n", Role.OPERATOR),
        (BOTH, "bearer  tok\u00e9n ", Role.OPERATOR),
        (BOTH, "Bearer look", Role.VIEWER),
        (BOTH, "Basic look", None),
        (BOTH, "look", None),
        (BOTH, "Bearer", None),
        (BOTH, "Bearer look2", None),
        (BOTH, "Bearer lookx tok\u00e9n", None),
        (Tokens(viewer="look"), "Bearer look", Role.VIEWER),
        (Tokens(viewer="look"), "Bearer ", None),
        (Tokens(), "Bearer ", None),
        (Tokens(operator="", viewer=""), "Bearer ", None),
    ],
)
def test_role_is_that_of_the_token(tokens: Tokens, sent: str, expected: Role | None) -> None:
    """The scheme has no case; a role without a token has no callers."""
    assert tokens.role_of(sent) is expected


@given(st.text(st.characters(codec=None)))
def test_other_texts_have_no_role(sent: str) -> None:
    """Whatever a client sends."""
    assert sent in {"tok\u00e9n", "look"} or BOTH.role_of(f"Bearer x{sent}") is None


def test_repr_names_no_token() -> None:
    """It is in tracebacks."""
    assert repr(BOTH) == "Tokens(operator, viewer)"
