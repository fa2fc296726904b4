-- The export of tenants to another database (simplu_worker/transfers/exporting/), which reads the log by `read_feed`.

-- fragment: document_hash
-- Of a row of `resources`: numbers are equal with and without zeros at their end, and a null is no member.
pg_catalog.hashtextextended(
    pg_catalog.concat_ws(
        e'\x01', resources."resourceName", resources."resourceId",
        pg_catalog.jsonb_hash_extended(pg_catalog.jsonb_strip_nulls(resources.data), 0)::pg_catalog.text
    ) COLLATE pg_catalog."C",
    0
)

-- name: read_log_end
-- The run of the server, the last batch below the horizon, and the highest that the retention has deleted.
SELECT :server_run, shard_meta.batch_offset, :forgotten_columns, :feed_horizon - 1 AS through
FROM public.shard_meta;

-- name: find_exported_tenant
SELECT
    tenants.id AS tenant_id, tenants.business_id, tenants.location_id, tenants.business_type, tenants.state,
    coalesce(business_types.stored_names::pg_catalog.text, '{}') AS stored_names
FROM public.tenants
LEFT JOIN public.business_types ON business_types.name = tenants.business_type
WHERE tenants.id = $1;

-- name: read_exported
-- The resources $2, $3 of the tenants $1, in their order, as they are now: `document` is null where there is none,
-- `is_here` false where the tenant does not live here. As many as begin within $4 bytes of what is stored.
WITH found AS MATERIALIZED (
    SELECT
        sent.number, coalesce(tenants.state IN ('active', 'fenced'), false) AS is_here,
        resources.data, resources.date, resources."lastUpdated",
        pg_catalog.sum(coalesce(pg_catalog.pg_column_size(resources.data), 0)) OVER (ORDER BY sent.number)
        - coalesce(pg_catalog.pg_column_size(resources.data), 0) AS bytes_before
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[])
        WITH ORDINALITY AS sent (tenant_id, resource_type, resource_id, number)
    LEFT JOIN public.tenants ON tenants.id = sent.tenant_id
    LEFT JOIN public.resources
        ON
            resources.id = sent.tenant_id
            AND resources."resourceName" = sent.resource_type
            AND resources."resourceId" = sent.resource_id
)
SELECT
    found.is_here, found.data::pg_catalog.text AS document, found.date::pg_catalog.text AS created,
    found."lastUpdated"::pg_catalog.text AS changed
FROM found
WHERE found.bytes_before < $4::bigint
ORDER BY found.number;

-- name: hash_exported
-- At most $4 resources of the tenant $1 of the type $2 behind the id $3, in order of id.
SELECT resources."resourceId" AS resource_id, :document_hash AS hash
FROM public.resources
WHERE resources.id = $1 AND resources."resourceName" = $2 AND resources."resourceId" > $3
ORDER BY resources."resourceId"
LIMIT $4;

-- name: count_not_exported
-- The resources of the tenant $1 of types other than $2.
SELECT resources."resourceName" AS resource_type, pg_catalog.count(*) AS row_count
FROM public.resources
WHERE resources.id = $1 AND resources."resourceName" <> ALL($2::pg_catalog.text[])
GROUP BY resources."resourceName";

-- name: read_export_lag
-- How many changes are behind the batch $1, of 100,000 batches, and for how many seconds the first of them is there.
SELECT
    coalesce(pg_catalog.sum(greatest(behind.row_count, 1)), 0::bigint)::bigint AS change_count,
    extract(
        EPOCH FROM pg_catalog.clock_timestamp() - pg_catalog.min(behind.completed_at)
    )::pg_catalog.float8 AS lag_s
FROM (
    SELECT log_batches.row_count, log_batches.completed_at
    FROM public.log_batches
    WHERE log_batches.batch_id > $1::bigint
    ORDER BY log_batches.batch_id
    LIMIT 100000
) AS behind;
