-- The restore of one tenant from a backup (docs/adr/0008-restoring-one-tenant.md). Each transaction adds one to the
-- writes in the journal, while that has its run and the tenant's row its token.

-- name: fence_to_restore
-- Keep operations waiting for $3 seconds, with the token $2, in a transaction that has locked the row: no batch is in
-- flight.
UPDATE public.tenants
SET
    state = 'fenced', move_token = $2::pg_catalog.int8,
    fenced_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3)
WHERE id = $1 AND state IN ('active', 'fenced') AND move_token < $2::pg_catalog.int8;

-- name: retake_fence
-- Go on where an earlier restorer has begun to replace the rows.
UPDATE public.tenants
SET move_token = $2::pg_catalog.int8
WHERE id = $1 AND state = 'fenced' AND fenced_until IS NULL AND move_token < $2::pg_catalog.int8;

-- name: set_restore_deadline
-- $3 seconds from now; null: only a restorer ends the fence.
UPDATE public.tenants
SET fenced_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3)
WHERE id = $1 AND state = 'fenced' AND move_token = $2;

-- name: release_restored
-- The new epoch and time show movers and readers that the rows are others now.
UPDATE public.tenants
SET
    state = 'active', epoch = epoch + 1, fenced_until = NULL, deletion_began_at = NULL,
    state_changed_at = pg_catalog.clock_timestamp()
WHERE id = $1 AND state = 'fenced' AND move_token = $2;

-- name: list_logged_requests
-- The next $4 keys behind $2 in the log of the tenant $1, each with whether it is of an operation from $3 on. Those
-- before count too: a log may have millions of them in a row.
WITH page AS MATERIALIZED (
    SELECT log_rows.request, log_rows.batch_id
    FROM public.log_rows
    WHERE
        log_rows.tenant_no = :number_of_tenant AND log_rows.request < '\x03'
        AND log_rows.request > pg_catalog.decode($2, 'hex')
    ORDER BY log_rows.request
    LIMIT $4
)

SELECT
    pg_catalog.encode(page.request, 'hex') AS key, coalesce(log_batches.completed_at >= $3, false) AS is_kept
FROM page
LEFT JOIN public.log_batches ON log_batches.batch_id = page.batch_id;

-- fragment: has_named_key
log_rows.tenant_no = :number_of_tenant
AND log_rows.request = ANY(ARRAY(
    SELECT pg_catalog.decode(named.key, 'hex') FROM pg_catalog.unnest($2::pg_catalog.text[]) AS named (key)
))

-- name: find_logged_requests
SELECT pg_catalog.encode(log_rows.request, 'hex') AS key
FROM public.log_rows
WHERE :has_named_key;

-- name: read_logged_requests
SELECT
    :log_to_write
FROM (SELECT * FROM public.log_rows WHERE :has_named_key OFFSET 0) AS log_rows
:beside_log_rows;

-- name: describe_database
-- The run of the server, and whether it follows another one.
SELECT
    pg_catalog.pg_is_in_recovery() AS is_standby, pg_catalog.pg_postmaster_start_time() AS started_at,
    pg_catalog.current_database()::pg_catalog.text AS database;

-- name: describe_tenant_log
SELECT
    (SELECT pg_catalog.count(*) FROM public.resources WHERE resources.id = $1) AS resource_count,
    (SELECT pg_catalog.count(*) FROM public.operations WHERE operations.tenant_id = $1) AS operation_count,
    (SELECT pg_catalog.max(completed_at) FROM public.operations WHERE operations.tenant_id = $1) AS last_applied_at;

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
