-- The statements of one batch, in the order in which its transaction runs them (READ COMMITTED).

-- name: lock_tenants
-- What this shard says of the tenants $1. The share lock holds off a mover's fence and a destruction until the batch
-- has committed; batches do not hold off each other. In order of id, so that two batches cannot deadlock here.
SELECT id, business_id, location_id, state, moved_to, created_at
FROM tenants
WHERE id = ANY($1::text[])
ORDER BY id
FOR SHARE;

-- name: log_operations
-- Write the batch into the log before any effect. A row that is there already, or that another transaction is just
-- writing (waited for), is left alone: its operation was applied. In key order, against deadlocks, and of two with one
-- key the first of the batch.
INSERT INTO operations (
    tenant_id, request_id, operation, resource_type, resource_id, status, error, digest,
    source, stream_shard_id, sequence_number, requested_at, received_at
)
SELECT
    tenant_id, request_id, operation, resource_type, resource_id,
    CASE WHEN error IS NULL THEN 'succeeded' ELSE 'failed' END, error, digest,
    source, stream_shard_id, sequence_number, requested_at::timestamptz, received_at
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::timestamptz[]
) WITH ORDINALITY AS batch (
    tenant_id, request_id, operation, resource_type, resource_id, error, digest,
    source, stream_shard_id, sequence_number, requested_at, received_at, position
)
ORDER BY tenant_id, request_id, position
ON CONFLICT (tenant_id, request_id) DO NOTHING;

-- name: logged_operations
-- Which of the batch this very transaction wrote, and what tells the others from those that were there before.
SELECT
    tenant_id, request_id, digest, error, source, stream_shard_id, sequence_number,
    xid::text AS xid, xid = pg_current_xact_id() AS is_fresh
FROM operations
JOIN unnest($1::text[], $2::text[]) AS batch (tenant_id, request_id) USING (tenant_id, request_id);

-- name: replace_given_up
-- Make the rows of operations that were given up those of their replays, which are then applied as if fresh. Only a row
-- that is still as this transaction saw it ($3, the transaction that wrote it): of two replays at once the second waits
-- here, finds another row and has to look again. So each row is replaced once, and running it again replaces nothing.
-- Locked in key order, against deadlocks.
WITH replay AS (
    SELECT *
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
        $9::timestamptz[]
    ) AS sent (
        tenant_id, request_id, seen_xid, error, source, stream_shard_id, sequence_number, requested_at, received_at
    )
), given_up AS (
    SELECT replay.*
    FROM operations
    JOIN replay USING (tenant_id, request_id)
    WHERE operations.error = 'retries_exhausted' AND operations.xid = replay.seen_xid::xid8
    ORDER BY tenant_id, request_id
    FOR UPDATE OF operations
)
UPDATE operations
SET
    status = CASE WHEN given_up.error IS NULL THEN 'succeeded' ELSE 'failed' END,
    error = given_up.error,
    result = NULL,
    source = given_up.source,
    stream_shard_id = given_up.stream_shard_id,
    sequence_number = given_up.sequence_number,
    xid = pg_current_xact_id(),
    requested_at = given_up.requested_at::timestamptz,
    received_at = given_up.received_at,
    completed_at = clock_timestamp()
FROM given_up
WHERE operations.tenant_id = given_up.tenant_id AND operations.request_id = given_up.request_id;

-- name: apply_writes
-- Apply one wave of writes, each resource at most once, and mark in the log those that could not take effect; only
-- these are returned, by their position in the arrays. Materialized, so that all data are parsed before anything else:
-- what cannot be stored fails the statement whether its resource is there or not.
WITH wave AS MATERIALIZED (
    SELECT
        tenant_id, request_id, operation, resource_type, resource_id,
        data::jsonb AS data, requested_at::timestamptz AS requested_at, position
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    WITH ORDINALITY AS sent (tenant_id, request_id, operation, resource_type, resource_id, data, requested_at, position)
), created AS (
    INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
    SELECT
        tenants.id, tenants.business_type, wave.resource_type, wave.resource_id,
        wave.data, wave.requested_at, wave.requested_at
    FROM wave
    JOIN tenants ON tenants.id = wave.tenant_id
    WHERE wave.operation = 'create'
    ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING
    RETURNING id, "resourceName", "resourceId"
), changed AS (
    UPDATE resources
    SET
        data = CASE wave.operation
            WHEN 'update' THEN wave.data
            ELSE simplu_merge_patch(resources.data, wave.data)
        END,
        "lastUpdated" = wave.requested_at
    FROM wave
    WHERE
        wave.operation IN ('update', 'patch') AND resources.id = wave.tenant_id
        AND resources."resourceName" = wave.resource_type AND resources."resourceId" = wave.resource_id
    RETURNING wave.position
), deleted AS (
    DELETE FROM resources
    USING wave
    WHERE
        wave.operation = 'delete' AND resources.id = wave.tenant_id
        AND resources."resourceName" = wave.resource_type AND resources."resourceId" = wave.resource_id
    RETURNING wave.position
), done AS (
    SELECT wave.position
    FROM created
    JOIN wave ON
        wave.tenant_id = created.id AND wave.resource_type = created."resourceName"
        AND wave.resource_id = created."resourceId"
    UNION ALL SELECT position FROM changed
    UNION ALL SELECT position FROM deleted
)
UPDATE operations
SET status = 'failed', error = CASE wave.operation WHEN 'create' THEN 'already_exists' ELSE 'not_found' END
FROM wave
WHERE
    wave.position NOT IN (SELECT position FROM done)
    AND operations.tenant_id = wave.tenant_id AND operations.request_id = wave.request_id
