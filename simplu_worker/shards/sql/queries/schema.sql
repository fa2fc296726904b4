-- The identity and the schema of a shard: checked, made on an empty one, and upgraded.

-- name: has_schema
-- Whether this database has our tables, and whether it is empty: tables of extensions do not count.
SELECT
    to_regclass('schema_migrations') IS NOT NULL AND to_regclass('shard_meta') IS NOT NULL AS is_ours,
    NOT EXISTS (
        SELECT FROM pg_class
        JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
        WHERE
            pg_namespace.nspname = current_schema() AND pg_class.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE
                    pg_depend.classid = 'pg_class'::regclass AND pg_depend.objid = pg_class.oid
                    AND pg_depend.deptype = 'e'
            )
    ) AS is_empty;

-- name: read_identity
-- The shard's identity, its schema version, and the oldest worker's schema version that works with it.
SELECT shard_meta.shard_id, newest.version, newest.works_from
FROM shard_meta
LEFT JOIN (
    SELECT version, works_from FROM schema_migrations ORDER BY version DESC LIMIT 1
) AS newest ON true;

-- name: read_digests
-- The business types of the shard, with the digests of their files as applied.
SELECT name, digest FROM business_types;

-- fragment: schema_lock
-- The number of the advisory lock: "simplu" and a few more bytes.
7310868733225656437

-- name: lock_schema
-- Held to the end of the transaction, so that two workers that find the same empty shard make its schema once.
SELECT pg_advisory_xact_lock(:schema_lock);

-- name: try_lock_schema
-- The same lock, for an upgrade: false while another upgrade, or a worker that makes the schema, holds it. The
-- holding transaction locks no row and keeps no snapshot: no other transaction waits for it, however long it takes.
SELECT pg_try_advisory_xact_lock(:schema_lock);

-- name: use_read_committed
-- First in the transaction that holds the lock of an upgrade, against another default of the role: building an index
-- CONCURRENTLY waits for every older snapshot.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;

-- name: lift_idle_timeouts
-- For the transaction that holds the lock of an upgrade: it lasts as long as the upgrade.
SELECT set_config(name, '0', true)
FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout');

-- name: lift_timeouts
-- Before a statement that runs CONCURRENTLY: it may take hours, and blocks no other session while it waits. Only
-- where the role or the database has such limits: they are the session's, and a pooler shares a server's sessions.
SELECT set_config(name, '0', false)
FROM pg_settings
WHERE name IN ('lock_timeout', 'statement_timeout') AND setting <> '0';

-- name: restore_timeouts
-- After `lift_timeouts`; idempotent.
SELECT set_config(name, reset_val, false)
FROM pg_settings
WHERE name IN ('lock_timeout', 'statement_timeout') AND setting <> reset_val;

-- name: find_blockers
-- The sessions that block the session which runs the statement $1. That session is found by the statement's text:
-- behind a pooler its pid is unknown. The server shows the beginning of a long text. The statement of a blocker is
-- not returned: it may contain data of tenants.
SELECT DISTINCT
    blocking.pid,
    coalesce(blocker.application_name, '') AS application,
    blocker.usename AS role,
    blocker.backend_type,
    blocker.state,
    extract(epoch FROM clock_timestamp() - blocker.xact_start)::float AS since_s
FROM pg_stat_activity AS waiting
CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS blocking (pid)
LEFT JOIN pg_stat_activity AS blocker ON blocker.pid = blocking.pid
WHERE
    waiting.datname = current_database() AND waiting.state = 'active' AND waiting.query <> ''
    AND starts_with($1::text, waiting.query)
ORDER BY blocking.pid;

-- name: read_build
-- The progress of the index that the statement $1 builds.
SELECT
    building.phase,
    building.blocks_done::float / nullif(building.blocks_total, 0) AS share
FROM pg_stat_progress_create_index AS building
JOIN pg_stat_activity AS builder ON builder.pid = building.pid
WHERE building.datname = current_database() AND starts_with($1::text, builder.query);

-- name: read_index
-- Whether the index $1 is usable, and the sessions that are building it, such as that of an upgrade with a killed
-- process: the server goes on with the statement. No row: there is no such index.
SELECT
    pg_index.indisvalid AS is_valid,
    array(
        SELECT building.pid FROM pg_stat_progress_create_index AS building
        WHERE building.index_relid = pg_index.indexrelid
    ) AS builders
FROM pg_index
WHERE pg_index.indexrelid = to_regclass($1::text);

-- name: record_identity
INSERT INTO shard_meta (shard_id) VALUES ($1);

-- name: record_migration
-- Version, name, and the oldest worker's schema version that works with it. Idempotent: an upgrade may be run again.
INSERT INTO schema_migrations (version, name, works_from) VALUES ($1, $2, $3)
ON CONFLICT (version) DO NOTHING;

-- name: record_business_type
-- The digest of the file that was applied for a type; the file itself makes the row. Idempotent; locks that row.
UPDATE business_types SET digest = $2 WHERE name = $1
RETURNING name;
