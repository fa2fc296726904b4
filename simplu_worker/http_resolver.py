"""How a client of aiohttp resolves names that may have no answer."""

from __future__ import annotations

import socket

from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

from simplu_worker.network_lookup import look_up_host


class PatientResolver(ThreadedResolver):
    """Resolves as aiohttp does, but waits for a name without an answer outside the threads that all share."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of *host*. Raises the error of `socket.getaddrinfo`."""
        await look_up_host(host)
        return await super().resolve(host, port, family)
