"""A receiver of webhooks that fails at random, as docs/feed.md says that a receiver may.

    python -m support.feed.webhook_receiver JOURNAL SECRET [--seed 1] [--faults 0.02] [--hang-every 0]

Prints its URL, then appends each event that it accepts to JOURNAL before it answers: a line with the time and the
event. Of the requests a share of *faults* each gets 500 unread, gets 500 though it was accepted, is closed unread, or
is closed though it was accepted. Each *hang-every*th one gets its answer after the 15 s in which the worker waits, and
is accepted only then.
SIGUSR1 begins an outage, in which every answer is 503, and SIGUSR1 again ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from pathlib import Path
from typing import Final

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from simplu_local.processes.http_serving import listen_for_stop, serve_on_loopback

HANG_S: Final = 16.0
FAULTS: Final = ("refuse", "repeat", "close", "close-accepted")


class Receiver:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._webhook = Webhook(arguments.secret)
        self._journal = arguments.journal.open("ab", buffering=0)
        self._random = random.Random(arguments.seed)
        self._faults = arguments.faults
        self._hang_every = arguments.hang_every
        self._request_count = 0
        self._is_down = False

    def toggle(self) -> None:
        self._is_down = not self._is_down

    async def receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self._is_down:
            return web.Response(status=503)
        try:
            self._webhook.verify(body.decode(), dict(request.headers))
        except WebhookVerificationError:
            return web.Response(status=401)
        self._request_count += 1
        if self._hang_every and not self._request_count % self._hang_every:
            await asyncio.sleep(HANG_S)
        draw = self._random.random()
        fault = FAULTS[int(draw / self._faults)] if draw < len(FAULTS) * self._faults else None
        if fault not in {"refuse", "close"}:
            self._journal.write(b"%.4f %b\n" % (time.time(), body))
        if fault in {"close", "close-accepted"} and request.transport is not None:
            request.transport.close()
        return web.Response(status=204 if fault is None else 500)


async def serve(arguments: argparse.Namespace) -> None:
    receiver, stop = Receiver(arguments), listen_for_stop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, receiver.toggle)
    application = web.Application()
    application.router.add_post("/changes", receiver.receive)
    async with serve_on_loopback(application) as url:
        sys.stdout.write(f"{url}/changes\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", type=Path)
    parser.add_argument("secret")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=float, default=0.02)
    parser.add_argument("--hang-every", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
