from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.status.roles import Caller, TenantPattern, Tokens, decode_tokens
from simplu_worker.status.tls import WatchedFiles
from simplu_worker.status.words import Role

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
    caller = tokens.caller_of(sent)
    assert (None if caller is None else caller.role) is expected


@given(st.text(st.characters(codec=None)))
def test_other_texts_have_no_role(sent: str) -> None:
    assert sent in {"tok\u00e9n", "look"} or BOTH.caller_of(f"Bearer x{sent}") is None


def listed(name: str = "shop", role: str = "producer", **members: Any) -> dict[str, Any]:
    tenants = [{"businessId": "shop-*", "locationId": "*"}] if role == "producer" else []
    return {
        "name": name,
        "role": role,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "tenants": tenants,
    } | members


def file_of(*tokens: dict[str, Any]) -> bytes:
    return json.dumps({"tokens": tokens}).encode()


def test_listed_tokens_have_their_roles_and_tenants() -> None:
    tokens = decode_tokens(file_of(listed(), listed("grafana", "viewer"), listed("ann", "operator")))
    known = Tokens(operator="own", listed=WatchedFiles((), lambda: tokens))
    assert known.caller_of("Bearer shop") == Caller(Role.PRODUCER, "shop", (TenantPattern("shop-*", "*"),))
    assert known.caller_of("Bearer grafana") == Caller(Role.VIEWER, "grafana")
    assert known.caller_of("Bearer ann") == Caller(Role.OPERATOR, "ann")
    assert known.caller_of("Bearer own") == Caller(Role.OPERATOR)
    assert known.caller_of(f"Bearer {tokens[0].sha256}") is None
    assert known.variables([Role.OPERATOR, Role.VIEWER]) == ["API_TOKEN", "API_TOKENS_FILE"]
    assert Tokens(operator="own", viewer="look").variables([Role.VIEWER]) == ["API_VIEWER_TOKEN"]


def test_the_empty_text_is_no_token() -> None:
    tokens = decode_tokens(file_of(listed(sha256=hashlib.sha256(b"").hexdigest())))
    assert Tokens(listed=WatchedFiles((), lambda: tokens)).caller_of("Bearer ") is None


@pytest.mark.parametrize(
    ("business", "location", "tenant", "expected"),
    [
        ("smile", "berlin", ("smile", "berlin"), True),
        ("smile", "berlin", ("smile", "berlin2"), False),
        ("smile", "*", ("smile", "x"), True),
        ("smile", "*", ("smile-x", "x"), False),
        ("a", "b-c", ("a-b", "c"), False),  # the same joined id
        ("a*", "*c", ("a-b", "c"), True),
        ("*", "*", ("any", "any"), True),
        ("Smile", "*", ("smile", "x"), False),
        ("[ab]", "?", ("a", "b"), False),
        ("[ab]", "?", ("[ab]", "?"), True),
        ("a.c", "*", ("abc", "x"), False),
        ("a", "?", ("a", "b"), False),
    ],
)
def test_pattern_is_of_each_id(business: str, location: str, tenant: tuple[str, str], *, expected: bool) -> None:
    patterns = (TenantPattern(business, location),)
    assert Caller(Role.PRODUCER, "p", patterns).may_see(*tenant) is expected
    assert Caller(Role.VIEWER).may_see(*tenant)
    assert not Caller(Role.PRODUCER).may_see(*tenant)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "expected JSON such as"),
        (b"\xff", "expected JSON such as"),
        (file_of(listed(sha256="A" * 64)), "at `$.tokens[0].sha256`"),
        (file_of(listed(token="secret")), "unknown field `token`"),
        (file_of(listed("a b")), "at `$.tokens[0].name`"),
        (file_of(listed(), listed()), "name: expected another one for each token, got shop twice"),
        (file_of(listed(), listed("b", sha256=listed()["sha256"])), "sha256: expected another one for each token"),
        (file_of(listed(tenants=[])), "tenants of shop, producer: expected some, got 0"),
        (
            file_of(listed(role="viewer", tenants=listed()["tenants"])),
            "expected none, as viewers and operators see all",
        ),
        (file_of(listed(tenants=[{"businessId": "", "locationId": "l"}])), "businessId"),
    ],
)
def test_file_that_is_none_is_refused(text: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        decode_tokens(text)
    assert expected in str(refused.value)
