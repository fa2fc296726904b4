-- The adoption of another program's table (READ COMMITTED). What it knows of that table's rows is in the namespace
-- simplu_adoption_log, made by the scripts in sql/adoption; our tables, with the journal, are made in simplu_adoption.
-- Why no row is lost or copied twice: a copy of an id always makes our row as the old one is at this moment. Ids come
-- from the copy, in ascending order, and from the triggers; each is recorded in the transaction that copied it. Every
-- transaction locks the adoption's row of the journal, and checks its token.

-- name: find_old_table
-- The table `resources` of the schema $1, its columns with their types, and whether this role may rename it and make
-- ours.
SELECT
    pg_class.relkind = 'r' AND NOT pg_class.relispartition AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits WHERE pg_class.oid IN (inhrelid, inhparent)
    ) AS is_plain,
    pg_catalog.pg_has_role(pg_class.relowner, 'USAGE') AS is_owner,
    pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
    AND pg_catalog.has_schema_privilege(pg_class.relnamespace, 'CREATE') AS may_create,
    (
        SELECT pg_catalog.jsonb_object_agg(attname, pg_catalog.format_type(atttypid, NULL))::pg_catalog.text
        FROM pg_catalog.pg_attribute
        WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
    ) AS columns
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_class.relname = 'resources' AND pg_namespace.nspname = $1::pg_catalog.name;

-- name: has_adoption
-- From the catalog: `to_regclass` may answer from its session's cache, which misses a namespace just made.
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'simplu_adoption_log');

-- name: find_adopted_shard
-- The id of the shard as which this one is or was adopted.
SELECT tenant_id FROM public.transfers WHERE kind = 'adopt';

-- name: find_conflicting_names
-- Our names of relations that others than the old table have in its namespace. No lock.
SELECT there.relname::pg_catalog.text AS name
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_class AS there ON there.relnamespace = pg_class.relnamespace AND there.oid <> pg_class.oid
WHERE
    pg_class.oid = 'public.resources'::pg_catalog.regclass::pg_catalog.oid
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indexrelid = there.oid AND indrelid = pg_class.oid)
    AND (
        there.relname = 'resources_before_adoption'
        OR there.relname IN (
            SELECT relname FROM pg_catalog.pg_class
            WHERE relnamespace = 'simplu_adoption'::pg_catalog.regnamespace::pg_catalog.oid
        )
    )
ORDER BY name;

-- name: count_old_rows
-- By source and fault. Reads the whole table.
SELECT source, business_id, location_id, fault, pg_catalog.count(*) AS row_count
FROM simplu_adoption_log.old_rows
GROUP BY source, business_id, location_id, fault
ORDER BY source, fault;

-- name: first_faults
SELECT id, fault FROM simplu_adoption_log.old_rows WHERE fault IS NOT NULL ORDER BY id LIMIT $1;

-- fragment: stored_old_type
-- The name under which a row of the tenant of `sources`, with its `business_types`, becomes a resource.
coalesce(business_types.stored_names ->> old_rows.resource_type, old_rows.resource_type)

-- name: list_duplicates
-- Resources with several old rows, with the first ids of each, oldest first. Reads the whole table.
SELECT
    old_rows.source, :stored_old_type AS resource_type, old_rows.resource_id, pg_catalog.count(*) AS row_count,
    (pg_catalog.array_agg(old_rows.id::pg_catalog.text ORDER BY old_rows.updated_at, old_rows.id))[1:10] AS ids
FROM simplu_adoption_log.old_rows
LEFT JOIN simplu_adoption_log.sources ON sources.key = old_rows.source
LEFT JOIN simplu_adoption.business_types ON business_types.name = sources.business_type
WHERE old_rows.fault IS NULL
GROUP BY 1, 2, 3
HAVING pg_catalog.count(*) > 1
ORDER BY 1, 2, 3;

-- name: write_sources
-- Write the tenant of each source; rows of those that had another tenant or type before are copied again. Idempotent.
WITH sent AS (
    SELECT *
    FROM unnest(
        $1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[],
        $5::pg_catalog.text[], $6::pg_catalog.text[]
    ) AS sent (key, tenant_id, business_id, location_id, business_type, problem)
), again AS (
    INSERT INTO simplu_adoption_log.changes (old_id, changed_at)
    SELECT old_rows.id, '-infinity'
    FROM sent
    JOIN simplu_adoption_log.sources USING (key)
    JOIN simplu_adoption_log.old_rows ON old_rows.source = key
    WHERE (sources.tenant_id, sources.business_type) IS DISTINCT FROM (sent.tenant_id, sent.business_type)
)
INSERT INTO simplu_adoption_log.sources (key, tenant_id, business_id, location_id, business_type, problem)
SELECT key, tenant_id, business_id, location_id, business_type, problem FROM sent ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    tenant_id = excluded.tenant_id, business_id = excluded.business_id, location_id = excluded.location_id,
    business_type = excluded.business_type, problem = excluded.problem;

-- name: find_last_row
-- The last id to copy; the triggers record later rows, and changes of these.
SELECT coalesce(pg_catalog.max(id), 0) FROM simplu_adoption_log.old_rows;

