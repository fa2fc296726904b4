-- What tenants used, by hour (shards/usage.py). Of operations and bytes `usage` has the batches of the log before
-- `usage_progress`; the log has the rest, and who asks adds both in one statement.

-- fragment: into_usage
INSERT INTO public.usage AS known (
    hour, business_id, location_id, resource_type, shard_id, operation_count, size_bytes
)

-- fragment: key_of_usage
(hour, business_id, location_id, resource_type, shard_id)

-- fragment: own_shard
(SELECT shard_meta.shard_id FROM public.shard_meta)

-- fragment: beside_usage
ON CONFLICT :key_of_usage DO UPDATE
SET
    operation_count = known.operation_count + excluded.operation_count,
    size_bytes = known.size_bytes + excluded.size_bytes

-- fragment: hour_of_batch
pg_catalog.date_trunc('hour', log_batches.completed_at, 'UTC')

-- fragment: is_operation
-- Not a change by a control message. An operation that was given up and replayed has two rows, and is two.
log_batches.batch_id >= 0::bigint AND log_rows.kind NOT IN ('m', 'M')

-- fragment: of_one_batch
:hour_of_batch, tenants.business_id, tenants.location_id, log_batches.types[log_rows.type_at], :own_shard

-- name: lock_usage
-- One roll-up at a time: this lock is held until it has committed.
INSERT INTO public.usage_progress DEFAULT VALUES
ON CONFLICT (only_row) DO UPDATE SET only_row = true;

-- name: roll_up_usage
-- Count the next $1 batches, but none that a running transaction may still come before; return whether these were all.
-- In one statement with how far it came, and behind the lock: an operation is counted once.
WITH taken AS MATERIALIZED (
    SELECT batch_id, completed_at, types
    FROM public.log_batches
    WHERE batch_id >= (SELECT usage_progress.batch_id FROM public.usage_progress) AND batch_id < :feed_horizon
    ORDER BY batch_id
    LIMIT $1
), counted AS (
    :into_usage
    SELECT :of_one_batch, pg_catalog.count(*), pg_catalog.sum(log_rows.size_bytes)
    FROM taken AS log_batches
    JOIN public.log_rows ON log_rows.batch_id = log_batches.batch_id
    JOIN public.tenants ON tenants.number = log_rows.tenant_no
    WHERE :is_operation
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY 1, 2, 3, 4
    :beside_usage
)
UPDATE public.usage_progress
SET batch_id = CASE
    WHEN (SELECT pg_catalog.count(*) FROM taken) = $1 THEN (SELECT pg_catalog.max(taken.batch_id) + 1 FROM taken)
    ELSE greatest(usage_progress.batch_id, :feed_horizon)
END
RETURNING (SELECT pg_catalog.count(*) FROM taken) < $1 AS is_last;

-- name: add_usage_time
-- Add the milliseconds $2 of the tenants $1 to this hour.
INSERT INTO public.usage AS known (hour, business_id, location_id, resource_type, shard_id, took_ms)
SELECT
    pg_catalog.date_trunc('hour', pg_catalog.now(), 'UTC'), tenants.business_id, tenants.location_id, '', :own_shard,
    sent.took_ms::pg_catalog.float8
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS sent (tenant_id, took_ms)
JOIN public.tenants ON tenants.id = sent.tenant_id
ON CONFLICT :key_of_usage DO UPDATE SET took_ms = known.took_ms + excluded.took_ms;

-- name: begin_usage_sample
-- One row if what is stored is to be sampled now: once a day, by one replica.
UPDATE public.usage_progress
SET sampled_at = pg_catalog.now()
WHERE coalesce(sampled_at < pg_catalog.date_trunc('day', pg_catalog.now(), 'UTC'), true)
RETURNING 1;

-- name: sample_usage
-- The rows and bytes that each tenant has stored of each type; of a large shard from as many pages as have about $1 rows.
WITH part AS MATERIALIZED (
    :sampled_part
)
INSERT INTO public.usage AS known (hour, business_id, location_id, resource_type, shard_id, stored_rows, stored_bytes)
SELECT
    pg_catalog.date_trunc('hour', pg_catalog.now(), 'UTC'), tenants.business_id, tenants.location_id,
    resources."resourceName", :own_shard, :sampled_sizes
