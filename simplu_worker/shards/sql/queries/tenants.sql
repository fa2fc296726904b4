-- Queries that find and show tenants.

-- fragment: lives_here
-- Whether a tenant lives on the shard. In the other states another shard has its newest rows, or will have them, whatever
-- route led here.
tenants.state IN ('active', 'fenced', 'destroying', 'destroyed')

-- fragment: takes_notes
-- Whether the rows of a tenant that stand beside the log may change here. In the other states a mover has read them.
tenants.state IN ('active', 'destroying', 'destroyed')

-- fragment: number_of_tenant
-- The number of the tenant $1 in the log of this shard.
(SELECT tenants.number FROM public.tenants WHERE tenants.id = $1)

-- fragment: operation_count
-- The number of a tenant's operations: without those that others took the place of, and what is none.
(
    SELECT pg_catalog.count(*)
    FROM public.log_rows
    WHERE log_rows.tenant_no = tenants.number AND log_rows.kind IN ('c', 'u', 'p', 'd', 'r', 'l')
) AS operation_count

-- fragment: controls
-- What people have set: until when the tenant is paused, and for how many seconds; null where it is not. Its weight.
CASE WHEN paused_until > pg_catalog.clock_timestamp() THEN paused_until END AS paused_until,
CASE
    WHEN paused_until > pg_catalog.clock_timestamp()
    THEN pg_catalog.date_part('epoch', paused_until - pg_catalog.clock_timestamp())
END AS paused_s,
weight

-- name: find_tenants
-- The rows of the tenants $1, whatever their state.
SELECT id, business_id, location_id, business_type, state, moved_to, control_at, created_at, :controls
FROM public.tenants
WHERE id = ANY($1::pg_catalog.text[]);

-- name: find_locations
-- The rows of all tenants of one business. Uses an index.
SELECT id, business_id, location_id, state FROM public.tenants WHERE business_id = $1;

-- name: count_tenants
SELECT pg_catalog.count(*) FROM public.tenants WHERE state <> 'destroyed';

-- name: list_tenants
-- All tenants of the shard, in order of id.
SELECT id, business_id, location_id, business_type, state, moved_to, created_at, :controls
FROM public.tenants
ORDER BY id;

-- name: show_tenant
-- One tenant with the numbers of its resources and operations.
SELECT
    tenants.id, business_id, location_id, business_type, state, moved_to, control_at, created_at,
    :controls,
    (SELECT pg_catalog.count(*) FROM public.resources WHERE resources.id = tenants.id) AS resource_count,
    :operation_count,
    :lives_here AS lives_here
FROM public.tenants
WHERE tenants.id = $1;

-- name: show_resource
-- The resource $3 of the type $2, by any name of it, of the tenant $1, which lives here: without a row the columns are
-- null, and so is a document of more than $4 bytes.
SELECT
    resources."resourceId" IS NOT NULL AS is_there,
    resources.date, resources."lastUpdated" AS last_updated,
    pg_catalog.octet_length(document.text) AS size_bytes,
    CASE WHEN pg_catalog.octet_length(document.text) <= $4::pg_catalog.int4 THEN document.text END AS data
FROM public.tenants
LEFT JOIN public.business_types ON business_types.name = tenants.business_type
LEFT JOIN public.resources
    ON
        resources.id = tenants.id AND resources."resourceId" = $3
        AND resources."resourceName" = coalesce(business_types.stored_names ->> $2::pg_catalog.text, $2)
LEFT JOIN LATERAL (SELECT resources.data::pg_catalog.text AS text) AS document ON true
WHERE tenants.id = $1 AND :lives_here;

-- name: set_controls
-- What a person sets for the tenant $1 of the business $2 and the location $3: a pause of $4 seconds from now, none for
-- 0; and the weight $5. Null leaves it. Not while it is fenced: a move copies its row.
UPDATE public.tenants
SET
    paused_until = CASE
        WHEN $4::pg_catalog.float8 IS NULL THEN paused_until
        WHEN $4 > 0::pg_catalog.float8 THEN pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4)
    END,
    weight = coalesce($5::pg_catalog.float8, weight)
WHERE id = $1 AND business_id = $2 AND location_id = $3 AND state = 'active'
RETURNING :controls;

-- name: end_pause
UPDATE public.tenants SET paused_until = NULL WHERE id = $1 AND paused_until IS NOT NULL;
