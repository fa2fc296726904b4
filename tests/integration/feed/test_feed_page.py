"""The examples of docs/feed.md: the file is one, the event is valid, and the receiver does what the page says."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from aiohttp import web
from jsonschema import Draft202012Validator
from standardwebhooks import Webhook, WebhookVerificationError
from support.feed.events import feed_event
from support.page_examples import page_examples
from support.requires import ROOT

from simplu_worker.feed.destinations import open_webhook
from simplu_worker.feed.feed_file import AllowedHosts, parse_feed_file
from simplu_worker.feed.types import Delivered, FeedEvent, Incarnation, Refused
from simplu_worker.status.message_schemas import FEED_SCHEMAS
from simplu_worker.vocabulary import FeedKind

PAGE: Final = ROOT / "docs" / "feed.md"
EXAMPLES: Final = {example.name: example.text for example in page_examples(PAGE)}
SECRET: Final = "whsec_" + base64.b64encode(bytes(32)).decode()
LOOPBACK: Final = AllowedHosts.parse(("127.0.0.1",))
ONE, TWO = Incarnation("i1"), Incarnation("i2", "i2:41")
THREE = Incarnation("i3", "i3:60,i2:41")
EARLIER = Incarnation("i3", "i3:30")  # behind an earlier batch than TWO, which it does not name therefore


class Receiver:
    def __init__(self, folder: Path) -> None:
        self.state: list[str] = []  # the ids of the events that hold
        self.url = ""
        self.names: dict[str, Any] = {
            "SECRET": SECRET,
            "Webhook": Webhook,
            "WebhookVerificationError": WebhookVerificationError,
            "sqlite3": SimpleNamespace(connect=lambda name: sqlite3.connect(folder / name)),
            "apply": lambda event: self.state.append(event["id"]),
            "take_back": self.state.remove,
            "web": web,
        }
        exec(EXAMPLES["python"], self.names)  # code of this repository


def batch(number: int, incarnation: Incarnation, resource_id: str = "p-1", **members: Any) -> FeedEvent:
    names = {"id": f"{incarnation.id}-{number}-0", "position": f"{number}-0", "incarnation": incarnation}
    return feed_event(0, resource_id, **(names | members))


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    found = Receiver(tmp_path)
    application = web.Application()
    application.router.add_post("/", found.names["receive"])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield found
    await runner.cleanup()
    found.names["db"].close()


async def state_after(receiver: Receiver, *events: FeedEvent, secret: str = SECRET) -> list[str]:
    async with open_webhook(receiver.url, [secret], LOOPBACK) as webhook:
        for event in events:
            assert await webhook.publish([event]) == [Delivered()]
    return receiver.state


def test_file_of_the_page_is_one() -> None:
    (found,) = parse_feed_file(EXAMPLES["webhook"].encode(), AllowedHosts(), lambda _: SECRET).destinations
    assert found.name == "crm"


def test_event_of_the_page_is_valid() -> None:
    Draft202012Validator(FEED_SCHEMAS["feed-event"]).validate(json.loads(EXAMPLES["example"]))


async def test_receiver_applies_each_event_once(receiver: Receiver) -> None:
    events = [batch(1, ONE), batch(2, ONE), batch(1, ONE), batch(2, ONE)]
    assert await state_after(receiver, *events) == ["i1-1-0", "i1-2-0"]


async def test_receiver_takes_back_what_a_new_incarnation_undoes(receiver: Receiver) -> None:
    before = [batch(41, ONE), batch(42, ONE), batch(43, ONE, "p-2")]
    assert await state_after(receiver, *before, batch(42, TWO, "p-3")) == ["i1-41-0", "i2-42-0"]
    assert await state_after(receiver, batch(61, TWO), batch(60, TWO, "p-4")) == [
        *("i1-41-0", "i2-42-0", "i2-61-0", "i2-60-0"),
    ]
    assert await state_after(receiver, batch(62, THREE)) == ["i1-41-0", "i2-42-0", "i2-60-0", "i3-62-0"]


async def test_receiver_keeps_an_event_that_a_new_incarnation_begins_with(receiver: Receiver) -> None:
    again = batch(42, TWO, id="i1-42-0")
    assert await state_after(receiver, batch(42, ONE), again, batch(43, TWO, "p-2")) == ["i1-42-0", "i2-43-0"]


async def test_receiver_drops_an_undone_event_that_comes_late(receiver: Receiver) -> None:
    late = [batch(43, ONE), batch(40, ONE, "p-2"), batch(50, TWO), batch(61, TWO)]
    assert await state_after(receiver, batch(70, THREE), *late) == ["i3-70-0", "i1-40-0", "i2-50-0"]


async def test_receiver_knows_a_new_incarnation_that_does_not_name_the_one_before(receiver: Receiver) -> None:
    before = [batch(29, ONE), batch(42, TWO)]
    assert await state_after(receiver, *before, batch(31, EARLIER)) == ["i1-29-0", "i3-31-0"]
    assert await state_after(receiver, batch(43, TWO), batch(90, EARLIER)) == ["i1-29-0", "i3-31-0", "i3-90-0"]


async def test_receiver_takes_back_what_an_undone_event_names(receiver: Receiver) -> None:
    undone = batch(42, TWO, id="undone-1", kind=FeedKind.UNDONE, undoes="i1-42-0")
    again = batch(43, TWO, reapplies="i1-42-0")
    state = await state_after(receiver, batch(42, ONE), undone, again, undone, batch(42, ONE))
    assert state == ["undone-1", "i2-43-0"]


async def test_receiver_refuses_what_another_secret_has_signed(receiver: Receiver) -> None:
    wrong = "whsec_" + base64.b64encode(b"x" * 32).decode()
    async with open_webhook(receiver.url, [wrong], LOOPBACK) as webhook:
        (delivery,) = await webhook.publish([batch(1, ONE)])
    assert isinstance(delivery, Refused)
    assert receiver.state == []
