-- The content of a restored backup of a shard, as `shards verify-backup` reports it.

-- name: describe_content
-- The number of the tenants, when the first was made, and when the last operation was applied.
SELECT
    (SELECT pg_catalog.count(*) FROM public.tenants WHERE state NOT IN ('moved', 'destroyed')) AS tenant_count,
    (SELECT pg_catalog.min(created_at) FROM public.tenants) AS first_tenant_at,
    (SELECT pg_catalog.max(completed_at) FROM public.log_batches WHERE kind IN ('o', 'c')) AS last_applied_at;
