"""Waiting that a stop cuts short."""

from __future__ import annotations

import asyncio


async def pause(seconds: float, *, until: asyncio.Event) -> bool:
    """Wait for *seconds*, or less when *until* is set; return whether it is."""
    try:
        async with asyncio.timeout(seconds):
            await until.wait()
    except TimeoutError:
        pass
    return until.is_set()
