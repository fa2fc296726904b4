-- The check before a shard is removed from the shard map.

-- name: count_living_tenants
-- The number of tenants that would be lost with this shard: all but the moved and the destroyed ones. Reads the whole
-- table, without a lock.
SELECT pg_catalog.count(*) FROM public.tenants WHERE state NOT IN ('moved', 'destroyed');
