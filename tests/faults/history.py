"""The history of a run as JSON lines: what happened so far, and what the shards and receivers have in the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg

from simplu_local.postgres.server import PostgresServer

TENANTS_SQL: Final = "SELECT id AS tenant, state FROM tenants WHERE id = ANY($1)"
OPERATIONS_SQL: Final = """
SELECT tenant_id AS tenant, request_id AS request, operation, resource_type AS type, resource_id AS id, status, error,
    result, (extract(epoch FROM completed_at) * 1e6)::bigint AS completed_at, position
FROM operations WHERE tenant_id = ANY($1)
"""
RESOURCES_SQL: Final = """
SELECT id AS tenant, "resourceName" AS type, "resourceId" AS id, data FROM resources
WHERE id = ANY($1) AND "resourceName" <> 'settings'
"""
USAGE_SQL: Final = """
SELECT tenant, sum(count)::int AS count
FROM (
    SELECT business_id || '-' || location_id, operation_count FROM usage
    UNION ALL
    SELECT tenants.id, 1 FROM log_rows JOIN tenants ON number = tenant_no
    WHERE batch_id >= coalesce((SELECT batch_id FROM usage_progress), 0) AND kind NOT IN ('m', 'M')
) AS used (tenant, count)
WHERE tenant = ANY($1) GROUP BY tenant
"""
ROWS: Final = {"tenant": TENANTS_SQL, "operation": OPERATIONS_SQL, "resource": RESOURCES_SQL, "usage": USAGE_SQL}
JSON_COLUMNS: Final = ("result", "data")
LOGGED: Final = ("warning", "error", "critical")
TRACEBACK: Final = "Traceback (most recent call last)"


class History:
    """The lines so far, each written to a file when it is noted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._file = path.open("w", buffering=1)

    def note(self, what: str, *, at: float | None = None, **members: Any) -> None:
        """Note a line; *at* is now by default."""
        line = {"what": what, "at": time.time() if at is None else at} | members
        self.lines.append(line)
        self._write(line)

    def close(self, ending: Sequence[Mapping[str, Any]]) -> None:
        for line in ending:
            self._write(line)
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


async def read_rows(servers: Mapping[str, PostgresServer], tenant_ids: Collection[str]) -> list[dict[str, Any]]:
    lines = []
    for shard, server in servers.items():
        connection = await asyncpg.connect(server.url, timeout=10, command_timeout=60)
        try:
            for what, query in ROWS.items():
                rows = await connection.fetch(query, list(tenant_ids))
                lines += [{"what": what, "shard": shard} | _members(row) for row in rows]
        finally:
            await connection.close()
    return lines


def _members(row: asyncpg.Record) -> dict[str, Any]:
    return {
        name: json.loads(value) if name in JSON_COLUMNS and value is not None else value for name, value in row.items()
    }


def read_events(journal: Path, tenant_ids: Collection[str], *, since: float) -> Iterator[dict[str, Any]]:
    """Yield what a receiver of the feed has accepted about some tenants, and since then about none, as lines.

    A line that is being written is left out.
    """
    if not journal.exists():
        return
    for line in journal.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            moment, _, text = line.partition(b" ")
            event, at = json.loads(text), float(moment)
            if event["simplutenant"] in tenant_ids if event.get("simplutenant") else at >= since:
                yield {"what": "event", "at": at, "event": event}


def read_log(path: Path, *, offset: int) -> Iterator[dict[str, Any]]:
    """Yield a worker's warnings and errors from a place on as lines, by event: how many, and the first of them."""
    counts: Counter[tuple[str, str]] = Counter()
    firsts: dict[tuple[str, str], Any] = {}
    for text in path.read_bytes()[offset:].decode(errors="replace").splitlines():
        facts = _facts_of(text)
        if facts["level"] in LOGGED:
            kind = facts["level"], facts["event"]
            counts[kind] += facts.get("repeated", 1)
            firsts.setdefault(kind, facts)
    for (level, event), count in counts.items():
        yield {"what": "logged", "log": path.name, "level": level, "event": event, "count": count} | {
            "first": firsts[level, event]
        }


def _facts_of(text: str) -> dict[str, Any]:
    """Return a line of a log; one that is none of ours, such as that of a worker killed meanwhile, has little in it."""
    try:
        facts = json.loads(text)
    except ValueError:
        return {"level": "critical" if TRACEBACK in text else "", "event": text}
    return {"level": "", "event": ""} | facts if isinstance(facts, dict) else {"level": "", "event": text}
