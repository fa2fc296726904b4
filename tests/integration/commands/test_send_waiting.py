"""`operations send` says what it waits for, before it gives up."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.settings import settings_in

from simplu_worker.commands.stream.send import SendOptions, send_operations
from simplu_worker.network_errors import NO_SERVER

LINE = b'{"operation": "delete", "businessId": "b", "locationId": "l", "resourceType": "t", "resourceId": "r"}'
NOWHERE = "http://127.0.0.1:1"


@pytest.mark.slow(3)
@pytest.mark.usefixtures("aws_credentials")
async def test_send_names_the_stream_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", NOWHERE)
    settings = settings_in({"AWS_REGION": "eu-west-1", "KINESIS_STREAM_NAME": "operations"})
    options = SendOptions(wait=False, timeout_s=60, force=False)
    sending = asyncio.create_task(send_operations(settings, LINE, options, as_json=True))
    said = ""
    async with asyncio.timeout(50):
        while not said:
            await asyncio.sleep(0.05)
            said = capsys.readouterr().err
            assert not sending.done()
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    assert said.rstrip() == f"waiting for stream operations: {NOWHERE}/: {NO_SERVER}"
