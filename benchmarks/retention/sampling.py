"""The queries of the retention benchmark: sizes, dead rows, the retention's statements, latencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import asyncpg

EXTENSIONS: Final = """
CREATE SCHEMA measuring;
CREATE EXTENSION pg_stat_statements SCHEMA measuring;
CREATE EXTENSION pgstattuple SCHEMA measuring;
"""

SIZES_SQL: Final = """
SELECT
    clock_timestamp() AS at,
    pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS wal_bytes,
    pg_total_relation_size('log_rows') + pg_total_relation_size('log_batches')
        + pg_total_relation_size('log_outcomes') AS log_bytes,
    pg_relation_size('log_rows') AS log_table_bytes,
    pg_relation_size('log_rows_pkey') AS log_key_bytes,
    pg_relation_size('log_rows_batch') AS log_batch_bytes,
    pg_total_relation_size('resources') AS resources_bytes,
    log.n_tup_ins AS inserted, log.n_tup_del AS deleted, log.n_dead_tup AS log_dead,
    log.autovacuum_count AS log_vacuums, log.total_autovacuum_time AS log_vacuum_ms,
    resources.n_live_tup AS resources_live, resources.n_dead_tup AS resources_dead,
    resources.autovacuum_count AS resources_vacuums,
    extract(epoch FROM clock_timestamp() - (SELECT min(completed_at) FROM log_batches))::float8 AS oldest_s,
    (SELECT num_timed + num_requested FROM pg_stat_checkpointer) AS checkpoints
FROM pg_stat_user_tables AS log, pg_stat_user_tables AS resources
WHERE log.relname = 'log_rows' AND resources.relname = 'resources'
"""
# Of the retention: by the text of its statement, queries/log.sql.
DELETIONS_SQL: Final = """
SELECT
    coalesce(sum(calls), 0)::bigint AS calls,
    coalesce(sum(total_exec_time), 0)::float8 AS ms, coalesce(max(max_exec_time), 0)::float8 AS longest_ms,
    coalesce(sum(wal_bytes), 0)::bigint AS wal_bytes,
    coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint AS pages
FROM measuring.pg_stat_statements
WHERE query LIKE '%make_interval%DELETE FROM public.log_rows%'
"""
LATENCIES_SQL: Final = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xid::xid) - received_at)::float8 AS latency_s
FROM (SELECT xid, received_at, completed_at FROM operations WHERE tenant_id = $1 OFFSET 0) AS trickled
WHERE completed_at > $2 AND completed_at <= $3
"""
COUNT_SQL: Final = "SELECT n_tup_ins AS count FROM pg_stat_user_tables WHERE relname = 'log_rows'"
FAILED_SQL: Final = "SELECT count(*) FROM operations WHERE status <> 'succeeded'"
# Reads all of the log: at the end only.
BLOAT_SQL: Final = """
SELECT
    log.dead_tuple_percent, log.approx_free_percent AS free_percent,
    (SELECT avg_leaf_density FROM measuring.pgstatindex('log_rows_pkey')) AS key_density,
    (SELECT avg_leaf_density FROM measuring.pgstatindex('log_rows_batch')) AS batch_density
FROM measuring.pgstattuple_approx('log_rows') AS log
"""


async def read_sizes(connection: asyncpg.Connection[Any]) -> tuple[Any, dict[str, float], dict[str, float]]:
    """Return the time of the shard, the sizes and counts of its tables, and the totals of the retention's statement."""
    sizes = dict((await _row(connection, SIZES_SQL)).items())
    at = sizes.pop("at")
    deletions = dict((await _row(connection, DELETIONS_SQL)).items())
    return at, _numbers(sizes), _numbers(deletions)


async def read_bloat(connection: asyncpg.Connection[Any]) -> dict[str, float]:
    """Return the shares of dead and free space of the log, and how full the leaves of its indexes are, in percent."""
    return _numbers(dict((await _row(connection, BLOAT_SQL)).items()))


async def _row(connection: asyncpg.Connection[Any], query: str) -> asyncpg.Record:
    row: asyncpg.Record | None = await connection.fetchrow(query)
    if row is None:
        raise SystemExit("expected a row of the server's statistics, got none")
    return row


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value or 0) for name, value in row.items()}
