from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import msgspec
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
    Disabled,
    EventBounds,
    FeedEvent,
    Place,
    Publication,
    Refused,
    RetryLater,
    ShardView,
    destination_views,
)
from simplu_worker.feed.window import (
    DOCUMENTS_MAX_BYTES,
    DOCUMENTS_MIN_BYTES,
    EVENTS_MAX,
    TOTAL_DOCUMENT_BYTES,
    Budget,
    RefusedForGood,
    Window,
    WindowEvent,
)
from simplu_worker.operations.tries import RetryRules
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


RULES = RetryRules((1.0, 5.0), timedelta(), (1.0, 60.0))


def event(number: int, key: str = "r") -> WindowEvent:
    return WindowEvent(feed_event(number, key), Place(number, 0))


def window_from(position: int = 0) -> Window:
    """Return a window that has the memory for documents alone; it begins in batch 0."""
    return Window(Place(0, position), Budget())


def test_cursor_stays_before_the_oldest_event_that_is_not_done() -> None:
    window, events = window_from(9), [event(1, "a"), event(2, "b"), event(3, "c")]
    assert (window.cursor, window.behind_since, window.next_due_at()) == (Place(0, 9), None, None)
    window.add(events, Place(3, 0))
    assert window.settle(events, [RetryLater("x"), Delivered(), Delivered()], rules=RULES, now=0, draw=0) == events[1:]
    assert (window.cursor, window.behind_since) == (Place(1, -1), events[0].event.time)
    assert window.due(10, now=100) == [events[0]]
    window.settle(events[:1], [Delivered()], rules=RULES, now=100, draw=0)
    assert (window.cursor, len(window)) == (Place(3, 0), 0)


def test_key_waits_behind_its_first_event_that_is_not_done() -> None:
    window, events = window_from(), [event(1, "a"), event(2, "a"), event(3, "b"), event(4, "c")]
    window.add(events, Place(4, 0))
    assert window.due(10, now=0) == [events[0], events[2], events[3]]
    assert window.due(1, now=0) == events[:1]
    window.settle([events[0], events[2]], [RetryLater("x"), Delivered()], rules=RULES, now=0, draw=0)
    assert (window.due(10, now=0.4), window.next_due_at()) == ([events[3]], 0)
    window.settle([events[3]], [RetryLater("x")], rules=RULES, now=0.25, draw=0)
    assert (window.due(10, now=0.4), window.next_due_at()) == ([], 0.5)
    window.settle([events[0]], [Delivered()], rules=RULES, now=0.5, draw=0)
    assert window.due(10, now=0.5) == [events[1]]


def test_window_has_room_until_it_is_half_full() -> None:
    window = window_from()
    window.add([event(number) for number in range(EVENTS_MAX // 2)], Place(1, 0))
    assert window.has_room
    window.add([event(0)], Place(1, 0))
    assert not window.has_room


def test_refused_event_is_finished_when_its_tries_are_over_and_it_is_kept() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    for now, delay_s in ((0, 1.0), (9, 5.0)):
        assert window.settle([one], [Refused("no")], rules=RULES, now=now, draw=0) == []
        assert window.next_due_at() == now + delay_s
        assert window.settle([one], [RetryLater("500")], rules=RULES, now=now, draw=0) == []  # is no try of its own
    assert window.settle([one], [Refused("no")], rules=RULES, now=20, draw=0) == [RefusedForGood(one, "no")]
    assert (window.cursor, window.next_due_at()) == (Place(1, -1), 80)
    window.finish(one)
    assert window.cursor == Place(1, 0)


@pytest.mark.parametrize("failure", [RetryLater("503"), Refused("400")])
def test_event_that_a_person_passes_is_finished_by_its_next_failure(failure: RetryLater | Refused) -> None:
    window, one = window_from(), event(1)
    one.is_passed = True
    window.add([one], Place(1, 0))
    assert window.settle([one], [failure], rules=RULES, now=99, draw=0) == [RefusedForGood(one, failure.error)]
    assert window.due(1, now=99) == []  # until it is kept
    window.finish(one)
    assert window.cursor == Place(1, 0)


def test_disabled_destination_is_reported_and_keeps_its_event() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    assert window.settle([one], [Disabled("410")], rules=RULES, now=0, draw=0) == [Disabled("410")]
    assert window.cursor == Place(1, -1)


def test_window_is_full_when_its_documents_are() -> None:
    window = window_from()
    large = [event(number) for number in (1, 2, 3)]
    for one in large:
        one.event = msgspec.structs.replace(one.event, data=b"x" * (DOCUMENTS_MAX_BYTES // 4))
    window.add([*large[:2], event(9)], Place(9, 0))
    had_room = [window.has_room]
    window.add(large[2:], Place(10, 0))
    had_room.append(window.has_room)
    window.settle(large[:1], [Delivered()], rules=RULES, now=0, draw=0)
    assert [*had_room, window.has_room] == [True, False, True]


def test_documents_in_the_windows_of_a_process_share_one_budget() -> None:
    budget = Budget()
    windows = [Window(Place(0, 0), budget) for _ in range(4 * TOTAL_DOCUMENT_BYTES // DOCUMENTS_MAX_BYTES)]
    small = event(1)
    small.event = msgspec.structs.replace(small.event, data=b"x" * (DOCUMENTS_MIN_BYTES // 2))
    assert all(window.has_room for window in windows)
    while with_room := [window for window in windows if window.has_room]:
        for window in with_room:
            window.add([msgspec.structs.replace(small)], Place(1, 0))
    held = [len(window) * DOCUMENTS_MIN_BYTES // 2 for window in windows]
    assert TOTAL_DOCUMENT_BYTES // 2 < sum(held) <= TOTAL_DOCUMENT_BYTES
    for window in windows[1:]:
        while events := window.due(EVENTS_MAX, now=0):
            window.settle(events, [Delivered()] * len(events), rules=RULES, now=0, draw=0)
    assert windows[0].has_room
    assert budget.part == DOCUMENTS_MAX_BYTES


def test_event_that_is_not_taken_is_due_later_each_time() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    waits_s = []
    for _ in range(3):
        assert window.settle([one], [RetryLater("x", 60.0)], rules=RULES, now=100, draw=0) == []
        waits_s.append(one.due_at - 100)
    assert waits_s == [0.5, 1.0, 2.0]


def test_all_that_is_finished_is_returned_in_order() -> None:
    window, events = window_from(), [event(number, str(number)) for number in range(4)]
    window.add(events, Place(4, 0))
    rules = RetryRules((), timedelta(), (1.0, 60.0))
    events[2].is_passed = True
    deliveries: list[Delivery] = [Delivered(), Refused("400"), RetryLater("503"), Delivered()]
    finished = window.settle(events, deliveries, rules=rules, now=0, draw=0)
    assert finished == [events[0], RefusedForGood(events[1], "400"), RefusedForGood(events[2], "503"), events[3]]
