-- The operation log: queries for people, and the deletion of old rows.

-- fragment: logged_operation
-- The columns that people see of an operation.
tenant_id, request_id, status, operation, resource_type, resource_id, error, operations.result::pg_catalog.text AS result,
received_at, completed_at

-- fragment: short_result_text
-- The text of the result of an operation; a note in place of one over 1 MiB, for answers with many operations.
(
    SELECT
        CASE
            WHEN checked.document IS NULL THEN NULL
            WHEN :text_bytes <= 1100000 THEN checked.document::pg_catalog.text
            ELSE '{"omitted": "the result has more than 1 MiB of text"}'
        END
    FROM (SELECT operations.result || '{}'::pg_catalog.jsonb AS document OFFSET 0) AS checked
)

-- name: find_operation
-- The operation $4 of the tenant $3: a row without a request id if there is none, and no row if the tenant does not live
-- here. With how far the shard has the stream shards $2 of the stream $1, which goes back together with the log.
SELECT found.*, :positions_document
FROM public.tenants
LEFT JOIN LATERAL (
    SELECT :logged_operation
    FROM public.operations
    WHERE operations.tenant_id = tenants.id AND operations.request_id = $4
) AS found ON true
WHERE tenants.id = $3 AND :lives_here;

-- name: find_operation_of_any_tenant
-- The operations $3 of all tenants: one lookup by primary key for each tenant of the shard. Also of a tenant that does not
-- live here: its home has another row, or none. A row without a request id if there is none.
SELECT found.*, :positions_document
FROM (VALUES (1)) AS shard (one)
LEFT JOIN LATERAL (
    SELECT own.*, :lives_here AS lives_here
    FROM public.tenants
    CROSS JOIN LATERAL (
        SELECT :logged_operation
        FROM public.operations
        WHERE operations.tenant_id = tenants.id AND operations.request_id = $3
    ) AS own
) AS found ON true;

-- name: find_operations
-- Many operations at once, of the tenants that live here; $1 are their tenants, $2 their request ids.
SELECT tenant_id, request_id, status, error, :short_result_text AS result, digest, completed_at
FROM public.operations
JOIN unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS wanted (tenant_id, request_id)
    USING (tenant_id, request_id)
WHERE EXISTS (SELECT FROM public.tenants WHERE tenants.id = operations.tenant_id AND :lives_here);

-- name: forget_operations
-- Delete at most $2 of the rows completed more than $1 seconds ago, oldest first, by the shard's clock, never by the
-- producers'. Locked rows are skipped: another replica is deleting them, or a replay is replacing them.
-- None completed before $3: until a vacuum the index has the entries of deleted rows too, and while a transaction may
-- still see these, each statement that begins with the oldest would pass by all of them.
-- Return how many there were, the time of the newest, how long ago the oldest was due, and what the statement took.
WITH forgotten AS (
    DELETE FROM public.operations
    WHERE ctid = ANY(ARRAY(
        SELECT ctid
        FROM public.operations
        WHERE
            completed_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
            AND completed_at >= $3::pg_catalog.timestamptz
        ORDER BY completed_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING completed_at
)
SELECT
    pg_catalog.count(*) AS row_count,
    pg_catalog.max(completed_at) AS newest,
    coalesce(
        extract(EPOCH FROM pg_catalog.now() - pg_catalog.min(completed_at))::pg_catalog.float8 - $1, 0
    ) AS late_s,
    extract(EPOCH FROM pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp())::pg_catalog.float8 AS busy_s
FROM forgotten;
