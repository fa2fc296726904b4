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
from support.feed.events import AT, feed_event
from support.feed.publishing import open_webhook
from support.page_examples import page_examples
from support.requires import ROOT

from simplu_worker.feed.events import reset_event
from simplu_worker.feed.feed_file import AllowedHosts, parse_feed_file
from simplu_worker.feed.types import Delivered, FeedEvent, Place, Publication, Refused
from simplu_worker.status.message_schemas import SCHEMAS

PAGE: Final = ROOT / "docs" / "feed.md"
EXAMPLES: Final = {example.name: example.text for example in page_examples(PAGE)}
SECRET: Final = "whsec_" + base64.b64encode(bytes(32)).decode()
LOOPBACK: Final = AllowedHosts.parse(("127.0.0.1",))


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


def batch(number: int, incarnation: str = "i1", event_id: str | None = None) -> FeedEvent:
    return feed_event(0, id=event_id or f"{incarnation}-{number}", position=f"{number}-0", incarnation=incarnation)


def reset(incarnation: str, behind: int) -> FeedEvent:
    return reset_event(Publication("shard-1", incarnation, ""), Place(behind, 3), AT)


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
    (found,) = parse_feed_file(EXAMPLES["webhook"].encode(), AllowedHosts(), lambda _: SECRET)
    assert found.terms.name == "crm"


def test_event_of_the_page_is_valid() -> None:
    Draft202012Validator(SCHEMAS["feed-event"]).validate(json.loads(EXAMPLES["example"]))


async def test_receiver_applies_each_event_once(receiver: Receiver) -> None:
    events = [batch(1), batch(2), batch(1), batch(2)]
    assert await state_after(receiver, *events) == ["i1-1", "i1-2"]


async def test_receiver_takes_back_what_is_behind_a_reset(receiver: Receiver) -> None:
    before = [batch(41), batch(42), batch(43)]
    other = feed_event(0, id="other", shard_id="shard-2", position="90-0", incarnation="i1")
    assert await state_after(receiver, *before, other, reset("i2", 41)) == ["i1-41", "other"]
    assert await state_after(receiver, batch(42, "i2"), reset("i2", 41)) == ["i1-41", "other", "i2-42"]
    assert await state_after(receiver, reset("i3", 40)) == ["other"]


async def test_receiver_keeps_what_came_again_before_the_reset(receiver: Receiver) -> None:
    again = batch(42, "i2", "i1-42")
    assert await state_after(receiver, batch(42), batch(43), again, batch(42), reset("i2", 41)) == ["i1-42"]


async def test_receiver_drops_what_comes_later_than_the_reset_behind_it(receiver: Receiver) -> None:
    resets = [reset("i3", 60), reset("i2", 41)]
    late = [batch(43), batch(41), batch(60, "i2"), batch(61, "i2"), batch(61, "i3")]
    assert await state_after(receiver, *resets, *late) == ["i1-41", "i2-60", "i3-61"]


async def test_receiver_refuses_what_another_secret_has_signed(receiver: Receiver) -> None:
    wrong = "whsec_" + base64.b64encode(b"x" * 32).decode()
    async with open_webhook(receiver.url, [wrong], LOOPBACK) as webhook:
        (delivery,) = await webhook.publish([batch(1)])
    assert isinstance(delivery, Refused)
    assert receiver.state == []
