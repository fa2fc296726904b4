"""A dead-letter queue for any number of letters: moto takes seconds a call once a queue holds thousands.

It is a proxy of an SQS that answers for one queue itself and forwards all other requests.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientSession, web

from simplu_local.processes.http_serving import serve_on_loopback
from simplu_local.verify.comparison import StoredDeadLetter
from simplu_local.verify.shard_checker import parse_dead_letter

TARGET_PREFIX = "AmazonSQS."
CONTENT_TYPE = "application/x-amz-json-1.0"
MAX_BODY_BYTES = 4 * 1024 * 1024
ATTRIBUTES = {"MaximumMessageSize": "262144", "MessageRetentionPeriod": "345600", "VisibilityTimeout": "30"}
FORWARDED_HEADERS = ("Content-Type", "X-Amz-Target", "Authorization", "X-Amz-Date", "X-Amz-Security-Token")


class DeadLetterSink:
    """The queue at *queue_url* of the SQS at *endpoint_url*. Dead letters are kept here, in order of arrival."""

    def __init__(self, endpoint_url: str, queue_url: str) -> None:
        self.dead_letters: list[StoredDeadLetter] = []
        self._endpoint_url = endpoint_url
        self._queue_url = queue_url

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve on a free port of loopback; yields the endpoint URL for SQS."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post("/{path:.*}", self._answer)
        async with (
            ClientSession() as self._session,
            serve_on_loopback(application, shutdown_timeout_s=1.0, handler_cancellation=True) as url,
        ):
            yield url

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        request_body = json.loads(body or b"{}")
        if request_body.get("QueueUrl") != self._queue_url:
            return await self._forward(request, body)
        match request.headers.get("X-Amz-Target", "").removeprefix(TARGET_PREFIX):
            case "SendMessage":
                return _reply(self._store(request_body))
            case "SendMessageBatch":
                return _reply({"Successful": [{"Id": one["Id"]} | self._store(one) for one in request_body["Entries"]]})
            case "GetQueueAttributes":
                return _reply({"Attributes": ATTRIBUTES})
            case _:
                return await self._forward(request, body)

    def _store(self, message: dict[str, Any]) -> dict[str, str]:
        text = message["MessageBody"]
        self.dead_letters.append(parse_dead_letter(text))
        digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        return {"MessageId": str(uuid.uuid4()), "MD5OfMessageBody": digest}

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
        async with self._session.post(self._endpoint_url + request.path_qs, data=body, headers=headers) as answer:
            return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)


def _reply(answer: dict[str, Any]) -> web.Response:
    return web.Response(body=json.dumps(answer).encode(), content_type=CONTENT_TYPE)
