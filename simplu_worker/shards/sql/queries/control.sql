-- What control messages do to tenants and their resources (READ COMMITTED). Each runs in a transaction that holds the
-- rows of its tenants, so that what was decided from them still holds.

-- name: lock_tenants_for_control
-- The rows of the tenants $1, held against other control messages about them, and against batches. In order of id, so
-- that two messages cannot deadlock here.
SELECT id, business_id, location_id, state, control_at, deletion_began_at IS NOT NULL AS is_deletion_begun
FROM tenants
WHERE id = ANY($1::text[])
ORDER BY id
FOR UPDATE;

-- name: find_missing_types
-- Which of the business types $1 this shard does not have: it was made, or last upgraded, before there were such.
SELECT name FROM unnest($1::text[]) AS sent (name)
WHERE NOT EXISTS (SELECT FROM business_types WHERE business_types.name = sent.name)
ORDER BY name;

-- name: make_tenants
-- Make tenants, or leave those that are there: idempotent. created_at is the clock of this transaction, and
-- `is_registration_in_time` ends it when it took too long (architecture, idea 7). As long as state_changed_at is the
-- same, the tenant is not confirmed. In order of id, against deadlocks.
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at, state_changed_at)
SELECT id, business_id, location_id, business_type, 'active', requested_at::timestamptz, now(), now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS sent (id, business_id, location_id, business_type, requested_at)
ORDER BY id
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: remake_tenants
-- Make tenants again whose rows were deleted. With a created_at of its own: an operation from before is then nobody's
-- to apply (architecture, idea 7), and what the log has of that time stays as long as the log's retention says.
UPDATE tenants
SET
    state = 'active',
    business_type = sent.business_type,
    epoch = tenants.epoch + 1,
    control_at = sent.requested_at::timestamptz,
    created_at = now(),
    state_changed_at = now(), -- not confirmed, as in `make_tenants`
    deletion_began_at = NULL
FROM unnest($1::text[], $2::text[], $3::text[]) AS sent (id, business_type, requested_at)
WHERE tenants.id = sent.id AND tenants.state = 'destroyed';

-- name: restore_tenants
-- Take destructions back of which no row was deleted yet.
UPDATE tenants
SET state = 'active', control_at = sent.requested_at::timestamptz, state_changed_at = clock_timestamp()
FROM unnest($1::text[], $2::text[]) AS sent (id, requested_at)
WHERE tenants.id = sent.id AND tenants.state = 'destroying' AND tenants.deletion_began_at IS NULL;

-- name: note_control
-- Remember the newest control message that was applied to each tenant.
UPDATE tenants
SET control_at = sent.requested_at::timestamptz
FROM unnest($1::text[], $2::text[]) AS sent (id, requested_at)
WHERE tenants.id = sent.id AND tenants.control_at < sent.requested_at::timestamptz;

-- name: destroy_tenant
-- From the commit on, its operations end `tenant_destroyed`. The grace time begins now, by the shard's clock.
UPDATE tenants
SET state = 'destroying', control_at = $2::text::timestamptz, state_changed_at = clock_timestamp()
WHERE id = $1 AND state = 'active';

-- name: add_default_rows
-- The one row that every tenant starts with. Never overwrites what operations made of it.
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT
    sent.id, business_types.name, 'settings', 'default', business_types.default_settings,
    sent.requested_at::timestamptz, sent.requested_at::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[]) AS sent (id, business_type, requested_at)
JOIN business_types ON business_types.name = sent.business_type
ORDER BY sent.id
ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING;

-- name: is_registration_in_time
-- Whether the registering transaction is still young enough for its created_at to be believed.
SELECT clock_timestamp() - now() < interval '30 seconds';

-- name: find_home_candidates
-- What there is of the tenants $1 here: whether they were confirmed, and whether anything but provisioning wrote to them
-- since they were made. Control messages and operations leave resources, and operations a row in the log as well.
SELECT
    id, state, epoch, moved_to, created_at,
    state_changed_at <> created_at AS is_confirmed,
    EXISTS (
        SELECT FROM operations WHERE operations.tenant_id = tenants.id AND operations.completed_at >= tenants.created_at
    )
    OR EXISTS (
        SELECT FROM resources
        LEFT JOIN business_types ON business_types.name = tenants.business_type
        WHERE
            resources.id = tenants.id
            AND (
                (resources."resourceName", resources."resourceId") <> ('settings', 'default')
                OR resources.data IS DISTINCT FROM business_types.default_settings
                OR resources.date <> resources."lastUpdated"
            )
    ) AS is_touched
FROM tenants
WHERE id = ANY($1::text[]);

-- name: confirm_tenants
-- Note that nobody else has the tenants $1, made at $2, and return those that are still there. Idempotent. In a
-- transaction that holds their rows, by `lock_tenants_for_control`.
UPDATE tenants
SET state_changed_at = CASE
    WHEN tenants.state_changed_at = tenants.created_at
        -- A clock that was set back must not make it look unconfirmed.
        THEN greatest(clock_timestamp(), tenants.created_at + interval '1 microsecond')
    ELSE tenants.state_changed_at
END
FROM unnest($1::text[], $2::text[]) AS sent (id, created_at)
WHERE tenants.id = sent.id AND tenants.created_at = sent.created_at::timestamptz
RETURNING tenants.id;

