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

-- fragment: pause_end
-- Until when the tenant or its business is paused.
greatest(tenants.paused_until, of_business.paused_until)

-- fragment: shown_controls
-- Of `controls`: until when it is paused, and for how many seconds; null where it is not. Weights and limits.
SELECT
    CASE WHEN :pause_end > pg_catalog.clock_timestamp() THEN :pause_end END AS paused_until,
    CASE
        WHEN :pause_end > pg_catalog.clock_timestamp()
        THEN pg_catalog.date_part('epoch', :pause_end - pg_catalog.clock_timestamp())
    END AS paused_s,
    tenants.weight, tenants.operations_per_s, tenants.bytes_per_s,
    coalesce(of_business.weight, 1::pg_catalog.float8) AS business_weight,
    of_business.operations_per_s AS business_operations_per_s, of_business.bytes_per_s AS business_bytes_per_s

-- fragment: with_controls
-- The tenants, and what people have set for each, or for its business.
public.tenants
LEFT JOIN public.business_controls AS of_business ON of_business.business_id = tenants.business_id
CROSS JOIN LATERAL (:shown_controls) AS controls

-- name: find_tenants
-- The rows of the tenants $1, whatever their state.
SELECT
    tenants.id, tenants.business_id, location_id, business_type, state, moved_to, control_at, created_at, controls.*
FROM :with_controls
WHERE tenants.id = ANY($1::pg_catalog.text[]);

-- name: find_locations
-- The rows of all tenants of one business. Uses an index.
SELECT id, business_id, location_id, state FROM public.tenants WHERE business_id = $1;

-- name: count_tenants
SELECT pg_catalog.count(*) FROM public.tenants WHERE state <> 'destroyed';

-- name: list_tenants
-- All tenants of the shard, in order of id.
SELECT tenants.id, tenants.business_id, location_id, business_type, state, moved_to, created_at, controls.*
FROM :with_controls
ORDER BY tenants.id;

-- name: show_tenant
-- One tenant with the numbers of its resources and operations.
SELECT
    tenants.id, tenants.business_id, location_id, business_type, state, moved_to, control_at, created_at,
    controls.*,
    (SELECT pg_catalog.count(*) FROM public.resources WHERE resources.id = tenants.id) AS resource_count,
    :operation_count,
    :lives_here AS lives_here
FROM :with_controls
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
-- 0; the weight $5; the limits $6 of operations and $7 of bytes a second, none for 0. Null leaves it. Not while it is
-- fenced: a move copies its row.
WITH tenants AS (
    UPDATE public.tenants
    SET
        paused_until = CASE
            WHEN $4::pg_catalog.float8 IS NULL THEN paused_until
            WHEN $4 > 0::pg_catalog.float8 THEN pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4)
        END,
        weight = coalesce($5::pg_catalog.float8, weight),
        operations_per_s = nullif(coalesce($6::pg_catalog.float8, operations_per_s), 0::pg_catalog.float8),
        bytes_per_s = nullif(coalesce($7::pg_catalog.float8, bytes_per_s), 0::pg_catalog.float8)
    WHERE id = $1 AND business_id = $2 AND location_id = $3 AND state = 'active'
    RETURNING *
),

-- With another limit nothing is owed: what is owed by the last one may be days.
forgotten AS (
    DELETE FROM public.limit_buckets USING tenants
    WHERE
        tenants.id = $1 AND limit_buckets.target = pg_catalog.concat('t/', tenants.number)
        AND ($6 IS NOT NULL OR $7 IS NOT NULL)
)
:shown_controls
FROM tenants
LEFT JOIN public.business_controls AS of_business ON of_business.business_id = tenants.business_id
WHERE tenants.id = $1;

-- fragment: of_business_here
-- The tenants of a business of `business_controls`, without those whose rows here are no one's any more.
FROM public.tenants
WHERE
    tenants.business_id = business_controls.business_id AND tenants.state <> 'destroyed'
    AND (
        tenants.state <> 'moved'
        OR EXISTS (
            SELECT FROM public.transfers WHERE tenant_id = tenants.id AND kind = 'departure' AND step <> 'cleaned'
        )
    )

-- name: forget_controls
-- What is set for businesses without tenants here, what they have used of their limits, and buckets that are full.
WITH gone AS (
    DELETE FROM public.business_controls
    WHERE
        set_at < pg_catalog.clock_timestamp() - interval '1 minute' -- else its tenant may be new
        AND NOT EXISTS (SELECT :of_business_here)
    RETURNING pg_catalog.concat('b/', business_id) AS target
)
DELETE FROM public.limit_buckets
WHERE ctid = ANY(ARRAY(
    SELECT ctid
    FROM public.limit_buckets
    WHERE
        target IN (SELECT gone.target FROM gone)
        OR greatest(operations_at, bytes_at) < pg_catalog.clock_timestamp() - interval '1 hour'
    FOR UPDATE SKIP LOCKED
));

-- name: set_business_controls
-- The same for all locations of the business $1, on this shard, if it has any: $2 to $5 are as $4 to $7 there.
WITH forgotten AS (
    DELETE FROM public.limit_buckets
    WHERE
        target = pg_catalog.concat('b/', $1::pg_catalog.text)
        AND ($4::pg_catalog.float8 IS NOT NULL OR $5::pg_catalog.float8 IS NOT NULL)
)
INSERT INTO public.business_controls AS known (business_id, paused_until, weight, operations_per_s, bytes_per_s)
SELECT
    business_controls.business_id,
    CASE
        WHEN $2::pg_catalog.float8 > 0::pg_catalog.float8
        THEN pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2)
    END,
    coalesce($3::pg_catalog.float8, 1::pg_catalog.float8), nullif($4::pg_catalog.float8, 0::pg_catalog.float8),
    nullif($5::pg_catalog.float8, 0::pg_catalog.float8)
FROM (SELECT $1::pg_catalog.text) AS business_controls (business_id)
WHERE EXISTS (SELECT :of_business_here)
ON CONFLICT (business_id) DO UPDATE SET
    set_at = pg_catalog.clock_timestamp(),
    paused_until = CASE WHEN $2 IS NULL THEN known.paused_until ELSE excluded.paused_until END,
    weight = coalesce($3, known.weight),
    operations_per_s = nullif(coalesce($4, known.operations_per_s), 0::pg_catalog.float8),
    bytes_per_s = nullif(coalesce($5, known.bytes_per_s), 0::pg_catalog.float8)
RETURNING
    CASE WHEN paused_until > pg_catalog.clock_timestamp() THEN paused_until END AS paused_until,
    weight, operations_per_s, bytes_per_s;

-- name: end_pause
-- Of the tenant $1, and of its business.
WITH of_business AS (
    UPDATE public.business_controls
    SET paused_until = NULL
    WHERE
        business_id = (SELECT tenants.business_id FROM public.tenants WHERE tenants.id = $1)
        AND paused_until IS NOT NULL
)
UPDATE public.tenants SET paused_until = NULL WHERE id = $1 AND paused_until IS NOT NULL;
