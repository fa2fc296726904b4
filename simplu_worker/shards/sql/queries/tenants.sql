-- Queries that find and show tenants.

-- fragment: lives_here
-- Whether a tenant lives on the shard. In the other states another shard has its newest rows, or will have them, whatever
-- route led here.
tenants.state IN ('active', 'fenced', 'destroying', 'destroyed')

-- fragment: takes_notes
-- Whether the rows of a tenant that stand beside the log may change here. In the other states a mover has read them.
tenants.state IN ('active', 'destroying', 'destroyed')

-- name: find_tenants
-- The rows of the tenants $1, whatever their state.
SELECT id, business_id, location_id, business_type, state, moved_to, control_at, created_at
FROM public.tenants
WHERE id = ANY($1::pg_catalog.text[]);

-- name: find_locations
-- The rows of all tenants of one business. Uses an index.
SELECT id, business_id, location_id, state FROM public.tenants WHERE business_id = $1;

-- name: count_beyond_bounds
-- How many documents are beyond the bounds of data, as an adopted shard may have; those that take under 500 bytes are
-- not looked at. Scans the table.
SELECT pg_catalog.count(*) AS count
FROM public.resources
CROSS JOIN LATERAL (SELECT resources.data || '{}'::pg_catalog.jsonb AS document OFFSET 0) AS checked
WHERE pg_catalog.pg_column_size(resources.data) >= 500 AND NOT :is_within_bounds;

-- name: count_tenants
SELECT pg_catalog.count(*) FROM public.tenants WHERE state <> 'destroyed';

-- name: list_tenants
-- All tenants of the shard, in order of id.
SELECT id, business_id, location_id, business_type, state, moved_to, created_at FROM public.tenants ORDER BY id;

-- name: show_tenant
-- One tenant with the numbers of its resources and operations.
SELECT
    tenants.id, business_id, location_id, business_type, state, moved_to, control_at, created_at,
    (SELECT pg_catalog.count(*) FROM public.resources WHERE resources.id = tenants.id) AS resource_count,
    (SELECT pg_catalog.count(*) FROM public.operations WHERE operations.tenant_id = tenants.id) AS operation_count,
    :lives_here AS lives_here
FROM public.tenants
WHERE tenants.id = $1;
