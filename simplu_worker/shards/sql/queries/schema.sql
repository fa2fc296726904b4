-- What a shard says of itself, how an empty one becomes ours, and how its schema is upgraded.

-- name: has_schema
-- Whether this database has our tables, and whether it has any others; what came with an extension counts as none.
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
-- The shard's identity, the version of its schema, and the oldest worker's version that works with that.
SELECT shard_meta.shard_id, newest.version, newest.works_from
FROM shard_meta
LEFT JOIN (
    SELECT version, works_from FROM schema_migrations ORDER BY version DESC LIMIT 1
) AS newest ON true;

-- name: read_digests
-- The business types that the shard has, with the digests of their files as applied.
SELECT name, digest FROM business_types;

-- name: lock_schema
-- Held to the end of the transaction, so that two workers that meet an empty shard make its schema once.
SELECT pg_advisory_xact_lock(7310868733225656437); -- "simplu" and a few bytes more, as a number

-- name: try_lock_schema
-- The same lock, for an upgrade: false where another one, or a worker that makes the schema, has it. No row is locked,
-- and no snapshot is kept: nobody waits for the transaction that has it, however long that takes.
SELECT pg_try_advisory_xact_lock(7310868733225656437);

-- name: use_read_committed
-- First in the transaction that holds the lock of an upgrade, whatever the role's default: an index that is built
-- CONCURRENTLY waits for every snapshot that is older.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;

-- name: lift_idle_timeouts
-- The transaction that holds the lock of an upgrade may take as long as that.
SELECT set_config(name, '0', true)
FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout');

-- name: lift_timeouts
-- Before what runs CONCURRENTLY: it may take hours, and nobody is held up by its waiting. Only where the role or the
-- database has such limits, as they are of the session, and a pooler's server is shared.
SELECT set_config(name, '0', false)
FROM pg_settings
WHERE name IN ('lock_timeout', 'statement_timeout') AND setting <> '0';

-- name: restore_timeouts
-- Afterwards; idempotent.
SELECT set_config(name, reset_val, false)
FROM pg_settings
WHERE name IN ('lock_timeout', 'statement_timeout') AND setting <> reset_val;

-- name: find_blockers
-- Whom the one session waits for that runs the statement $1, known by its text: behind a pooler its pid is not ours to
-- know. The server shows the beginning of a long text. No text of a blocker's own: it may have data of tenants.
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
-- How far an index is that the statement $1 builds.
SELECT
    building.phase,
    building.blocks_done::float / nullif(building.blocks_total, 0) AS share
FROM pg_stat_progress_create_index AS building
JOIN pg_stat_activity AS builder ON builder.pid = building.pid
WHERE building.datname = current_database() AND starts_with($1::text, builder.query);

-- name: read_index
-- Whether the index $1 can be used, and the sessions that are building it, such as that of an upgrade whose process
-- was killed: the server finishes what it began. No row: there is no such index.
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
-- Version, name, and the oldest worker's version that works with it. Idempotent: an upgrade may be run again.
INSERT INTO schema_migrations (version, name, works_from) VALUES ($1, $2, $3)
ON CONFLICT (version) DO NOTHING;

-- name: record_business_type
-- Which text of a type's file was applied; the row is made by that file. Idempotent; locks the type's row.
UPDATE business_types SET digest = $2 WHERE name = $1
RETURNING name;
