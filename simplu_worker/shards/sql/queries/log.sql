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
            WHEN pg_catalog.octet_length(whole.text) > 1100000
            THEN '{"omitted": "the result has more than 1 MiB of text"}'
            ELSE whole.text
        END
    FROM (SELECT operations.result::pg_catalog.text AS text OFFSET 0) AS whole
)

-- name: find_operation
-- The operation with the key $4 of the tenant $3: a row without a request id if there is none, and no row if the tenant
-- does not live here. With how far the shard has the stream shards $2 of the stream $1, which goes back together with
-- the log.
SELECT found.*, tenants.business_id, tenants.location_id, :positions_document
FROM public.tenants
LEFT JOIN LATERAL (
    SELECT :logged_operation
    FROM public.operations
    WHERE operations.tenant_id = tenants.id AND operations.request_key = pg_catalog.decode($4, 'hex')
) AS found ON true
WHERE tenants.id = $3 AND :lives_here;

-- name: find_operation_of_any_tenant
-- The operations with the key $3 of all tenants: one lookup by primary key for each tenant of the shard. Also of a
-- tenant that does not live here: its home has another row, or none. A row without a request id if there is none.
SELECT found.*, :positions_document
FROM (VALUES (1)) AS shard (one)
LEFT JOIN LATERAL (
    SELECT own.*, :lives_here AS lives_here
    FROM public.tenants
    CROSS JOIN LATERAL (
        SELECT :logged_operation
        FROM public.operations
        WHERE operations.tenant_id = tenants.id AND operations.request_key = pg_catalog.decode($3, 'hex')
    ) AS own
) AS found ON true;

-- name: find_decided
-- The numbers of those operations that have an outcome, and of those whose tenants do not live here; $1 are their tenants,
-- $2 the businesses, $3 the keys and $4 the ids of their requests. None of a tenant of another business.
SELECT wanted.number, NOT EXISTS (SELECT FROM public.tenants WHERE tenants.id = wanted.tenant_id AND :lives_here) AS has_left
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[])
    WITH ORDINALITY AS wanted (tenant_id, business_id, request_key, request_id, number)
WHERE
    (
        EXISTS (SELECT FROM public.tenants WHERE tenants.id = wanted.tenant_id AND business_id = wanted.business_id)
        AND (
            EXISTS (
                SELECT
                FROM public.operations
                WHERE
                    operations.tenant_id = wanted.tenant_id
                    AND operations.request_key = pg_catalog.decode(wanted.request_key, 'hex')
            )
            OR EXISTS (
                SELECT
                FROM public.rejections
                WHERE rejections.tenant_id = wanted.tenant_id AND rejections.request_id = wanted.request_id
            )
        )
    )
    OR NOT EXISTS (SELECT FROM public.tenants WHERE tenants.id = wanted.tenant_id AND :lives_here);

-- name: find_operations
-- Many operations at once, of the tenants that live here; $1 are their tenants, $2 the keys of their requests. OFFSET 0:
-- a join with the view would read all of it.
SELECT own.*
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS wanted (tenant_id, request)
CROSS JOIN LATERAL (
    SELECT tenant_id, request_id, status, error, :short_result_text AS result, digest, completed_at
    FROM public.operations
    WHERE
        operations.tenant_id = wanted.tenant_id
        AND operations.request_key = pg_catalog.decode(wanted.request, 'hex')
    OFFSET 0
) AS own
WHERE EXISTS (SELECT FROM public.tenants WHERE tenants.id = own.tenant_id AND :lives_here);

-- name: name_change
SELECT pg_catalog.set_config('simplu.change'::pg_catalog.text, $1::pg_catalog.text, true);

