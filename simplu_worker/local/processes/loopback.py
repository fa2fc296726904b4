"""What the parts of the embedded stack share: free ports on loopback, and waiting until something answers."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"
# Below the ranges from which Linux (32768) and macOS (49152) take the ports of outgoing connections: a server that is
# down for a while finds its port free when it comes back.
PORTS = range(15_000, 32_000)
POLL_S = 0.01


class StackError(Exception):
    """The embedded stack cannot start or go on; the message is for a person."""


def free_port() -> int:
    """Return a port of loopback that nobody listens on now; somebody else may still be faster to take it."""
    for _ in range(200):
        port = secrets.choice(PORTS)  # not `random`: test tools seed that alike in processes side by side
        if port_is_free(port):
            return port
    raise StackError(f"no free port on {HOST}: 200 of {PORTS.start}-{PORTS.stop - 1} were tried and all are taken")


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on *port* now."""
    with socket.socket() as probe:
        # As servers do: a port with nothing but connections in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


async def poll_until(ask: Callable[[], Awaitable[bool]], *, within_s: float) -> bool:
    """Ask again and again; return true at the first yes, false when *within_s* have passed without one."""
    deadline = time.monotonic() + within_s
    while not await ask():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
