"""A program: a flood of requests from one process, as the first argument, JSON, says. Prints the number of requests.

By `how`: with `ask` each of `connections` sends the payload again and again and reads the answers, for `seconds`, and
at least once. With `replace` the payload is sent once on each of many new connections, of which the last `connections`
stay open, unread, until stdin ends; once there are so many their number is printed. With `hold` it is sent on
`connections`, which stay open, unread, until stdin ends; their number is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
import sys
import time
from collections import deque
from typing import Any

import msgspec


async def _ask_again_and_again(port: int, payload: bytes, ends_at: float) -> int:
    count = 0
    while not count or time.monotonic() < ends_at:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while not count or time.monotonic() < ends_at:
                    writer.write(payload)
                    await reader.readexactly(_body_bytes(await reader.readuntil(b"\r\n\r\n")))
                    count += 1
            finally:
                writer.close()
    return count


def _body_bytes(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))


async def _read_flood(config: dict[str, Any], payload: bytes) -> int:
    ends_at = time.monotonic() + config["seconds"]
    asks = [_ask_again_and_again(config["port"], payload, ends_at) for _ in range(config["connections"])]
    return sum(await asyncio.gather(*asks))


def _replace(config: dict[str, Any], payload: bytes) -> None:
    kept: deque[socket.socket] = deque()
    is_printed = False
    while not select.select([sys.stdin], [], [], 0)[0]:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", config["port"]), timeout=1)
            kept.append(connection)
            connection.send(payload)
        if len(kept) > config["connections"]:
            kept.popleft().close()
            if not is_printed:
                _print_line(config["connections"])
                is_printed = True


def _hold(config: dict[str, Any], payload: bytes) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept = []
    for _ in range(config["connections"]):
        connection = socket.create_connection(("127.0.0.1", config["port"]), timeout=20)
        kept.append(connection)
        with contextlib.suppress(OSError):  # the server may have closed it
            connection.sendall(payload)
    _print_line(len(kept))
    sys.stdin.read()


def _print_line(count: int) -> None:
    sys.stdout.write(f"{count}\n")
    sys.stdout.flush()


def main() -> None:
    """Send the flood of the first argument, and print the number of its requests."""
    config = msgspec.json.decode(sys.argv[1])
    payload = config["payload"].encode()
    match config["how"]:
        case "ask":
            _print_line(asyncio.run(_read_flood(config, payload)))
        case "replace":
            _replace(config, payload)
        case "hold":
            _hold(config, payload)


if __name__ == "__main__":
    main()
