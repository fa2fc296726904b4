"""`FEED_FILE`: destinations, or problems for people without a secret."""

from __future__ import annotations

import base64
import json
from typing import Final

from fuzz.inputs import messages, spliced
from fuzz.quiet import PASSWORD, begin, check_faults, check_secrets
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.feed_file import AllowedHosts, parse_feed_file

ALLOWED: Final = AllowedHosts.parse(("*.internal", "10.0.0.0/8"))
SECRET: Final = "whsec_" + base64.b64encode(PASSWORD.encode().ljust(24, b"-")).decode()
USUAL: Final[dict[str, object]] = {
    "name": "crm",
    "kind": "webhook",
    "target": f"https://crm.internal/hooks?key={PASSWORD}",
    "tenants": ["clinic-main"],
    "resourceTypes": ["patient"],
    "kinds": ["resource.created"],
    "data": "current",
    "begin": "2026-01-31T09:00:00Z",
    "tries": 3,
    "onRefusal": "stop",
    "secretFiles": ["/run/first"],
}
OTHERS: Final[list[dict[str, object]]] = [
    {"name": "a", "kind": "kinesis", "target": "changes", "allTenants": True},
    {"name": "b", "kind": "sqs", "target": "https://sqs.eu-central-1.amazonaws.com/1/a.fifo", "allTenants": True},
    {"name": "c", "kind": "notification", "target": "http://10.0.0.1:4000", "allTenants": True, "begin": "oldest"},
]


def check(data: bytes) -> None:
    begin(data)
    try:
        found = parse_feed_file(data, ALLOWED, lambda _: SECRET)
    except ConfigurationError as exc:
        shown = str(exc)
    else:
        names = [destination.terms.name for destination in found]
        assert 1 <= len(names) == len(set(names))
        shown = repr([one.terms for one in found])
    check_secrets(shown)
    assert SECRET not in shown
    check_faults()


SEEDS: Final = tuple(json.dumps({"destinations": entries}).encode() for entries in ([USUAL], OTHERS, [USUAL, *OTHERS]))
WORDS: Final = (
    *(json.dumps(name).encode() for name in (*USUAL, "allTenants", "businessTypes", "destinations")),
    *(b"https://", b"@", b"[::1]", b"\\u0000", b"whsec_", b"arn:aws:kinesis:", b".fifo", b"2026-01-31T09:00:00", b"#"),
)
TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=WORDS,
    inputs=messages({"destinations": [USUAL, *OTHERS]})
    | st.lists(messages(USUAL), max_size=3).map(lambda drawn: b'{"destinations":[' + b",".join(drawn) + b"]}")
    | spliced(st.sampled_from(SEEDS), WORDS),
    bytes_per_byte=2_000,
)
