-- The content of a restored backup of a shard.

-- name: describe_content
-- When the first tenant was made, and when the last operation was applied.
SELECT
    (SELECT pg_catalog.min(created_at) FROM public.tenants) AS first_tenant_at,
    (SELECT pg_catalog.max(completed_at) FROM public.log_batches WHERE kind IN ('o', 'c')) AS last_applied_at;
