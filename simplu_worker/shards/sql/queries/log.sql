-- The operation log, as it is asked and as it is kept small.

-- name: find_operation
-- One operation of one tenant.
SELECT
    tenant_id, request_id, status, operation, resource_type, resource_id, error, result::text AS result,
    received_at, completed_at
FROM operations
WHERE tenant_id = $1 AND request_id = $2;

-- name: find_operation_of_any_tenant
-- The same where the tenant is not known: a look into the primary key for each tenant of the shard.
SELECT found.*
FROM tenants
CROSS JOIN LATERAL (
    SELECT
        tenant_id, request_id, status, operation, resource_type, resource_id, error, result::text AS result,
        received_at, completed_at
    FROM operations
    WHERE operations.tenant_id = tenants.id AND operations.request_id = $1
) AS found;

-- name: forget_operations
-- Delete at most $2 of the rows completed more than $1 hours ago. By the shard's clock, never by the producers'.
DELETE FROM operations
WHERE ctid IN (
    SELECT ctid FROM operations
    WHERE completed_at < now() - make_interval(hours => $1)
    LIMIT $2
);
