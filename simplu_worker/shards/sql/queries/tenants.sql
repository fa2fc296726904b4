-- Tenants: found, provisioned, shown.

-- name: find_tenant
-- The row of one tenant, whatever its state.
SELECT id, business_id, location_id, business_type, state, moved_to, control_at, created_at
FROM tenants
WHERE id = $1;

-- name: provision_tenant
-- Make the tenant, or leave the one that is there: idempotent. created_at is the clock of this transaction, and
-- `check_registration_time` ends it when it took too long (architecture, idea 7).
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)
VALUES ($1, $2, $3, $4, 'active', $5::text::timestamptz, now())
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: add_default_row
-- The one row that every tenant starts with. Never overwrites what operations made of it.
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT $1, business_types.name, 'settings', 'default', business_types.default_settings,
    $3::text::timestamptz, $3::text::timestamptz
FROM business_types
WHERE business_types.name = $2
ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING;

-- name: lock_tenant
-- The row of one tenant, held against other control messages about it.
SELECT id, business_id, location_id, business_type, state, moved_to, control_at, created_at
FROM tenants
WHERE id = $1
FOR UPDATE;

-- name: note_control
-- Remember the newest control message that was applied to the tenant.
UPDATE tenants SET control_at = greatest(control_at, $2::text::timestamptz) WHERE id = $1;

-- name: is_registration_in_time
-- Whether the registering transaction is still young enough for its created_at to be believed.
SELECT clock_timestamp() - now() < interval '30 seconds';

-- name: count_tenants
SELECT count(*) FROM tenants WHERE state <> 'destroyed';

-- name: list_tenants
-- All tenants of the shard, in order of id.
SELECT id, business_id, location_id, business_type, state, moved_to, created_at FROM tenants ORDER BY id;

-- name: show_tenant
-- One tenant with the size of what it has here.
SELECT
    tenants.id, business_id, location_id, business_type, state, moved_to, control_at, created_at,
    (SELECT count(*) FROM resources WHERE resources.id = tenants.id) AS resource_count,
    (SELECT count(*) FROM operations WHERE operations.tenant_id = tenants.id) AS operation_count
FROM tenants
WHERE tenants.id = $1;
