-- The identity and the schema of a shard: checked, made on an empty one, and upgraded.

-- name: has_schema
-- Whether the schema $1 has our tables, and whether it is empty: tables of extensions do not count.
WITH present AS (
    SELECT pg_class.oid, pg_class.relname
    FROM pg_catalog.pg_class
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    WHERE pg_namespace.nspname = $1::pg_catalog.name AND pg_class.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
)
SELECT
    EXISTS (SELECT FROM present WHERE relname = 'schema_migrations')
    AND EXISTS (SELECT FROM present WHERE relname = 'shard_meta') AS is_ours,
    NOT EXISTS (
        SELECT FROM present
        WHERE NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend
            WHERE
                pg_depend.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
                AND pg_depend.objid = present.oid AND pg_depend.deptype = 'e'
        )
    ) AS is_empty;

-- fragment: next_number
-- That of the next transaction: all that have written have lower ones.
greatest(
    pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text::bigint,
    pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text::bigint + 1
)

-- fragment: tenant_numbers
pg_catalog.pg_get_serial_sequence('public.tenants'::pg_catalog.text, 'number'::pg_catalog.text)::pg_catalog.regclass

-- name: read_offset
-- The offset of the numbers of batches, and whether the log has numbers that this server has yet to reach, or `tenants`
-- such as its sequence has yet to reach: logical replication copies no sequence.
SELECT
    shard_meta.batch_offset,
    EXISTS (
        SELECT FROM public.log_batches WHERE log_batches.batch_id >= :next_number + shard_meta.batch_offset
    )
    OR (SELECT coalesce(pg_catalog.max(tenants.number), 0) FROM public.tenants)
        > coalesce(pg_catalog.pg_sequence_last_value(:tenant_numbers), 0) AS is_behind
FROM public.shard_meta;

-- name: raise_offset
-- Raise both: the next batch is above all in the log, and above some that it may have lost.
UPDATE public.shard_meta
SET
    batch_offset = greatest(
        batch_offset,
        (SELECT pg_catalog.max(log_batches.batch_id) FROM public.log_batches) + 1000000 - :next_number
    )
RETURNING
    batch_offset,
    pg_catalog.setval(
        :tenant_numbers, (SELECT coalesce(pg_catalog.max(tenants.number), 0) + 1 FROM public.tenants)
    );

-- name: read_identity
-- The shard's identity, its schema version, and the oldest worker's schema version that works with it; and whether the
-- log has numbers that this server has yet to reach: the database comes from another one.
SELECT
    shard_meta.shard_id, newest.version, newest.works_from,
    EXISTS (
        SELECT FROM public.log_batches WHERE log_batches.batch_id >= :next_number + shard_meta.batch_offset
    ) AS is_behind
FROM public.shard_meta
LEFT JOIN (
    SELECT version, works_from FROM public.schema_migrations ORDER BY version DESC LIMIT 1
) AS newest ON true;

-- fragment: schema_lock
-- The number of the advisory lock: "simplu" and a few more bytes.
7310868733225656437

-- name: lock_schema
-- Held to the end of the transaction, so that two workers that find the same empty shard make its schema once.
SELECT pg_catalog.pg_advisory_xact_lock(:schema_lock);

-- name: try_lock_schema
-- The same lock, for an upgrade: false while another upgrade, or a worker that makes the schema, holds it. The
-- holding transaction locks no row and keeps no snapshot: no other transaction waits for it, however long it takes.
SELECT pg_catalog.pg_try_advisory_xact_lock(:schema_lock);

-- name: lift_idle_timeout
-- For the transaction that holds the lock of an upgrade: it lasts as long as the upgrade.
SET LOCAL idle_in_transaction_session_timeout = 0;

-- name: lift_timeouts
-- Before a statement that runs CONCURRENTLY: it may take hours, and blocks no other session while it waits. Only
-- where the session has such limits: a pooler shares it with other clients.
SELECT pg_catalog.set_config(name, '0', false)
FROM pg_catalog.pg_settings
WHERE name IN ('lock_timeout', 'statement_timeout') AND setting <> '0';

-- name: restore_timeouts
-- After `lift_timeouts`, as the role or the database has them; idempotent.
SELECT pg_catalog.set_config(name, reset_val, false)
FROM pg_catalog.pg_settings
WHERE name IN ('lock_timeout', 'statement_timeout') AND setting <> reset_val;

-- name: find_blockers
-- The sessions that block the session which runs the statement $1. That session is found by the statement's text:
-- behind a pooler its pid is unknown. The server shows the beginning of a long text. The statement of a blocker is
-- not returned: it may contain data of tenants.
SELECT DISTINCT
    CASE
        WHEN blocking.pid = 0 THEN 'a prepared transaction'
        ELSE pg_catalog.format('pid %s (%s)', blocking.pid, pg_catalog.concat_ws(
            ', ',
            coalesce(nullif(blocker.application_name, ''), nullif(blocker.backend_type, 'client backend')),
            CASE WHEN blocker.usename IS NOT NULL THEN pg_catalog.format('of %s', blocker.usename) END,
            blocker.state,
            CASE WHEN blocker.xact_start IS NOT NULL THEN pg_catalog.format(
                'for %s s',
                pg_catalog.round(extract(epoch FROM pg_catalog.clock_timestamp() - blocker.xact_start))
            ) END
        ))
    END AS blocker