FROM public.resources TABLESAMPLE system ((100::pg_catalog.float8 / (SELECT times FROM part))::pg_catalog.float4)
JOIN public.tenants ON tenants.id = resources.id
WHERE :lives_here
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4
ON CONFLICT :key_of_usage DO UPDATE
SET stored_rows = excluded.stored_rows, stored_bytes = excluded.stored_bytes;

-- fragment: sampled_part
SELECT
    greatest(1::pg_catalog.float8, pg_class.reltuples::pg_catalog.float8 / $1::integer::pg_catalog.float8) AS times
FROM pg_catalog.pg_class
WHERE pg_class.oid = 'public.resources'::pg_catalog.regclass::pg_catalog.oid

-- fragment: sampled_sizes
(pg_catalog.count(*)::pg_catalog.float8 * (SELECT times FROM part))::pg_catalog.int8 AS rows,
(
    pg_catalog.sum(pg_catalog.pg_column_size(resources.data))::pg_catalog.float8 * (SELECT times FROM part)
)::pg_catalog.int8 AS bytes

-- name: forget_usage
-- The next $2 rows older than $1 days.
DELETE FROM public.usage
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM public.usage WHERE hour < pg_catalog.now() - pg_catalog.make_interval(days => $1) LIMIT $2
));

-- name: read_usage_of_tenant
-- The rows of the business $1 at the location $2, from $3 until before $4, as JSON; NULL without any.
SELECT pg_catalog.json_agg(own)::pg_catalog.text
FROM (
    SELECT * FROM public.usage WHERE hour >= $3 AND hour < $4 AND business_id = $1 AND location_id = $2
) AS own;

-- name: write_usage_of_tenant
-- Write the rows $1 of another shard, but for those that this one counts. A count only grows: the larger one is the newer.
INSERT INTO public.usage AS known
SELECT carried.*
FROM pg_catalog.json_populate_recordset(NULL::public.usage, $1::pg_catalog.json) AS carried
WHERE carried.shard_id <> :own_shard
ORDER BY hour, business_id, location_id, resource_type, shard_id
ON CONFLICT :key_of_usage DO UPDATE
SET
    operation_count = greatest(known.operation_count, excluded.operation_count),
    size_bytes = greatest(known.size_bytes, excluded.size_bytes), took_ms = greatest(known.took_ms, excluded.took_ms),
    stored_rows = greatest(known.stored_rows, excluded.stored_rows),
    stored_bytes = greatest(known.stored_bytes, excluded.stored_bytes);

-- name: read_usage
-- From $1 until before $2, by $3 (hour, day or month), and by the shard that counted; of the business $4 or of all.
SELECT
    pg_catalog.date_trunc($3, used.hour, 'UTC') AS starts_at, used.business_id, used.location_id, used.resource_type,
    used.shard_id,
    pg_catalog.sum(used.operation_count)::bigint AS operation_count, pg_catalog.sum(used.size_bytes)::bigint AS size_bytes,
    pg_catalog.sum(used.took_ms) AS took_ms, pg_catalog.max(used.stored_rows) AS stored_rows,
    pg_catalog.max(used.stored_bytes) AS stored_bytes
FROM (
    SELECT
        hour, business_id, location_id, resource_type, shard_id, operation_count, size_bytes, took_ms, stored_rows,
        stored_bytes
    FROM public.usage
    WHERE hour >= $1 AND hour < $2
    UNION ALL
    SELECT :of_one_batch, 1, log_rows.size_bytes, 0, NULL, NULL
    FROM public.log_batches
    JOIN public.log_rows ON log_rows.batch_id = log_batches.batch_id
    JOIN public.tenants ON tenants.number = log_rows.tenant_no
    WHERE
        log_batches.batch_id >= coalesce((SELECT usage_progress.batch_id FROM public.usage_progress), 0::bigint)
        AND log_batches.completed_at >= $1 AND log_batches.completed_at < $2 AND :is_operation
) AS used (
    hour, business_id, location_id, resource_type, shard_id, operation_count, size_bytes, took_ms, stored_rows,
    stored_bytes
)
WHERE used.business_id = $4 OR $4::pg_catalog.text IS NULL
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4, 5;
