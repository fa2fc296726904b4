"""The log of contenders that are no workers of ours: one table, with a row for each operation.

It has the name and the columns of the view that our log is read by, so that one query counts the operations of both.
"""

from __future__ import annotations

from typing import Final

PLAIN_LOG_SQL: Final = """
DROP VIEW operations CASCADE;
CREATE TABLE operations (
    tenant_id text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    operation text NOT NULL,
    resource_type text COLLATE "C" NOT NULL,
    resource_id text COLLATE "C",
    status text NOT NULL CHECK (status IN ('succeeded', 'failed')),
    error text,
    result jsonb,
    digest bytea NOT NULL,
    source text NOT NULL,
    stream_shard_id text,
    sequence_number text,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    requested_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    completed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, request_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000);
CREATE INDEX operations_completed_at ON operations (completed_at);
"""