-- name: next_rows
-- At most $3 ids after $1, up to $2.
SELECT id FROM simplu_adoption_log.old_rows WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3;

-- name: next_changes
-- A later statement of the transaction reads rows at least as new as these changes: they may be deleted once copied.
SELECT number, old_id FROM simplu_adoption_log.changes ORDER BY number LIMIT $1;

-- name: delete_changes
DELETE FROM simplu_adoption_log.changes WHERE number = ANY($1::pg_catalog.text[]::bigint[]);

-- name: is_written
-- Whether the other program has made changes that are not copied.
SELECT EXISTS (SELECT FROM simplu_adoption_log.changes WHERE changed_at > '-infinity');

-- name: find_unknown_sources
SELECT DISTINCT source, business_id, location_id
FROM simplu_adoption_log.old_rows
WHERE
    id = ANY($1::pg_catalog.text[]::bigint[]) AND fault IS NULL
    AND NOT EXISTS (SELECT FROM simplu_adoption_log.sources WHERE sources.key = old_rows.source);

-- name: find_faults
SELECT id, fault
FROM simplu_adoption_log.old_rows
WHERE id = ANY($1::pg_catalog.text[]::bigint[]) AND fault IS NOT NULL
ORDER BY id;

-- name: forget_rows
-- Return the resources that the old rows $1 were.
DELETE FROM simplu_adoption_log.taken
WHERE old_id = ANY($1::pg_catalog.text[]::bigint[])
RETURNING tenant_id, resource_type, resource_id;

-- name: take_rows
-- Record the resources that the old rows $1 are; return them.
INSERT INTO simplu_adoption_log.taken (old_id, tenant_id, resource_type, resource_id, updated_at)
SELECT old_rows.id, sources.tenant_id, :stored_old_type, old_rows.resource_id, old_rows.updated_at
FROM simplu_adoption_log.old_rows
JOIN simplu_adoption_log.sources ON sources.key = old_rows.source
JOIN simplu_adoption.business_types ON business_types.name = sources.business_type
WHERE
    old_rows.id = ANY($1::pg_catalog.text[]::bigint[]) AND old_rows.fault IS NULL AND sources.tenant_id IS NOT NULL
RETURNING tenant_id, resource_type, resource_id;

-- name: make_resources
-- Make each of the resources $1, $2, $3 as its old row is, of several the newest; delete one without an
-- old row. Idempotent; in key order.
WITH wanted AS (
    SELECT tenant_id, resource_type, resource_id
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[])
        AS sent (tenant_id, resource_type, resource_id)
), chosen AS MATERIALIZED (
    SELECT DISTINCT ON (taken.tenant_id, taken.resource_type, taken.resource_id) taken.*
    FROM wanted
    JOIN simplu_adoption_log.taken USING (tenant_id, resource_type, resource_id)
    ORDER BY
        taken.tenant_id, taken.resource_type, taken.resource_id, taken.updated_at DESC, taken.old_id DESC
), removed AS (
    DELETE FROM simplu_adoption.resources
    USING wanted
    WHERE
        resources.id = wanted.tenant_id AND resources."resourceName" = wanted.resource_type
        AND resources."resourceId" = wanted.resource_id
        AND (wanted.tenant_id, wanted.resource_type, wanted.resource_id) NOT IN (
            SELECT chosen.tenant_id, chosen.resource_type, chosen.resource_id FROM chosen
        )
)
INSERT INTO simplu_adoption.resources (:made_columns)
SELECT
    chosen.tenant_id, sources.business_type, chosen.resource_type, chosen.resource_id,
    old_rows.data, old_rows.created_at, old_rows.updated_at
FROM chosen
JOIN simplu_adoption_log.sources ON sources.tenant_id = chosen.tenant_id
JOIN simplu_adoption_log.old_rows ON old_rows.id = chosen.old_id AND old_rows.fault IS NULL
ORDER BY chosen.tenant_id, chosen.resource_type, chosen.resource_id
:or_replaced;

-- name: find_last_write
-- The newest time in any copied row, or now. Reads all of them, before the old table is locked.
SELECT least(pg_catalog.max(updated_at), pg_catalog.now())::pg_catalog.text FROM simplu_adoption_log.taken;

-- name: make_adopted_tenants
-- Older than any control message. `created_at` is the last write of the other program: readers of the stream leave
-- records from long before to that program.
INSERT INTO simplu_adoption.tenants (id, business_id, location_id, business_type, state, control_at, created_at)
SELECT
    tenant_id, business_id, location_id, business_type, 'active', 'epoch',
    $1::pg_catalog.text::pg_catalog.timestamptz
FROM simplu_adoption_log.sources
WHERE tenant_id IS NOT NULL
ORDER BY tenant_id
RETURNING id, business_type, created_at::pg_catalog.text AS created_at;

-- name: count_taken
SELECT
    (SELECT pg_catalog.count(*) FROM simplu_adoption_log.taken) AS row_count,
    (SELECT pg_catalog.count(*) FROM simplu_adoption_log.sources WHERE tenant_id IS NOT NULL) AS tenant_count;
