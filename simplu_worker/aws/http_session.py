"""The HTTP session of AWS clients: aiobotocore's, which reads an answer up to a limit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from botocore import exceptions as botocore_errors
from botocore.parsers import ResponseParserError

from simplu_worker.timing.clock import OWN_CLOCK

REPLY_MAX_BYTES = 32 * 1024 * 1024  # twice the largest that a service sends, which is 16 MB (BatchGetItem)


class BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """Reads at most REPLY_MAX_BYTES of an answer; aiobotocore reads all, and has no setting for that.

    Nothing is decompressed: requests do not accept compression, and a compressed answer is not parsed.
    """

    async def open(self, url: str) -> None:
        """Make what the first request to *url* needs. Raises what is wrong with the CA bundle or the proxy."""
        await self._get_session(self._proxy_config.proxy_url_for(url))

    async def send(self, request: Any) -> Any:
        """Send a request as aiobotocore does, and read its answer. Raises errors of botocore."""
        is_streamed, request.stream_output = request.stream_output, True  # the answer's body is left unread
        try:
            response = await super().send(request)
        finally:
            request.stream_output = is_streamed
        if (date := response.headers.get("date")) is not None:
            OWN_CLOCK.compare(date)
        response.raw = BoundedReply(response.raw)
        if not is_streamed:
            await response.content  # which keeps it
        return response


class BoundedReply:
    """The unread body of an answer."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def read(self) -> bytes:
        """Return the body; close its connection if that fails. Raises ResponseParserError if it is too long.

        Raises errors of botocore: aiobotocore reads the body of an error itself, also in place of an event stream.
        """
        try:
            with self._errors_of_botocore():
                return b"".join([part async for part in self._read_parts()])
        except BaseException:
            self._reply.close()
            raise

    async def read_any(self) -> bytes:
        """Return the bytes of an event stream that are there, at least one; none at its end. Raises AWS_ERRORS."""
        with self._errors_of_botocore():
            return await self._reply.content.readany()

    def close(self) -> None:
        """Close the connection."""
        self._reply.close()

    @contextmanager
    def _errors_of_botocore(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ServerTimeoutError as exc:
            raise botocore_errors.ReadTimeoutError(endpoint_url=str(self._reply.url), error=exc) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise botocore_errors.ConnectionClosedError(endpoint_url=str(self._reply.url), error=exc) from exc

    async def _read_parts(self) -> AsyncIterator[bytes]:
        left_bytes = REPLY_MAX_BYTES
        async for part in self._reply.content.iter_any():
            left_bytes -= len(part)
            if left_bytes < 0:
                place = self._reply.url.with_user(None).with_query(None)
                raise ResponseParserError(f"{place}: expected an answer of at most {REPLY_MAX_BYTES} bytes, got more")
            yield part
