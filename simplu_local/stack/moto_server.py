"""Run moto behind a server that keeps connections open, as AWS does.

    python -m simplu_local.stack.moto_server --port 4568

moto's own server closes a connection after each reply. Every request then opens one, which is a large part of its cost,
and no test reuses a connection. And moto checks the condition of a write to DynamoDB some time before it writes: of two
requests at once both may succeed. So requests to DynamoDB are answered one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Final

import structlog
from aiohttp import web
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.test import EnvironBuilder, run_wsgi_app

from simplu_local.processes.http_serving import listen_for_stop, serve_on_loopback

log = structlog.get_logger(__name__)

THREADS: Final = 64  # a long poll occupies a thread while it waits
MAX_BODY_BYTES: Final = 32 * 1024 * 1024


class MotoServer:
    """The HTTP side of moto, which answers requests by blocking calls."""

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="moto")
        self._dynamodb_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"MotoServer({THREADS} threads)"

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request."""
        builder = EnvironBuilder(
            path=request.rel_url.raw_path,
            query_string=request.rel_url.raw_query_string,
            base_url=f"http://{request.host}/",
            method=request.method,
            headers=list(request.headers.items()),
            data=await request.read(),
        )
        loop = asyncio.get_running_loop()
        status, headers, body = await loop.run_in_executor(self._threads, self._call, builder)
        return web.Response(body=body, status=status, headers=headers)

    def _call(self, builder: EnvironBuilder) -> tuple[int, list[tuple[str, str]], bytes]:
        is_dynamodb = builder.headers.get("X-Amz-Target", "").startswith("DynamoDB")
        with self._dynamodb_lock if is_dynamodb else nullcontext():
            chunks, status, headers = run_wsgi_app(self._application, builder.get_environ(), buffered=True)
        body = b"".join(chunks)
        return int(status.split()[0]), [pair for pair in headers if pair[0].lower() != "content-length"], body


async def run(port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = listen_for_stop()
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.router.add_route("*", "/{path:.*}", MotoServer().answer)
    async with serve_on_loopback(application, port) as url:
        log.info("moto.started", url=url)
        await stop.wait()
    os._exit(0)  # a poll that waits in its thread would delay a normal exit


def main() -> None:
    """Run the server as a program."""
    parser = argparse.ArgumentParser(prog="moto_server", description="moto, on connections that are kept open.")
    parser.add_argument("--port", type=int, required=True, help="of loopback; 0 takes a free one and logs it")
    asyncio.run(run(parser.parse_args().port))


if __name__ == "__main__":
    main()
