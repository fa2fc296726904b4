-- The operation log: queries for people, and the deletion of old rows.

-- fragment: logged_operation
-- The columns that people see of an operation.
tenant_id, request_id, status, operation, resource_type, resource_id, error, result::text AS result,
received_at, completed_at

-- name: find_operation
-- One operation of one tenant.
SELECT :logged_operation
FROM operations
WHERE tenant_id = $1 AND request_id = $2;

-- name: find_operation_of_any_tenant
-- The same without the tenant: one lookup by primary key for each tenant of the shard.
SELECT found.*
FROM tenants
CROSS JOIN LATERAL (
    SELECT :logged_operation
    FROM operations
    WHERE operations.tenant_id = tenants.id AND operations.request_id = $1
) AS found;

-- name: find_operations
-- Many operations at once; $1 are their tenants, $2 their request ids.
SELECT tenant_id, request_id, status, error, result::text AS result, digest, completed_at
FROM operations
JOIN unnest($1::text[], $2::text[]) AS wanted (tenant_id, request_id) USING (tenant_id, request_id);

-- name: forget_operations
-- Delete at most $2 of the rows completed more than $1 seconds ago, by the shard's clock, never by the producers'.
-- Locked rows are skipped: another replica is deleting them, or a replay is replacing them.
DELETE FROM operations
WHERE ctid = ANY(ARRAY(
    SELECT ctid
    FROM operations
    WHERE completed_at < now() - make_interval(secs => $1)
    LIMIT $2
    FOR UPDATE SKIP LOCKED
));
