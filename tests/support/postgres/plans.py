"""The plans of our statements."""

from __future__ import annotations

import re
from typing import Any

from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.transfers import QUERIES


async def plan_of(connection: Connection, query: str, *arguments: Any) -> str:
    count = len({*re.findall(r"\$\d+", QUERIES[query])})
    rows = await connection.fetch(f"EXPLAIN {QUERIES[query]}", *arguments[:count])
    return "\n".join(row[0] for row in rows)
