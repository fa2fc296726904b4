-- The changes of tenants and their resources by control messages (READ COMMITTED). Each runs in a transaction that has
-- locked the rows of its tenants, so that decisions made from these rows stay valid.

-- name: lock_tenants_for_control
-- The rows of the tenants $1, locked against other control messages and against batches. In order of id, so that two
-- messages cannot deadlock here.
SELECT id, business_id, location_id, business_type, state, control_at, deletion_began_at IS NOT NULL AS is_deletion_begun
FROM public.tenants
WHERE id = ANY($1::pg_catalog.text[])
ORDER BY id
FOR UPDATE;

-- name: find_missing_types
-- The business types among $1 that this shard does not have.
SELECT name FROM pg_catalog.unnest($1::pg_catalog.text[]) AS sent (name)
WHERE NOT EXISTS (SELECT FROM public.business_types WHERE business_types.name = sent.name)
ORDER BY name;

-- name: is_drained
SELECT drained_at IS NOT NULL AS is_drained FROM public.shard_meta;

-- name: find_not_taken
-- Of the tenants $1 those that have no row here, or are destroyed, if the shard was drained: it takes them no more.
SELECT sent.id
FROM pg_catalog.unnest($1::pg_catalog.text[]) AS sent (id)
WHERE
    EXISTS (SELECT FROM public.shard_meta WHERE shard_meta.drained_at IS NOT NULL)
    AND NOT EXISTS (SELECT FROM public.tenants WHERE tenants.id = sent.id AND tenants.state <> 'destroyed');

-- name: make_tenants
-- Insert tenants unless they exist: idempotent. created_at is the start of this transaction, which is rolled back after
-- `check_registration` if it took too long (architecture, idea 7). In order of id, against deadlocks.
INSERT INTO public.tenants (
    id, business_id, location_id, business_type, state, control_at, created_at, state_changed_at
)
SELECT
    id, business_id, location_id, business_type, 'active', requested_at::pg_catalog.timestamptz,
    pg_catalog.now(), pg_catalog.now()
FROM unnest(
    $1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[]
) AS sent (id, business_id, location_id, business_type, requested_at)
WHERE
    NOT EXISTS (SELECT FROM public.tenants WHERE tenants.id = sent.id) -- a row that is not made uses up a number
    AND EXISTS (SELECT FROM public.business_types WHERE business_types.name = sent.business_type) -- not removed since
ORDER BY id
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: remake_tenants
-- Make destroyed tenants again, unless their type was removed meanwhile. With a new created_at: no reader applies an operation from before (architecture, idea
-- 7), and the old rows of the log stay for the log's retention.
UPDATE public.tenants
SET
    state = 'active',
    business_type = sent.business_type,
    epoch = tenants.epoch + 1,
    control_at = sent.requested_at::pg_catalog.timestamptz,
    created_at = pg_catalog.now(),
    state_changed_at = pg_catalog.now(),
    deletion_began_at = NULL,
    paused_until = NULL,
    weight = 1,
    operations_per_s = NULL,
    bytes_per_s = NULL
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[])
    AS sent (id, business_type, requested_at)
WHERE
    tenants.id = sent.id AND tenants.state = 'destroyed'
    AND EXISTS (SELECT FROM public.business_types WHERE business_types.name = sent.business_type);

-- name: restore_tenants
-- Cancel destructions before their first deletion.
UPDATE public.tenants
SET
    state = 'active',
    control_at = sent.requested_at::pg_catalog.timestamptz,
    state_changed_at = pg_catalog.clock_timestamp()
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS sent (id, requested_at)
WHERE tenants.id = sent.id AND tenants.state = 'destroying' AND tenants.deletion_began_at IS NULL;

-- name: note_control
-- Store the time of the newest control message that was applied to each tenant.
UPDATE public.tenants
SET control_at = sent.requested_at::pg_catalog.timestamptz
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS sent (id, requested_at)
WHERE tenants.id = sent.id AND tenants.control_at < sent.requested_at::pg_catalog.timestamptz;

-- name: destroy_tenant
-- After the commit, the tenant's operations fail as `tenant_destroyed`. The grace time begins now by the shard's clock.
UPDATE public.tenants
SET
    state = 'destroying',
    control_at = $2::pg_catalog.text::pg_catalog.timestamptz,
    state_changed_at = pg_catalog.clock_timestamp()
WHERE id = $1 AND state = 'active';

-- name: add_default_rows
-- Add the default row of each tenant. Never overwrites a row that operations have changed.
:into_resources
SELECT
    sent.id, business_types.name, 'settings', 'default', business_types.default_settings,
    sent.requested_at::pg_catalog.timestamptz, sent.requested_at::pg_catalog.timestamptz
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[])
    AS sent (id, business_type, requested_at)
JOIN public.business_types ON business_types.name = sent.business_type
ORDER BY sent.id
ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING
RETURNING id;

-- name: find_stored_name
-- The name under which the tenant $1 has the resources that are sent as $2.
SELECT coalesce(
    (
        SELECT business_types.stored_names ->> $2::pg_catalog.text
        FROM public.tenants
        JOIN public.business_types ON business_types.name = tenants.business_type
        WHERE tenants.id = $1
    ),
    $2
);

