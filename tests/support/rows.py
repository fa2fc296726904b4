"""What a query finds, over a connection of its own: for programs and tests that look at shards from outside."""

from __future__ import annotations

from typing import Any

import asyncpg

CONNECT_S, QUERY_S = 30.0, 120.0


async def fetch(url: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url, timeout=CONNECT_S, command_timeout=QUERY_S)
    try:
        return list(await connection.fetch(query, *arguments))
    finally:
        connection.terminate()


async def fetch_row(url: str, query: str, *arguments: Any) -> asyncpg.Record:
    return (await fetch(url, query, *arguments))[0]


async def fetch_value(url: str, query: str, *arguments: Any) -> Any:
    """Return the first value of the first row; none without a row."""
    rows = await fetch(url, query, *arguments)
    return rows[0][0] if rows else None
