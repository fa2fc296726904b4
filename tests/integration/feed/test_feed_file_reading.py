"""`FEED_FILE` on disk: read with its secrets, and read again when a signal asks for it."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.feed.receiver import Receiver
from support.feed.running import feed_of

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.feed import ConfiguredDestination, keep_reading, read_feed_file
from simplu_worker.feed.feed_file import FeedDestination
from simplu_worker.shards.postgres.pool import Pools

STREAM = {"name": "stream", "kind": "kinesis", "target": "changes", "allTenants": True}


class Folder:
    def __init__(self, path: Path) -> None:
        self.feed, self.secret = path / "feed.json", path / "secret"
        self.webhook = {"name": "crm", "kind": "webhook", "target": "https://crm.example", "allTenants": True}
        self.webhook |= {"secretFiles": [str(self.secret)]}
        self.secret.write_text(f"whsec_{base64.b64encode(bytes(32)).decode()}\n")

    def write(self, *entries: dict[str, Any]) -> None:
        self.feed.write_text(json.dumps({"destinations": entries}))

    def read(self) -> tuple[FeedDestination, ...]:
        return read_feed_file(self.feed, ())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.write(STREAM, folder.webhook)
    return folder


def reload_count(outcome: str) -> float:
    return REGISTRY.get_sample_value("simplu_feed_file_reloads_total", {"outcome": outcome}) or 0.0


def test_file_that_cannot_be_read_is_named(folder: Folder) -> None:
    folder.secret.write_bytes(b"whsec_\xff")
    for told, lost in (
        ("24 to 64 bytes", folder.secret),
        ("secretFiles: .* No such file", folder.feed),
        ("at .*feed", None),
    ):
        with pytest.raises(ConfigurationError, match=told):
            folder.read()
        if lost is not None:
            lost.unlink()


async def test_signal_has_the_file_used_as_it_is_now_and_a_bad_one_changes_nothing(folder: Folder) -> None:
    wanted = asyncio.Event()
    before = {outcome: reload_count(outcome) for outcome in ("applied", "refused")}
    used: list[list[str]] = []

    def read() -> list[ConfiguredDestination]:
        return [ConfiguredDestination(one.terms, Receiver().configured().open) for one in folder.read()]

    async with Pools(size=1) as pools:
        feed = feed_of(pools, [], [])
        task = asyncio.create_task(keep_reading(feed, read, wanted))
        with capture_logs() as logs:
            for entries in ([folder.webhook, STREAM], [STREAM | {"kind": "none"}], [STREAM, folder.webhook]):
                folder.write(*entries)
                wanted.set()
                async with asyncio.timeout(30):
                    while len(logs) == len(used):  # noqa: ASYNC110  # nothing there is to be awaited
                        await asyncio.sleep(0)
                used.append([one.terms.name for one in feed._destinations])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert used == [["crm", "stream"], ["crm", "stream"], ["stream", "crm"]]
    events = [(line["event"], line["log_level"]) for line in logs]
    assert events == [("feed_file.reloaded", "info"), ("feed_file.refused", "error"), ("feed_file.reloaded", "info")]
    assert logs[0]["destinations"] == ["crm", "stream"]
    assert [problem.split(":")[2] for problem in logs[1]["problems"]] == [" kind"]
    assert reload_count("refused") == before["refused"] + 1
    assert reload_count("applied") == before["applied"] + 2