-- name: find_type_names
-- All names under which the tenant $1 may have what is sent, or stored, as $2.
SELECT array(
    SELECT $2::pg_catalog.text
    UNION
    SELECT pg_catalog.unnest(ARRAY[named.key, named.value])
    FROM public.tenants
    JOIN public.business_types ON business_types.name = tenants.business_type
    CROSS JOIN LATERAL pg_catalog.jsonb_each_text(business_types.stored_names) AS named
    WHERE tenants.id = $1 AND named.value = coalesce(business_types.stored_names ->> $2::pg_catalog.text, $2)
);

-- name: rename_resource
-- Give a resource another id and, unless $5 is NULL, other data. Does nothing if a resource with the new id exists, or
-- none with the old one.
UPDATE public.resources
SET
    "resourceId" = $4,
    data = coalesce($5::pg_catalog.text::pg_catalog.jsonb, data),
    "lastUpdated" = $6::pg_catalog.text::pg_catalog.timestamptz
WHERE
    id = $1 AND "resourceName" = $2 AND "resourceId" = $3
    AND NOT EXISTS (
        SELECT FROM public.resources AS other
        WHERE other.id = $1 AND other."resourceName" = $2 AND other."resourceId" = $4
    );

-- name: find_resource_ids
-- The ids among $3 that exist.
SELECT "resourceId" AS resource_id
FROM public.resources
WHERE id = $1 AND "resourceName" = $2 AND "resourceId" = ANY($3::pg_catalog.text[]);

-- name: add_admin
-- Add the role of a tenant's first administrator, and the person's own resource, of the staff type of the tenant's
-- business type. Never overwrites an existing row: idempotent.
:into_resources
SELECT
    tenants.id, tenants.business_type, made.resource_type, $2::pg_catalog.text, made.data,
    $4::pg_catalog.text::pg_catalog.timestamptz, $4::pg_catalog.text::pg_catalog.timestamptz
FROM public.tenants
JOIN public.business_types ON business_types.name = tenants.business_type
CROSS JOIN LATERAL (
    VALUES
        (
            'role',
            pg_catalog.jsonb_build_object(
                'name', 'Administrator',
                'status', 'active',
                'permissions', pg_catalog.jsonb_build_array('*')
            )
        ),
        (
            business_types.staff_resource_type,
            pg_catalog.jsonb_build_object(
                business_types.staff_resource_type || 'Name', pg_catalog.split_part($3::pg_catalog.text, '@', 1),
                'email', $3::pg_catalog.text,
                'phone', '',
                'role', 'Administrator',
                'status', 'active'
            )
        )
) AS made (resource_type, data)
WHERE tenants.id = $1
ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING
RETURNING "resourceName" AS resource_type, data::pg_catalog.text AS data;

-- name: find_staff_type
-- The resource type of staff for a tenant's business type.
SELECT business_types.staff_resource_type
FROM public.tenants
JOIN public.business_types ON business_types.name = tenants.business_type
WHERE tenants.id = $1;

-- name: find_deletions
-- The tenants after their grace time ($1 seconds), and those with a deletion that has begun. In a random order: were the
-- same ones first each time, and their rows locked, the rest would never have a turn.
SELECT id, business_id, location_id, deletion_began_at IS NOT NULL AS is_begun FROM public.tenants
WHERE
    state = 'destroying'
    AND (
        deletion_began_at IS NOT NULL
        OR state_changed_at <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)
    )
ORDER BY pg_catalog.random();

-- name: begin_deletion
-- Mark a tenant after its grace time ($2 seconds): a new `SHARD_CREATION` then waits for the end of the deletion, and
-- restores nothing. Waits for the batches that have locked the row; does nothing for a tenant that is marked or was
-- just restored.
UPDATE public.tenants
SET deletion_began_at = pg_catalog.clock_timestamp()
WHERE
    id = $1 AND state = 'destroying' AND deletion_began_at IS NULL
    AND state_changed_at <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2);

-- name: lock_deletion
-- Lock a tenant if its deletion is still in progress: another replica may have ended it, and the tenant may have been
-- made again. The share lock blocks neither other replicas nor the batches that find the tenant destroyed.
SELECT id FROM public.tenants WHERE id = $1 AND state = 'destroying' AND deletion_began_at IS NOT NULL FOR SHARE;

-- name: delete_resources
-- Delete at most $2 of a tenant's resources, and skip those that another replica is deleting.
DELETE FROM public.resources
WHERE ctid = ANY(ARRAY(SELECT ctid FROM public.resources WHERE id = $1 LIMIT $2 FOR UPDATE SKIP LOCKED))
RETURNING "resourceName" AS resource_type, "resourceId" AS resource_id;

-- name: delete_versions
-- The same of the versions of its resources.
DELETE FROM public.resource_versions
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM public.resource_versions WHERE tenant_no = :number_of_tenant LIMIT $2 FOR UPDATE SKIP LOCKED
));

-- name: end_deletion
-- Mark a tenant without resources as destroyed: its row stays, and its log for the log's retention.
UPDATE public.tenants
SET state = 'destroyed', state_changed_at = pg_catalog.clock_timestamp(), deletion_began_at = NULL
WHERE
    id = $1 AND state = 'destroying' AND deletion_began_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM public.resources WHERE resources.id = $1)
    AND NOT EXISTS (SELECT FROM public.resource_versions WHERE tenant_no = tenants.number);
