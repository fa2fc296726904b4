"""What is shown without a token: counts and states, no other text, and to no page of another site."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.status.open_reads import SHOWN_TEXTS, STATE_MEMBERS, STATES, counts_and_states, is_own_host

STATUS: dict[str, Any] = {
    "replica": "host-1:17:abc",
    "ready": "Citrus refuses the key",
    "sources": [{"kind": "sqs", "name": "orders", "state": "SecretQueue does not answer", "inHand": 2}],
    "streamShards": [{"streamShard": "shardId-1", "state": "reading", "held": {"unregistered": 1}, "trouble": None}],
    "shards": [{"shardId": "shard-1", "place": "10.0.0.1:5432/d", "healthy": True, "error": "died", "usage": 0.25}],
    "held": [{"target": "tenant late-b", "reason": "unregistered", "tenants": 1}],
    "recentErrors": [{"event": "x", "count": 3}],
    "citrus": "ok",
}


def test_view_is_shown_without_errors_addresses_and_tenants() -> None:
    """Names are those that metrics show too; a state with a text of its own is `other`."""
    assert counts_and_states(STATUS) == {
        "ready": "other",
        "sources": [{"kind": "sqs", "name": "orders", "state": "other", "inHand": 2}],
        "streamShards": [{"streamShard": "shardId-1", "state": "reading", "held": {"unregistered": 1}}],
        "shards": [{"shardId": "shard-1", "healthy": True, "usage": 0.25}],
        "held": [{"reason": "unregistered", "tenants": 1}],
        "citrus": "ok",
    }


names = st.sampled_from(["state", "error", "place", "target", "about", "ready", "result", "data", "reason", "cache"])
views = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just("SECRET"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(views)
def test_no_text_is_shown_that_is_not_listed(view: Any) -> None:
    """Wherever it is in a view."""
    assert "SECRET" not in json.dumps(counts_and_states(view))


def test_lists_name_no_member_twice() -> None:
    """A member is a text or a state."""
    assert not SHOWN_TEXTS & STATE_MEMBERS
    assert all(counts_and_states({"state": word}) == {"state": word} for word in STATES)


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
    """The name of another site that leads here is refused."""
    assert is_own_host(host, "worker.internal") is expected