-- name: mark_changes
-- Rows for the resources with the types $2 and the keys $3 of the tenants $1, which this transaction changes for the
-- origin $4. Their own keys are those of no request.
WITH sent AS MATERIALIZED (
    SELECT
        named.number::smallint AS number, tenants.number AS tenant_no, named.resource_type,
        pg_catalog.decode(named.resource, 'hex') AS resource
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[])
        WITH ORDINALITY AS named (tenant_id, resource_type, resource, number)
    JOIN public.tenants ON tenants.id = named.tenant_id
), batch AS (
    :into_log_batches
    SELECT
        :own_batch, pg_catalog.clock_timestamp(), pg_catalog.count(*), 'o',
        pg_catalog.array_agg(DISTINCT tenant_no), pg_catalog.array_agg(resource_type ORDER BY number),
        ARRAY[$4::pg_catalog.text]
    FROM sent
    RETURNING batch_id
)
:into_log_rows
SELECT
    batch.batch_id, sent.number, sent.tenant_no,
    '\x04'::pg_catalog.bytea || pg_catalog.int8send(batch.batch_id) || pg_catalog.int2send(sent.number), 'm',
    sent.number, sent.resource, 1, pg_catalog.now(), pg_catalog.now(), 0, ''
FROM sent
CROSS JOIN batch;

-- name: mark_bulk_change
-- A batch of the kind $1 of the tenant $2, for changes of its resources that are not named; $3 are its origins.
:into_log_batches
SELECT
    :own_batch, pg_catalog.clock_timestamp(), 0, $1::pg_catalog.text::pg_catalog."char", ARRAY[tenants.number], '{}',
    $3::pg_catalog.text[]
FROM public.tenants
WHERE tenants.id = $2;

-- name: forget_batches
-- Delete the batches completed more than $1 seconds ago, oldest first, by the shard's clock, never by the producers':
-- as many as have $2 rows together, but for the first of $2 rows or more. With the rows before the batch: no row is left
-- that a later transaction could take for its own. Locked batches are skipped: another replica is deleting them.
-- None completed before $3: until a vacuum the index has the entries of deleted batches too, and while a transaction may
-- still see these, each statement that begins with the oldest would pass by all of them.
-- Nor those that `usage` has not counted. The highest of them is noted: a cursor before it has a gap.
-- Return how many operations there were, the time of the newest, and what the statement took, for which it reads the
-- clock once all rows are deleted: what no other part refers to would be deleted after that.
-- `is_last` if there are no more.
WITH due AS MATERIALIZED (
    SELECT batch_id, completed_at, row_count
    FROM public.log_batches
    WHERE
        completed_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
        AND completed_at >= $3::pg_catalog.timestamptz
        AND batch_id < coalesce((SELECT usage_progress.batch_id FROM public.usage_progress), batch_id + 1)
    ORDER BY completed_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), summed AS (
    SELECT
        batch_id, completed_at,
        pg_catalog.sum(row_count + 1) OVER (ORDER BY completed_at, batch_id) - row_count - 1 AS row_count_before
    FROM due
), taken AS MATERIALIZED (
    SELECT batch_id, completed_at FROM summed WHERE row_count_before < $2
), outcomes AS (
    DELETE FROM public.log_outcomes WHERE batch_id = ANY(ARRAY(SELECT batch_id FROM taken)) RETURNING 1
), rows AS (
    DELETE FROM public.log_rows WHERE batch_id = ANY(ARRAY(SELECT batch_id FROM taken)) RETURNING 1
), batches AS (
    DELETE FROM public.log_batches WHERE batch_id = ANY(ARRAY(SELECT batch_id FROM taken))
    RETURNING completed_at, batch_id
), noted AS (
    INSERT INTO public.log_forgotten AS known (batch_id, completed_at)
    SELECT batch_id, completed_at
    FROM batches
    WHERE batch_id > 0::bigint
    ORDER BY batch_id DESC
    LIMIT 1
    ON CONFLICT (only_row) DO UPDATE
    SET batch_id = excluded.batch_id, completed_at = excluded.completed_at
    WHERE known.batch_id < excluded.batch_id
)
SELECT
    (SELECT pg_catalog.count(*) FROM rows) AS row_count,
    pg_catalog.max(completed_at) AS newest,
    CASE
        WHEN (SELECT pg_catalog.count(*) FROM outcomes) IS NOT NULL AND (SELECT pg_catalog.count(*) FROM rows) IS NOT NULL
        THEN extract(EPOCH FROM pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp())::pg_catalog.float8
    END AS busy_s,
    pg_catalog.count(*) = (SELECT pg_catalog.count(*) FROM due) AND pg_catalog.count(*) < $2 AS is_last
FROM batches;
