"""Free ports on loopback, and polling until a condition is true."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable

# The address of loopback on which all servers of the stack listen: that of IPv4, unless the variable has ::1.
HOST = os.environ.get("STACK_HOST") or "127.0.0.1"
URL_HOST = f"[{HOST}]" if ":" in HOST else HOST
# Below the ranges from which Linux (32768) and macOS (49152) take the ports of outgoing connections: a server that was
# down for a while finds its port free.
PORTS = range(15_000, 32_000)
POLL_S = 0.01
POLL_MAX_S = 0.2
POLL_SHARE = 0.1  # of the time waited so far


class StackError(Exception):
    """The embedded stack cannot start or continue; the message is for a person."""


def free_port() -> int:
    """Return a port of loopback on which no program listens now; another program may still take it first."""
    for _ in range(200):
        port = secrets.choice(PORTS)  # not `random`: test tools give parallel processes the same seed
        if port_is_free(port):
            return port
    raise StackError(f"no free port on {HOST}: tried 200 of {PORTS.start}-{PORTS.stop - 1}, all are in use")


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on *port* now."""
    with socket.socket(socket.AF_INET6 if ":" in HOST else socket.AF_INET) as probe:
        # As servers do: a port with nothing but connections in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


async def poll_until(condition: Callable[[], Awaitable[bool]], *, within_s: float) -> bool:
    """Poll *condition*; return true soon after it is true, false when *within_s* have passed.

    The longer the wait so far, the longer the pauses: many conditions open a connection to a server each time.
    """
    begun = time.monotonic()
    while not await condition():
        waited_s = time.monotonic() - begun
        if waited_s >= within_s:
            return False
        await asyncio.sleep(poll_pause_s(waited_s))
    return True


def poll_pause_s(waited_s: float) -> float:
    """Return the pause before the next poll, after *waited_s* of polling."""
    return min(POLL_MAX_S, max(POLL_S, waited_s * POLL_SHARE))
