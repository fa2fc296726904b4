"""Serve an application on a port of loopback, and listen for the signals that end the server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from simplu_local.processes.loopback import HOST, URL_HOST


@asynccontextmanager
async def serve_on_loopback(
    application: web.Application, port: int = 0, *, shutdown_timeout_s: float = 0.1, handler_cancellation: bool = False
) -> AsyncIterator[str]:
    """Serve *application* on *port* of loopback (0: a free one); yields its URL.

    With *handler_cancellation* a handler is cancelled when its client disconnects.
    """
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=shutdown_timeout_s, handler_cancellation=handler_cancellation
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield f"http://{URL_HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def listen_for_stop() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set from now on."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
