from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.feed_file import AllowedHosts, DestinationMembers, FeedDestination, is_secret, parse_feed_file
from simplu_worker.vocabulary import DestinationKind, FeedBeginning, FeedData, FeedKind, OnRefusal

SECRET = "whsec_" + base64.b64encode(b"hunter2-hunter2-hunter2-").decode()
SECRETS = {
    "/run/wrong": "hunter2",
    "/run/first": SECRET + "\n",
    "/run/next": "whsec_" + base64.b64encode(bytes(32)).decode(),
}
KINESIS = {"name": "stream", "kind": "kinesis", "target": "changes", "allTenants": True}
SQS = {
    "name": "queue",
    "kind": "sqs",
    "target": "https://sqs.eu-central-1.amazonaws.com/1/changes.fifo",
    "allTenants": True,
}
WEBHOOK = {"name": "crm", "kind": "webhook", "target": "https://crm.example/hooks?v=1", "tenants": ["smile-berlin"]}
WEBHOOK |= {"secretFiles": ["/run/first", "/run/next"]}
NOTIFICATION = {"name": "live", "kind": "notification", "target": "https://live.example/", "allTenants": True}
NO_HOSTS = AllowedHosts()


def read_secret(path: str) -> str:
    if path not in SECRETS:
        raise FileNotFoundError(2, "No such file or directory")
    return SECRETS[path]


def parse(*entries: Any, allowed: AllowedHosts = NO_HOSTS) -> tuple[FeedDestination, ...]:
    return parse_feed_file(json.dumps({"destinations": entries}).encode(), allowed, read_secret)


def problems_of(parsing: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        parsing()
    assert "hunter2" not in str(raised.value)
    assert all(problem.startswith("FEED_FILE: ") for problem in raised.value.problems)
    return [problem.removeprefix("FEED_FILE: ") for problem in raised.value.problems]


def test_file_gives_each_destination_with_its_defaults() -> None:
    found = parse(KINESIS, SQS, WEBHOOK, NOTIFICATION)
    stream, queue, crm, live = (one.terms for one in found)
    usual: dict[str, Any] = {"kind": DestinationKind.KINESIS, "target": "changes", "all_tenants": True}
    assert stream == DestinationMembers(name="stream", **usual)
    assert (stream.begin, stream.tries, stream.on_refusal) == (FeedBeginning.NOW, 10, OnRefusal.CONTINUE)
    assert (queue.name, queue.kind, queue.target) == ("queue", DestinationKind.SQS, SQS["target"])
    assert (crm.tenants, crm.data) == (frozenset({"smile-berlin"}), None)
    assert [one.secrets for one in found] == [(), (), (SECRET, SECRETS["/run/next"]), ()]
    assert (live.target, live.data) == (NOTIFICATION["target"], FeedData.CURRENT)
    assert parse(NOTIFICATION | {"data": "none"})[0].terms.data is FeedData.NONE


def test_file_gives_every_member() -> None:
    filters = {"businessTypes": ["dental"], "resourceTypes": ["order"], "kinds": ["resource.created", "tenant.moved"]}
    others = {"data": "current", "begin": "2026-01-31T09:00:00+01:00", "tries": 3, "onRefusal": "stop"}
    (found,) = parse(KINESIS | filters | others)
    assert found.terms == DestinationMembers(
        name="stream",
        kind=DestinationKind.KINESIS,
        target="changes",
        all_tenants=True,
        business_types=frozenset({"dental"}),
        resource_types=frozenset({"order"}),
        kinds=frozenset({FeedKind.RESOURCE_CREATED, FeedKind.TENANT_MOVED}),
        data=FeedData.CURRENT,
        begin="2026-01-31T09:00:00+01:00",
        tries=3,
        on_refusal=OnRefusal.STOP,
    )
    assert parse(KINESIS | {"begin": "oldest"})[0].terms.begin == FeedBeginning.OLDEST


def test_destination_does_not_show_its_target() -> None:
    assert repr(parse(WEBHOOK)[0].terms) == "DestinationMembers('crm', webhook)"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "CRM!"}, "destination 1: name: Expected str matching regex"),
    ({"name": None}, "destination 1: name: Expected str, got null"),
    ({"kind": "email"}, "destination 1: kind: expected one of the values of docs/feed.md, got another"),
    ({"kinds": []}, "destination 1: kinds: Expected array of length >= 1"),
    ({"kinds": ["resource.read"]}, "destination 1: kinds[0]: expected one of the values"),
    ({"tenants": []}, "destination 1: tenants: Expected array of length >= 1"),
    ({"tenants": [""]}, "destination 1: tenants[0]: Expected str of length >= 1"),
    (
        {"allTenants": True},
        "destination crm: tenants, allTenants: expected either a list of tenants or allTenants true, got both",
    ),
    (
        {"tenants": None},
        "destination crm: tenants, allTenants: expected either a list of tenants or allTenants true, got neither",
    ),
    ({"begin": "yesterday"}, "destination crm: begin: "),
    ({"begin": "2026-01-31T09:00:00"}, "destination crm: begin: "),
    ({"tries": 0}, "destination 1: tries: Expected int >= 1"),
    ({"onRefusal": "panic"}, "destination 1: onRefusal: expected one of"),
    ({"onrefusal": "stop"}, "destination 1: Object contains unknown field onrefusal"),
    ({"secret": SECRET}, "destination 1: Object contains unknown field secret"),
    ({"secretFiles": []}, "destination 1: secretFiles: Expected array of length >= 1"),
    ({"secretFiles": None}, "destination crm: secretFiles: expected the path of a file with a secret"),
    ({"secretFiles": ["/run/wrong"]}, "destination crm: secretFiles: /run/wrong: expected whsec_ and 24 to 64 bytes"),
    ({"secretFiles": ["/none"]}, "destination crm: secretFiles: expected a readable file at /none, got: No such file"),
    ({"target": "https://user:hunter2@crm.example/"}, "destination crm: target: expected a URL without user, password"),
    ({"target": "https://crm.example/#hunter2"}, "destination crm: target: expected a URL without user, password"),
    ({"target": "http://crm.example/hunter2"}, "destination crm: target: expected https; for http"),
    ({"target": "ftp://crm.example/hunter2"}, "destination crm: target: expected an https URL, got something else"),
    ({"target": "https://crm.example:0/hunter2"}, "destination crm: target: expected an https URL, got something else"),
    ({"target": "https://crm.example:99999/"}, "destination crm: target: expected an https URL, got something else"),
    ({"target": "https://crm.example\\@localhost/"}, "destination crm: target: expected an https URL"),
    ({"target": "https://crm.example/a hunter2"}, "destination crm: target: expected an https URL"),
    ({"target": "https:///hunter2"}, "destination crm: target: expected an https URL, got something else"),
    ({"target": "https://127.0.0.1/hunter2"}, "destination crm: target: expected an address of the public internet"),
    ({"target": "https://[::1]/hunter2"}, "destination crm: target: expected an address of the public internet"),
]


