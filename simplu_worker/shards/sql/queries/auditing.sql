-- What an audit asks of a shard (READ COMMITTED). Only reads; nothing is locked.

-- name: page_tenants
-- The next $2 tenants of the shard behind the id $1, in order of id; "" begins.
SELECT id, business_id, location_id, business_type, state FROM tenants WHERE id > $1 ORDER BY id LIMIT $2;
