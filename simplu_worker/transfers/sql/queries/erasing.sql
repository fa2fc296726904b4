-- The erasure of one resource of a tenant (docs/tenants.md, "Erasing a person's data").

-- name: find_standing
-- What a shard has of the tenant $1, and the ids of its resource with the names $2 and the key $3 before or after a
-- rename, by the marks of the log.
SELECT
    business_id, location_id, state, epoch, move_token,
    ARRAY(
        SELECT DISTINCT public.simplu_id(other.resource)
        FROM public.log_rows AS own
        JOIN public.log_batches ON log_batches.batch_id = own.batch_id
        JOIN public.log_rows AS other ON other.batch_id = own.batch_id AND other.position <> own.position
        WHERE
            other.tenant_no = tenants.number AND own.tenant_no = tenants.number AND own.request >= '\x04'::pg_catalog.bytea
            AND own.resource = pg_catalog.decode($3, 'hex') AND log_batches.types[own.type_at] = ANY($2::pg_catalog.text[])
            AND log_batches.origins[own.origin_at] = 'rename'::pg_catalog.text
    ) AS other_ids
FROM public.tenants
WHERE id = $1;

-- name: has_old_table
-- Whether the shard was adopted, and still has the other program's table.
SELECT pg_catalog.to_regclass('public.resources_before_adoption') IS NOT NULL;

-- name: erase_results
-- Of $5 rows of the log of $1 behind the key $4: the results with the resource of the names $2 and the id $3. That of a
-- read becomes `{"erased": 1}`; a list loses the item, and counts it. The same on every shard, so that comparisons of
-- logs find no difference. With `StatementBudget.KEY_RANGE`. Idempotent.
WITH page AS MATERIALIZED (
    SELECT request, batch_id, position, type_at
    FROM public.log_rows
    WHERE tenant_no = :number_of_tenant AND request > pg_catalog.decode($4, 'hex') AND request < '\x04'::pg_catalog.bytea
    ORDER BY request
    LIMIT $5
), erased AS (
    UPDATE public.log_outcomes
    SET result = CASE
        WHEN log_outcomes.result -> 'items'::pg_catalog.text IS NULL THEN '{"erased": 1}'
        ELSE log_outcomes.result || pg_catalog.jsonb_build_object(
            'items'::pg_catalog.text,
            (
                SELECT coalesce(pg_catalog.jsonb_agg(item.value ORDER BY item.ordinality), '[]')
                FROM pg_catalog.jsonb_array_elements(log_outcomes.result -> 'items'::pg_catalog.text)
                    WITH ORDINALITY AS item (value, ordinality)
                WHERE item.value ->> 'resourceId'::pg_catalog.text <> $3
            ),
            'erased'::pg_catalog.text, coalesce((log_outcomes.result ->> 'erased'::pg_catalog.text)::integer, 0) + 1
        )
    END
    FROM page
    JOIN public.log_batches ON log_batches.batch_id = page.batch_id
    CROSS JOIN (SELECT pg_catalog.jsonb_build_object('resourceId'::pg_catalog.text, $3::pg_catalog.text) AS it) AS named
    WHERE
        log_outcomes.batch_id = page.batch_id AND log_outcomes.position = page.position
        AND log_batches.types[page.type_at] = ANY($2::pg_catalog.text[])
        AND (
            log_outcomes.result @> named.it
            OR log_outcomes.result -> 'items'::pg_catalog.text @> pg_catalog.jsonb_build_array(named.it)
        )
    RETURNING 1
)
SELECT
    (SELECT pg_catalog.count(*) FROM erased) AS result_count, (SELECT pg_catalog.count(*) FROM page) AS row_count,
    (SELECT pg_catalog.encode(request, 'hex') FROM page ORDER BY request DESC LIMIT 1) AS last_key;

-- name: erase_versions
-- Of $4 versions of the resource with the names $2 and the key $3, the document before each. The versions stay.
UPDATE public.resource_versions
SET former = NULL
WHERE
    ctid = ANY(ARRAY(
        SELECT versions.ctid
        FROM public.resource_versions AS versions
        JOIN public.history_names ON history_names.number = versions.type_no
        WHERE
            versions.tenant_no = :number_of_tenant AND history_names.name = ANY($2::pg_catalog.text[])
            AND versions.resource = pg_catalog.decode($3, 'hex') AND versions.former IS NOT NULL
        LIMIT $4
    ));

-- name: find_erased_since
SELECT DISTINCT
    log_batches.types[log_rows.type_at] AS resource_type, public.simplu_id(log_rows.resource) AS resource_id
FROM public.log_rows
JOIN public.log_batches ON log_batches.batch_id = log_rows.batch_id
WHERE
    log_rows.tenant_no = :number_of_tenant AND log_rows.request >= '\x04'::pg_catalog.bytea
    AND log_batches.origins[log_rows.origin_at] = 'erasure'::pg_catalog.text
    AND ($2::pg_catalog.timestamptz IS NULL OR log_batches.completed_at > $2)
ORDER BY resource_type, resource_id;