def test_file_is_refused_when_a_member_is_wrong() -> None:
    for members, problem in WRONG:
        (found,) = problems_of(partial(parse, WEBHOOK | members))
        assert found.startswith(problem)


WHOLE: list[tuple[bytes, str]] = [
    (b"{", "expected JSON in UTF-8, got something else"),
    (b'{"destinations": [{"name": "\xff"}]}', "destination 1: expected JSON in UTF-8, got something else"),
    (b'{"destinations": ' + b"[" * 100_000, "expected JSON in UTF-8, got something else"),
    (b"[]", "Expected object, got array"),
    (b"{}", "Object missing required field destinations"),
    (b'{"destinations": []}', "destinations: Expected array of length >= 1"),
    (b'{"destinations": [1]}', "destination 1: Expected object, got int"),
    (b'{"destinations": [1], "more": 1}', "Object contains unknown field more"),
]


def test_file_is_refused_when_it_is_no_list_of_destinations() -> None:
    for content, problem in WHOLE:
        (found,) = problems_of(partial(parse_feed_file, content, NO_HOSTS, read_secret))
        assert found.startswith(problem)


def test_file_is_refused_with_every_problem_at_once() -> None:
    other = {"name": "crm", "kind": "sqs", "target": "https://sqs/1/changes", "secretFiles": ["/run/first"]}
    found = problems_of(lambda: parse(WEBHOOK | {"tries": 0}, other, other, {"name": "x"}))
    rules = [["destination crm", name] for name in ("tenants, allTenants", "secretFiles", "target")]
    assert [problem.split(": ")[:2] for problem in found] == [
        ["destination 1", "tries"],
        *rules,
        *rules,
        ["destination crm", "name"],
        ["destination 4", "Object missing required field kind"],
    ]


TARGETS: list[tuple[dict[str, Any], str, bool]] = [
    (KINESIS, "arn:aws:kinesis:eu-central-1:123456789012:stream/changes", True),
    (KINESIS, "changes one", False),
    (KINESIS, "arn:aws:kinesis:eu_central_1:123456789012:stream/changes", False),
    (KINESIS, "arn:aws:kinesis:-eu-central:123456789012:stream/changes", False),
    (KINESIS, "arn:aws:sqs:eu-central-1:123456789012:changes", False),
    (SQS, "http://127.0.0.1:4566/000000000000/changes.fifo", True),
    (SQS, "https://user@sqs/1/changes.fifo", False),
    (SQS, "https://sqs.eu-central-1.amazonaws.com/1/changes", False),
    (NOTIFICATION, "https://live.example/base", True),
    (NOTIFICATION, "https://live.example/?a=1", False),
]


@pytest.mark.parametrize(("entry", "target", "is_right"), TARGETS)
def test_target_is_what_its_kind_needs(entry: dict[str, Any], target: str, is_right: bool) -> None:  # noqa: FBT001
    if is_right:
        assert parse(entry | {"target": target})[0].terms.target == target
    else:
        (found,) = problems_of(lambda: parse(entry | {"target": target}))
        assert found.split(": ")[1] == "target"


def test_list_of_hosts_allows_http_and_its_own_networks() -> None:
    allowed = AllowedHosts.parse(("*.internal", "10.0.0.0/8"))
    for target in ("http://live.internal", "http://10.1.2.3:4000"):
        assert parse(NOTIFICATION | {"target": target}, allowed=allowed)[0].terms.target == target
    names = AllowedHosts.parse(("*.internal",))
    (found,) = problems_of(lambda: parse(NOTIFICATION, allowed=names))
    assert found == "destination live: target: expected a host of FEED_ALLOWED_HOSTS, got live.example"


@pytest.mark.parametrize(
    ("secret", "is_right"),
    [
        *(("whsec_" + base64.b64encode(bytes(n)).decode(), 24 <= n <= 64) for n in (0, 23, 24, 64, 65)),
        *((text, False) for text in (SECRET + "!!!!", "whsec_hunter2!", "whsec_ü", "", "hunter2", SECRET[6:])),
    ],
)
def test_secret_has_24_to_64_bytes_in_base64_behind_its_prefix(secret: str, is_right: bool) -> None:  # noqa: FBT001
    assert is_secret(secret) == is_right