FROM pg_catalog.pg_stat_activity AS waiting
CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(waiting.pid)) AS blocking (pid)
LEFT JOIN pg_catalog.pg_stat_activity AS blocker ON blocker.pid = blocking.pid
WHERE
    waiting.datname = pg_catalog.current_database() AND waiting.state = 'active' AND waiting.query <> ''
    AND pg_catalog.starts_with($1::pg_catalog.text, waiting.query)
ORDER BY blocker;

-- name: read_build
-- The progress of the index that the statement $1 builds.
SELECT building.blocks_done::pg_catalog.float8 / nullif(building.blocks_total, 0)::pg_catalog.float8
FROM pg_catalog.pg_stat_progress_create_index AS building
JOIN pg_catalog.pg_stat_activity AS builder ON builder.pid = building.pid
WHERE building.datname = pg_catalog.current_database() AND pg_catalog.starts_with($1::pg_catalog.text, builder.query);

-- name: read_index
-- Whether the index $2 of the schema $1 is usable, and whether a session is building it, such as that of an upgrade with
-- a killed process: the server goes on with the statement. No row: there is no such index.
SELECT
    pg_index.indisvalid AS is_valid,
    EXISTS (
        SELECT FROM pg_catalog.pg_stat_progress_create_index AS building
        WHERE building.index_relid = pg_index.indexrelid
    ) AS is_building
FROM pg_catalog.pg_index
JOIN pg_catalog.pg_class ON pg_class.oid = pg_index.indexrelid
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = $1::pg_catalog.name AND pg_class.relname = $2::pg_catalog.name;

-- name: record_identity
INSERT INTO public.shard_meta (shard_id) VALUES ($1);

-- name: record_migration
-- Version, name, and the oldest worker's schema version that works with it. Idempotent: an upgrade may be run again.
INSERT INTO public.schema_migrations (version, name, works_from) VALUES ($1, $2, $3)
ON CONFLICT (version) DO NOTHING;

-- fragment: applies_here
-- Whether a policy is for this role: for all roles, or for one whose rights it has.
EXISTS (
    SELECT FROM pg_catalog.unnest(pg_policy.polroles) AS named (oid)
    WHERE named.oid = 0::pg_catalog.oid OR pg_catalog.pg_has_role(named.oid, 'USAGE'::pg_catalog.text)
)

-- fragment: hiding_policies
-- The policies of the table `here` that may hide rows from this role: restrictive ones, and our own where it is gone.
-- None for the owner, who needs no policy.
SELECT pg_policy.polname::pg_catalog.text AS name
FROM pg_catalog.pg_policy
WHERE
    pg_policy.polrelid = here.oid AND NOT pg_policy.polpermissive AND pg_policy.polcmd <> 'a'::"char" AND :applies_here
UNION ALL
SELECT 'simplu_writer'::pg_catalog.text
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_policy
    WHERE pg_policy.polrelid = here.oid AND pg_policy.polname = 'simplu_writer'
)

-- name: find_missing
-- What the shard lacks of the tables $1; of their primary keys, without which nothing is applied exactly once; what this
-- role lacks of the rights on them, and the policies that may hide rows from it.
WITH needed AS (
    SELECT named.name AS table_name, found.oid
    FROM pg_catalog.unnest($1::pg_catalog.text[]) AS named (name)
    LEFT JOIN pg_catalog.pg_class AS found
        ON
            found.relname::pg_catalog.text = named.name AND found.relkind IN ('r', 'p')
            AND found.relnamespace = (
                SELECT relnamespace FROM pg_catalog.pg_class
                WHERE oid = 'public.shard_meta'::pg_catalog.regclass::pg_catalog.oid
            )
),
present AS (
    SELECT table_name, oid FROM needed WHERE oid IS NOT NULL
)
SELECT 'table' AS kind, table_name, NULL::pg_catalog.text AS name
FROM needed
WHERE oid IS NULL
UNION ALL
SELECT 'right', here.table_name, needs.privilege
FROM present AS here
CROSS JOIN pg_catalog.unnest('{SELECT,INSERT,UPDATE,DELETE}'::pg_catalog.text[]) AS needs (privilege)
WHERE
    (
        needs.privilege = 'SELECT'::pg_catalog.text
        OR here.table_name <> ALL('{schema_migrations,shard_meta,business_types}'::pg_catalog.text[])
    )
    AND NOT pg_catalog.has_table_privilege(here.oid, needs.privilege)
UNION ALL
SELECT 'key', here.table_name, NULL::pg_catalog.text
FROM present AS here
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_index
    WHERE indrelid = here.oid AND indisprimary AND indisvalid AND indisready AND indimmediate
)
UNION ALL
SELECT 'policy', here.table_name, hiding.name
FROM present AS here
CROSS JOIN LATERAL (
    :hiding_policies
) AS hiding
WHERE pg_catalog.row_security_active(here.oid)
ORDER BY table_name, name;
