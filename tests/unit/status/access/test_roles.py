from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.status.roles import (
    COUNTS_AND_STATES,
    HIDDEN_CAUSE,
    SHOWN_TEXTS,
    STATE_MEMBERS,
    STATES,
    VIEWER_STATES,
    VIEWER_TEXTS,
    Caller,
    TenantPattern,
    Tokens,
    decode_tokens,
    for_producers,
    for_viewers,
    is_own_host,
)
from simplu_worker.status.tls import WatchedFiles
from simplu_worker.status.words import Role, UnreadyReason
from simplu_worker.vocabulary import HoldReason

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


STREAM_SHARDS = [{"streamShard": "shardId-1", "state": "reading", "held": {"unregistered": 1}, "trouble": None}]
STATUS: dict[str, Any] = {
    "replica": "host-1:17:abc",
    "ready": "citrus_refuses_key",
    "unreadyDetail": "SECRET",
    "sources": [{"kind": "sqs", "name": "orders", "state": "SecretQueue does not answer", "inHand": 2}],
    "streamShards": STREAM_SHARDS,
    "shards": [{"shardId": "shard-1", "place": "10.0.0.1:5432/d", "healthy": True, "error": "died", "usage": 0.25}],
    "held": [{"target": "tenant late-b", "reason": "unregistered", "tenants": 1}],
    "recentErrors": [{"event": "x", "count": 3}],
    "citrus": "ok",
    "unable": "citrus_unreachable",
}


def test_view_is_shown_without_errors_addresses_and_tenants() -> None:
    assert COUNTS_AND_STATES.apply(STATUS) == {
        "ready": "citrus_refuses_key",
        "sources": [{"kind": "sqs", "name": "orders", "state": "other", "inHand": 2}],
        "streamShards": STREAM_SHARDS,
        "shards": [{"shardId": "shard-1", "healthy": True, "usage": 0.25}],
        "held": [{"reason": "unregistered", "tenants": 1}],
        "citrus": "ok",
        "unable": "citrus_unreachable",
    }


def test_viewers_see_names_and_places_too() -> None:
    errors = [
        {"event": "shard.lost", "error": "died", "about": "shard-1", "count": 3},
        {"event": "SECRET died", "error": None},
    ]
    expected = {name: value for name, value in STATUS.items() if name != "unreadyDetail"} | {
        "sources": [{"kind": "sqs", "name": "orders", "state": "other", "inHand": 2}],
        "shards": [{"shardId": "shard-1", "place": "10.0.0.1:5432/d", "healthy": True, "usage": 0.25}],
        "recentErrors": [{"event": "shard.lost", "about": "shard-1", "count": 3}, {"error": None}],
    }
    assert for_viewers(200, STATUS | {"recentErrors": errors}) == expected


def test_lists_of_shown_texts_keep_texts_and_reduce_the_rest() -> None:
    view = {"targets": ["tenant a", {"n": 1, "error": "died"}, 2, None]}
    assert for_viewers(200, view) == {"targets": ["tenant a", {"n": 1}, 2, None]}
    assert COUNTS_AND_STATES.apply({"counts": [1, None, "text"]}) == {"counts": [1, None]}
    assert for_viewers(503, {"error": None, "at": "now"}) == {"error": None, "at": "now"}


def test_viewers_see_where_a_history_has_gaps() -> None:
    assert for_viewers(200, {"lagSeconds": [0.5, None, 1.0], "odd": ["SECRET"]}) == {
        "lagSeconds": [0.5, None, 1.0],
        "odd": [],
    }


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (200, "not_found", "not_found"),
        (200, "data: expected SECRET", None),
        (404, "there is none", "there is none"),
        (400, "there is none", "there is none"),
        (500, "shard-1 died", HIDDEN_CAUSE),
        (503, "shard-1 died", HIDDEN_CAUSE),
        (503, "not_found", "not_found"),
    ],
)
def test_viewers_see_errors_that_are_words_or_of_their_request(status: int, error: str, expected: str | None) -> None:
    assert for_viewers(status, {"error": error}).get("error") == expected


names = st.sampled_from(["state", "error", "trouble", "odd", "ready", "result", "data", "reason", "cache", "keys"])
views = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just("SECRET"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(views)
def test_no_text_is_shown_that_is_not_listed(view: Any) -> None:
    assert "SECRET" not in json.dumps(COUNTS_AND_STATES.apply(view))


@given(st.dictionaries(names, views, max_size=4), st.sampled_from([200, 503]))
def test_viewers_see_no_text_that_is_not_listed(view: dict[str, Any], status: int) -> None:
    hidden = {"result": {"price": 17, "state": "active"}, "record": "SECRET"}
    shown = for_viewers(status, {key: value for key, value in view.items() if key not in VIEWER_TEXTS} | hidden)
    assert "SECRET" not in json.dumps(shown)
    assert not hidden.keys() & shown.keys()


def test_lists_name_no_member_twice() -> None:
    assert not VIEWER_TEXTS & STATE_MEMBERS
    assert SHOWN_TEXTS <= VIEWER_TEXTS
    assert STATES <= VIEWER_STATES
    assert set(HoldReason) <= STATES
    assert set(map(str, UnreadyReason)) <= STATES
    assert all(COUNTS_AND_STATES.apply({"state": word}) == {"state": word} for word in STATES)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("worker.internal:8080", True),
        ("WORKER.internal", True),
        ("localhost:8080", True),
        ("127.0.0.1", True),
        ("[::1]:8080", True),
        ("10.1.2.3:80", True),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        ("a:b:c", False),
    ],
)
def test_request_is_from_here_by_its_host(host: str, *, expected: bool) -> None:
    assert is_own_host(host, "worker.internal") is expected
    assert is_own_host(host, None) is (expected and "internal" not in host.lower())


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (500, {"error": "host x died", "a": 1}, {"error": HIDDEN_CAUSE, "a": 1}),
        (503, {"a": 1}, {"a": 1}),
        (404, {"error": "no such tenant"}, {"error": "no such tenant"}),
        (200, {"error": "invalid_data"}, {"error": "invalid_data"}),
    ],
)
def test_producers_do_not_see_what_is_wrong_with_a_shard(status: int, answer: Any, expected: Any) -> None:
    assert for_producers(status, answer) == expected
