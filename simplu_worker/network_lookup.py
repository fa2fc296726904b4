"""Look up the name of a host in a thread of its own, before asyncpg or aiohttp looks it up.

These use the threads of the event loop, which the whole process shares and which are few. A lookup that gets no answer
keeps its thread for up to 40 s, also after its caller has given up. So each name has at most one thread at a time, and
they ask only for a name that was answered just before.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Final

_lookups: Final[dict[str, Future[None]]] = {}  # by name, until the first call after their end


async def look_up_host(host: str) -> None:
    """Return once the name of *host* has an address; concurrent callers for one name share one lookup.

    An IP address, the folder of a Unix socket and no host at all need no lookup. A cancelled caller leaves the lookup
    to the others and to later callers. Raises the error of `socket.getaddrinfo`.
    """
    if not _is_name(host):
        return
    for ended in [name for name, lookup in _lookups.items() if lookup.done()]:
        del _lookups[ended]  # its answer is old
    lookup = _lookups.get(host)
    if lookup is None:
        lookup = _lookups[host] = _begin(host)
    await asyncio.wrap_future(lookup)


def _is_name(host: str) -> bool:
    if not host or host.startswith("/"):
        return False
    with contextlib.suppress(ValueError):
        ip_address(host)
        return False
    return True


def _begin(host: str) -> Future[None]:
    lookup: Future[None] = Future()
    lookup.set_running_or_notify_cancel()  # from now on no caller's cancellation ends it

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except Exception as exc:  # noqa: BLE001  # raised in the callers
            lookup.set_exception(exc)
        else:
            lookup.set_result(None)

    threading.Thread(target=look_up, name="host-lookup", daemon=True).start()
    return lookup
