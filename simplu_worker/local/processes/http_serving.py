"""What the servers of the embedded stack share: an application on a port of loopback, and the signals that end it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from simplu_worker.local.processes.loopback import HOST


@asynccontextmanager
async def serve_on_loopback(
    application: web.Application, port: int = 0, *, shutdown_timeout_s: float = 0.1, handler_cancellation: bool = False
) -> AsyncIterator[str]:
    """Serve *application* on *port* of loopback (0: a free one); yields its URL.

    With *handler_cancellation* what is being answered does not outlive the client that waits for it.
    """
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=shutdown_timeout_s, handler_cancellation=handler_cancellation
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def listen_for_stop() -> asyncio.Event:
    """Return what SIGINT and SIGTERM set from now on."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped
