"""What one destination gets of one shard, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace
from simulation.virtual_time import VirtualLoop
from structlog.testing import capture_logs
from support.feed.events import AT, feed_event
from support.feed.receiver import Receiver

from simplu_worker.feed.destination_feed import TRIES_NOTED, DestinationFeed
from simplu_worker.feed.events import skip_problem
from simplu_worker.feed.feed_file import AllowedHosts, is_public, parse_address
from simplu_worker.feed.rows import CursorRow
from simplu_worker.feed.types import (
    Delivered,
    Delivery,
    DestinationTerms,
    DestinationView,
    EventBounds,
    FeedEvent,
    Place,
    Publication,
    RetryLater,
    ShardView,
    destination_views,
)
from simplu_worker.feed.window import Budget
from simplu_worker.vocabulary import FeedKind, FeedStop

ROW = CursorRow("receiver", Place(5, 2), "one")


@asynccontextmanager
async def running(receiver: Receiver, incarnation: str = "one") -> AsyncIterator[DestinationFeed]:
    publication, terms = Publication("s", incarnation, "token"), DestinationTerms("receiver")
    feed = DestinationFeed(publication, terms, receiver, ROW, changed=asyncio.Event(), documents=Budget())
    feed.begin(AT)

    async def keep_refusal(_: str, __: FeedEvent, ___: str) -> None:
        raise AssertionError

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed.run(is_publisher=lambda: True, keep_refusal=keep_refusal))
        yield feed
        feed.end()


def test_destination_that_asks_for_a_pause_gets_nothing_in_it() -> None:
    receiver = Receiver()
    receiver.answer = lambda _: RetryLater("429", 60.0)

    async def story() -> None:
        async with running(receiver) as feed:
            feed.add_events([feed_event(1, "p-1")])
            await asyncio.sleep(1)
            feed.add_events([feed_event(2, "p-2")])
            await asyncio.sleep(58)
            assert receiver.call_count == 1
            receiver.answer = lambda _: Delivered()
            await asyncio.sleep(2)
            assert [one.resource_id for one in receiver.events] == ["p-1", "p-2"]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


def test_event_that_is_not_taken_again_and_again_is_named() -> None:
    receiver = Receiver()
    failing, late, second = (feed_event(number, f"p-{number}") for number in (1, 2, 3))
    untaken = {failing.id, second.id}

    def answer(event: FeedEvent) -> Delivery:
        is_late = event.id == late.id and receiver.call_count <= TRIES_NOTED - 2
        return RetryLater("500") if is_late or event.id in untaken else Delivered()

    receiver.answer = answer

    async def story() -> None:
        async with running(receiver) as feed:
            feed.add_events([failing, late, second])
            await asyncio.sleep(600)
            untaken.remove(failing.id)
            await asyncio.sleep(600)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner, capture_logs() as logs:
        runner.run(story())
    named = [(one["event_id"], one["error"]) for one in logs if one["event"] == "feed.event_retried"]
    assert list(dict.fromkeys(named)) == [(failing.id, "500"), (second.id, "500")]
    assert len(named) <= receiver.call_count / TRIES_NOTED


def test_reset_is_at_the_cursor_and_comes_before_all_else() -> None:
    receiver = Receiver()

    async def story() -> None:
        async with running(receiver, "two") as feed:
            assert (feed.is_reading, feed.row()) == (False, replace(ROW, behind_since=AT))
            await asyncio.sleep(1)
            (reset,) = receiver.resets
            found = reset.id, reset.kind, reset.subject, reset.position, reset.incarnation, reset.bounds
            assert found == ("s-reset-two", FeedKind.RESET, "s", "5-2", "two", EventBounds(5))
            assert (feed.is_reading, feed.row()) == (True, replace(ROW, incarnation="two"))
        receiver.resets.clear()
        async with running(receiver) as feed:
            assert feed.is_reading
            await asyncio.sleep(1)
        assert receiver.resets == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


INSIDE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1"),
    *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "ff0e::1", "2001:db8::1"),
    *("4000::1", "64:ff9b:1::a00:1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    # Addresses of IPv4 within those of IPv6.
    *("::ffff:10.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:808:808::1"),
    "169.254.169.254",
)
PUBLIC = ("8.8.8.8", "2001:4860:4860::8888")


@pytest.mark.parametrize("text", INSIDE)
def test_address_is_refused_when_it_is_not_of_the_public_internet(text: str) -> None:
    address = ip_address(text)
    assert not is_public(address)
    for allowed in (AllowedHosts(), AllowedHosts.parse(("*", "hooks.example"))):
        assert "public internet" in (allowed.address_problem("hooks.example", address) or "")
        assert allowed.host_problem(text) is not None
    alone = AllowedHosts.parse((text,))
    assert alone.address_problem("hooks.example", address) is None
    assert alone.host_problem(text) is None


@pytest.mark.parametrize("text", PUBLIC)
def test_address_of_the_public_internet_is_allowed_unless_a_list_has_neither_it_nor_its_name(text: str) -> None:
    address = ip_address(text)
    assert AllowedHosts().address_problem("hooks.example", address) is None
    assert AllowedHosts.parse(("*.example",)).address_problem("HOOKS.example.", address) is None
    assert AllowedHosts.parse(("0.0.0.0/0", "::/0")).address_problem("hooks.example", address) is None
    assert AllowedHosts.parse(("other.example",)).address_problem("hooks.example", address) is not None
    assert AllowedHosts.parse(("10.0.0.0/8",)).address_problem("hooks.example", address) is not None


def test_host_is_judged_before_any_connection_as_far_as_its_name_tells() -> None:
    assert AllowedHosts().host_problem("hooks.example") is None
    assert AllowedHosts.parse(("*.example",)).host_problem("hooks.example") is None
    assert AllowedHosts.parse(("*.example",)).host_problem("hooks.test") == (
        "expected a host of FEED_ALLOWED_HOSTS, got hooks.test"
    )
    assert AllowedHosts.parse(("*.example", "10.0.0.0/8")).host_problem("hooks.test") is None
    assert AllowedHosts.parse(("10.0.0.0/8",)).host_problem("10.1.1.1") is None
    assert AllowedHosts.parse(("10.0.0.0/8",)).host_problem("[::1]") is not None


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "300.0.0.0/8", "a/b"])
def test_entry_with_a_slash_has_to_be_a_network(entry: str) -> None:
    with pytest.raises(ValueError, match="expected a network such as"):
        AllowedHosts.parse((entry,))


def test_list_has_names_in_small_letters_without_a_dot_at_the_end_and_networks_apart() -> None:
    assert AllowedHosts.parse(("Hooks.Example.", "10.0.0.0/8", "*.test")) == AllowedHosts(
        ("hooks.example", "*.test"), (ip_network("10.0.0.0/8"),)
    )


def test_address_with_a_zone_is_none() -> None:
    assert parse_address("fe80::1%eth0") is None


def test_problem_names_the_address_that_a_destination_has() -> None:
    assert (AllowedHosts().host_problem("127.0.0.1") or "").endswith("got another for 127.0.0.1")


def test_names_that_look_like_numbers_are_names() -> None:
    assert [parse_address(host) for host in ("127.1", "2130706433", "0x7f000001", "localhost", "")] == [None] * 5


NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_views_add_up_the_shards_of_each_destination_of_the_file() -> None:
    shards = [
        ShardView("b", "crm", NOW - timedelta(seconds=5), True, "refused", "400"),
        ShardView("a", "crm", NOW - timedelta(seconds=90), True, None, "busy"),
        ShardView("a", "bus", None),
        ShardView("a", "gone", NOW - timedelta(days=1)),
        ShardView("b", "early", stopped="refused"),
        ShardView("c", "early", NOW + timedelta(seconds=1), error="busy"),
    ]
    assert destination_views(["crm", "bus", "new", "early"], shards, NOW) == [
        DestinationView("crm", 90.0, 2, 2, ("b",), "400"),
        DestinationView("bus", 0.0, 1),
        DestinationView("new"),
        DestinationView("early", 0.0, 2, 0, ("b",), "busy"),
    ]


@pytest.mark.parametrize(
    ("tries", "delays_s"),
    [(1, []), (2, [1.0]), (4, [1.0, 2.0, 4.0]), (12, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[60.0] * 5])],
)
def test_event_is_tried_again_twice_as_late_each_time(tries: int, delays_s: list[float]) -> None:
    rules = DestinationTerms("crm", tries=tries).rules
    assert (rules.delays_s, rules.tenant_wait) == (delays_s, timedelta())


def test_label_has_no_negative_number_when_the_place_is_before_the_first_row() -> None:
    assert Place(7, 3).label == "7-3"
    assert Place(7, 0).before.label == "7-0"


@pytest.mark.parametrize(
    ("stopped", "event_id", "problem"),
    [
        (FeedStop.REFUSED, None, None),
        (FeedStop.DISABLED, None, None),
        (None, "id-2", None),
        (None, None, "the destination has not stopped: nothing is to be passed"),
        (FeedStop.REFUSED, "id-2", "the destination has stopped: leave out --event"),
    ],
)
def test_skip_passes_what_is_named_and_nothing_else(
    stopped: FeedStop | None, event_id: str | None, problem: str | None
) -> None:
    assert skip_problem(stopped, event_id) == problem