-- name: find_unconfirmed
-- At most $2 tenants that were made more than $1 seconds ago and never confirmed: whoever made them was killed, or a
-- shard did not answer. A look at every row.
SELECT id, business_id, location_id, business_type
FROM tenants
WHERE
    state = 'active' AND state_changed_at = created_at
    AND created_at < clock_timestamp() - make_interval(secs => $1)
ORDER BY created_at, id
LIMIT $2;

-- name: delete_default_row
-- Take back what `add_default_rows` added for the tenant $1. In a transaction that holds the tenant's row and has seen
-- that nothing but provisioning wrote to it; so do the next two.
DELETE FROM resources WHERE id = $1 AND "resourceName" = 'settings' AND "resourceId" = 'default';

-- name: delete_tenant_made
-- Take back what `make_tenants` made.
DELETE FROM tenants WHERE id = $1 AND state = 'active' AND epoch = 1;

-- name: destroy_tenant_remade
-- Take back what `remake_tenants` made: the tenant is as destroyed as it was.
UPDATE tenants
SET state = 'destroyed', state_changed_at = clock_timestamp()
WHERE id = $1 AND state = 'active' AND epoch > 1;

-- name: rename_resource
-- Give a resource another id, and merge what is to be added (RFC 7396, as a `patch` does). Nothing when there is one of
-- the new id, or none of the old one.
UPDATE resources
SET
    "resourceId" = $4,
    data = CASE WHEN $5::text IS NULL THEN data ELSE simplu_merge_patch(data, $5::text::jsonb) END,
    "lastUpdated" = $6::text::timestamptz
WHERE
    id = $1 AND "resourceName" = $2 AND "resourceId" = $3
    AND NOT EXISTS (
        SELECT FROM resources AS other WHERE other.id = $1 AND other."resourceName" = $2 AND other."resourceId" = $4
    );

-- name: find_resource_ids
-- Which of the ids $3 there are.
SELECT "resourceId" AS resource_id
FROM resources
WHERE id = $1 AND "resourceName" = $2 AND "resourceId" = ANY($3::text[]);

-- name: add_admin
-- The role of a tenant's first administrator and, of the type that its business has, the person's own resource. Never
-- overwrites one that is there: idempotent.
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT
    tenants.id, tenants.business_type, made.resource_type, $2::text, made.data,
    $4::text::timestamptz, $4::text::timestamptz
FROM tenants
JOIN business_types ON business_types.name = tenants.business_type
CROSS JOIN LATERAL (
    VALUES
        (
            'role',
            jsonb_build_object('name', 'Administrator', 'status', 'active', 'permissions', jsonb_build_array('*'))
        ),
        (
            business_types.staff_resource_type,
            jsonb_build_object(
                business_types.staff_resource_type || 'Name', split_part($3::text, '@', 1),
                'email', $3::text,
                'phone', '',
                'role', 'Administrator',
                'status', 'active'
            )
        )
) AS made (resource_type, data)
WHERE tenants.id = $1
ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING;

-- name: find_staff_type
-- The resource type of the staff of a tenant's business type.
SELECT business_types.staff_resource_type
FROM tenants
JOIN business_types ON business_types.name = tenants.business_type
WHERE tenants.id = $1;

-- name: find_deletions
-- The tenants whose grace time ($1 seconds) is over, or whose deletion has begun.
SELECT id, business_id, location_id FROM tenants
WHERE
    state = 'destroying'
    AND (deletion_began_at IS NOT NULL OR state_changed_at <= clock_timestamp() - make_interval(secs => $1))
ORDER BY deletion_began_at, id;

-- name: begin_deletion
-- Mark a tenant whose grace time ($2 seconds) is over: from now on a new `SHARD_CREATION` waits for the end of the
-- deletion and brings nothing back. Waits for the batches that hold the row, and does nothing when it is marked, or
-- was just taken back.
UPDATE tenants
SET deletion_began_at = clock_timestamp()
WHERE
    id = $1 AND state = 'destroying' AND deletion_began_at IS NULL
    AND state_changed_at <= clock_timestamp() - make_interval(secs => $2);

-- name: lock_deletion
-- Hold a tenant to what it was when its deletion began: another replica may have come to its end, and the tenant may have
-- been made again. Replicas do not hold off each other, nor the batches that find it destroyed.
SELECT id FROM tenants WHERE id = $1 AND state = 'destroying' AND deletion_began_at IS NOT NULL FOR SHARE;

-- name: delete_resources
-- Delete at most $2 of a tenant's resources; those that another replica is just deleting are passed over.
DELETE FROM resources
WHERE ctid = ANY(ARRAY(SELECT ctid FROM resources WHERE id = $1 LIMIT $2 FOR UPDATE SKIP LOCKED))
RETURNING "resourceName" AS resource_type, "resourceId" AS resource_id;

-- name: end_deletion
-- The tenant is destroyed once nothing of it is left: its row stays, and its log for as long as the log's retention.
UPDATE tenants
SET state = 'destroyed', state_changed_at = clock_timestamp(), deletion_began_at = NULL
WHERE
    id = $1 AND state = 'destroying' AND deletion_began_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM resources WHERE resources.id = $1);