RETURNING wave.position - 1 AS position, operations.error;

-- name: apply_reads
-- Answer one wave of `read`s: the result goes into the log row, beside the status.
UPDATE operations
SET
    status = CASE WHEN resources.id IS NULL THEN 'failed' ELSE 'succeeded' END,
    error = CASE WHEN resources.id IS NULL THEN 'not_found' END,
    result = CASE WHEN resources.id IS NOT NULL THEN jsonb_build_object(
        'resourceId', resources."resourceId",
        'data', resources.data,
        'date', to_char(resources.date AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'lastUpdated', to_char(resources."lastUpdated" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    ) END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
    WITH ORDINALITY AS wave (tenant_id, request_id, resource_type, resource_id, position)
LEFT JOIN resources ON
    resources.id = wave.tenant_id AND resources."resourceName" = wave.resource_type
    AND resources."resourceId" = wave.resource_id
WHERE operations.tenant_id = wave.tenant_id AND operations.request_id = wave.request_id
RETURNING wave.position - 1 AS position, operations.error;

-- name: apply_lists
-- Answer one wave of `list`s. `@>` narrows by containment, which equality implies; the member by member comparison
-- decides. Once the bytes of the page pass the bound ($9), its further items are not even built. Materialized, so that
-- filters are parsed once, and refused whether there are resources or not.
WITH wave AS MATERIALIZED (
    SELECT
        tenant_id, request_id, resource_type, members::jsonb AS members, first_date, last_date, page, page_size, position
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::bigint[], $8::bigint[]
    ) WITH ORDINALITY AS sent (
        tenant_id, request_id, resource_type, members, first_date, last_date, page, page_size, position
    )
)
UPDATE operations
SET
    status = CASE WHEN answer.fits THEN 'succeeded' ELSE 'failed' END,
    error = CASE WHEN NOT answer.fits THEN 'result_too_large' END,
    result = CASE WHEN answer.fits THEN answer.result END
FROM wave
CROSS JOIN LATERAL (
    SELECT result, page_bytes <= $9::bigint AND octet_length(result::text) <= $9::bigint AS fits
    FROM (
        SELECT
            jsonb_build_object(
                'items', coalesce(jsonb_agg(item ORDER BY place) FILTER (WHERE place <= wave.page_size), '[]'),
                'page', wave.page,
                'limit', wave.page_size,
                'hasMore', count(*) > wave.page_size
            ) AS result,
            coalesce(max(bytes_so_far) FILTER (WHERE place <= wave.page_size), 0) AS page_bytes
        FROM (
            SELECT
                place,
                bytes_so_far,
                CASE WHEN bytes_so_far <= $9::bigint THEN jsonb_build_object(
                    'resourceId', "resourceId",
                    'data', data,
                    'date', to_char(date AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                    'lastUpdated', to_char("lastUpdated" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                ) END AS item
            FROM (
                SELECT
                    matching.*,
                    row_number() OVER in_order AS place,
                    sum(octet_length(data::text)) OVER in_order AS bytes_so_far
                FROM (
                    SELECT "resourceId", data, date, "lastUpdated"
                    FROM resources
                    WHERE
                        resources.id = wave.tenant_id AND resources."resourceName" = wave.resource_type
                        AND resources.data @> wave.members
                        AND NOT EXISTS (
                            SELECT FROM jsonb_each(wave.members) AS wanted
                            WHERE resources.data -> wanted.key IS DISTINCT FROM wanted.value
                        )
                        AND (wave.first_date IS NULL OR resources.date >= wave.first_date)
                        AND (wave.last_date IS NULL OR resources.date <= wave.last_date)
                    ORDER BY "resourceId"
                    LIMIT wave.page_size + 1 OFFSET (wave.page - 1) * wave.page_size
                ) AS matching
                WINDOW in_order AS (ORDER BY "resourceId")
            ) AS measured
        ) AS items
    ) AS page
) AS answer
WHERE operations.tenant_id = wave.tenant_id AND operations.request_id = wave.request_id
RETURNING wave.position - 1 AS position, operations.error;

-- name: find_unstorable
-- Which of the texts cannot be stored as jsonb. Reads no table; a row's error is caught in the function.
SELECT position - 1 AS position
FROM unnest($1::text[]) WITH ORDINALITY AS sent (document, position)
WHERE NOT simplu_is_storable(document);
