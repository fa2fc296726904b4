-- What a shard says of itself, and how an empty one becomes ours.

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
-- The shard's identity and the version of its schema.
SELECT shard_id, (SELECT max(version) FROM schema_migrations) AS version FROM shard_meta;

-- name: lock_schema
-- Held to the end of the transaction, so that two workers that meet an empty shard make its schema once.
SELECT pg_advisory_xact_lock(7310868733225656437); -- "simplu" and a few bytes more, as a number

-- name: record_identity
INSERT INTO shard_meta (shard_id) VALUES ($1);

-- name: record_migration
INSERT INTO schema_migrations (version, name) VALUES ($1, $2);
