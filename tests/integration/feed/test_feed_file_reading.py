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

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.feed import FILE_MAX_BYTES, FeedFileReloader, read_feed_file
from simplu_worker.feed.feed_file import FeedFile

STREAM = {"name": "stream", "kind": "kinesis", "target": "changes", "allTenants": True}


class Folder:
    def __init__(self, path: Path) -> None:
        self.feed, self.secret = path / "feed.json", path / "secret"
        self.webhook = {"name": "crm", "kind": "webhook", "target": "https://crm.example", "allTenants": True}
        self.webhook |= {"secretFiles": [str(self.secret)]}
        self.write_secret(1)

    def write_secret(self, number: int) -> None:
        self.secret.write_text(f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}\n")

    def write(self, *entries: dict[str, Any]) -> None:
        self.feed.write_text(json.dumps({"destinations": entries}))

    def read(self) -> FeedFile:
        return read_feed_file(self.feed, ())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.write(STREAM, folder.webhook)
    return folder


def reload_count(outcome: str) -> float:
    return REGISTRY.get_sample_value("simplu_feed_file_reloads_total", {"outcome": outcome}) or 0.0


def problems_of(folder: Folder) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        folder.read()
    return raised.value.problems


def test_file_that_cannot_be_read_is_named(folder: Folder) -> None:
    folder.secret.write_bytes(b"whsec_" + b"\xff" * 5000)
    assert problems_of(folder) == (
        f"FEED_FILE: destination crm: secretFiles: {folder.secret}: expected at most 4096 bytes, got more",
    )
    folder.secret.write_bytes(b"whsec_\xff")
    assert problems_of(folder)[0].endswith("expected whsec_ and 24 to 64 bytes in base64, got no base64")
    folder.secret.unlink()
    assert problems_of(folder)[0].endswith("got: No such file or directory")
    folder.feed.write_bytes(b" " * (FILE_MAX_BYTES + 1))
    assert problems_of(folder) == (f"FEED_FILE: expected at most {FILE_MAX_BYTES} bytes, got more",)
    folder.feed.unlink()
    assert problems_of(folder) == (
        f"FEED_FILE: expected a readable file at {folder.feed}, got: No such file or directory",
    )


async def test_signal_has_the_file_used_as_it_is_now_and_a_bad_one_changes_nothing(folder: Folder) -> None:
    used: asyncio.Queue[FeedFile] = asyncio.Queue()
    wanted = asyncio.Event()
    before = {outcome: reload_count(outcome) for outcome in ("applied", "refused")}
    reloader = FeedFileReloader(read=folder.read, use=used.put_nowait)
    task = asyncio.create_task(reloader.run(wanted))
    with capture_logs() as logs:
        folder.write_secret(2)
        folder.write(folder.webhook, STREAM | {"name": "other"})
        wanted.set()
        changed = await used.get()
        folder.feed.write_text("{")
        await reloader.reload()
        folder.write(STREAM | {"name": "other"}, folder.webhook)
        wanted.set()
        again = await used.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [one.name for one in changed.destinations] == ["crm", "other"]
    assert changed.destinations[0].secrets[0].startswith("whsec_AgIC")
    assert [one.name for one in again.destinations] == ["other", "crm"]
    assert [(line["event"], line["log_level"]) for line in logs][:2] == [
        ("feed_file.reloaded", "info"),
        ("feed_file.refused", "error"),
    ]
    assert logs[0]["destinations"] == ["crm", "other"]
    assert [problem.partition(",")[0] for problem in logs[1]["problems"]] == ["FEED_FILE: expected JSON"]
    assert reload_count("refused") == before["refused"] + 1
    assert reload_count("applied") >= before["applied"] + 1
