-- The restore of one tenant from a backup (docs/adr/0008-restoring-one-tenant.md). Each transaction adds one to the
-- writes in the journal, while that has its run and the tenant's row its token.

-- name: set_restore_fence
-- It ends $2 seconds from now; null: only a restorer ends it. Of the token $3, which becomes $4.
UPDATE public.tenants
SET
    move_token = $4::pg_catalog.int8,
    fenced_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2)
WHERE id = $1 AND state = 'fenced' AND move_token = $3::pg_catalog.int8;

-- name: release_restored
-- The new epoch and time show movers and readers that the rows are others now.
UPDATE public.tenants
SET
    state = 'active', epoch = epoch + 1, fenced_until = NULL, deletion_began_at = NULL,
    state_changed_at = pg_catalog.clock_timestamp()
WHERE id = $1 AND state = 'fenced' AND move_token = $2;

-- name: list_logged_requests
-- The next $3 keys behind $2 in the log of the tenant $1.
SELECT pg_catalog.encode(request, 'hex') AS key
FROM public.log_rows
WHERE
    tenant_no = :number_of_tenant AND request < '\x03' AND request > pg_catalog.decode($2, 'hex')
ORDER BY request
LIMIT $3;

-- name: read_logged_requests
SELECT :log_to_send
FROM (
    SELECT :log_to_write
    FROM (
        SELECT *
        FROM public.log_rows
        WHERE
            log_rows.tenant_no = :number_of_tenant
            AND log_rows.request = ANY(ARRAY(SELECT pg_catalog.decode(key, 'hex') FROM pg_catalog.unnest($2::pg_catalog.text[]) AS key))
        OFFSET 0
    ) AS log_rows
    :beside_log_rows
    WHERE log_batches.completed_at >= $3
) AS own;

-- name: describe_database
-- The run of the server, and whether it follows another one.
SELECT
    pg_catalog.pg_is_in_recovery() AS is_standby, pg_catalog.pg_postmaster_start_time() AS started_at,
    pg_catalog.current_database()::pg_catalog.text AS database;

-- name: count_logged_since
-- The operations by source, without those applied until $2.
SELECT source, pg_catalog.count(*) AS operation_count
FROM public.operations
WHERE tenant_id = $1 AND ($2::pg_catalog.timestamptz IS NULL OR completed_at > $2)
GROUP BY source
ORDER BY source;

-- name: export_resources
-- The resources in a range, as in `resources_in_range`, each as one JSON text.
SELECT
    pg_catalog.jsonb_build_object(
        'table'::pg_catalog.text, 'resources'::pg_catalog.text, 'row'::pg_catalog.text, pg_catalog.to_jsonb(resources)
    )::pg_catalog.text
:resources_in_range;

-- name: export_operations
-- The same of the operations, as readers see them.
SELECT
    pg_catalog.jsonb_build_object(
        'table'::pg_catalog.text, 'operations'::pg_catalog.text,
        'row'::pg_catalog.text,
        pg_catalog.to_jsonb(operations) - '{request_key,batch_id,position}'::pg_catalog.text[]
    )::pg_catalog.text
FROM public.operations
WHERE
    tenant_id = $1 AND request_key > pg_catalog.decode($2, 'hex') AND $3::pg_catalog.text = ''
    AND (
        $4::pg_catalog.text IS NULL
        OR (request_key <= pg_catalog.decode($4, 'hex') AND $5::pg_catalog.text = '')
    )
ORDER BY request_key;
