-- The queries of an audit (READ COMMITTED). They only read, without locks.

-- name: page_tenants
-- The next $2 tenants of the shard after the id $1, in order of id; begin with "".
SELECT id, business_id, location_id, business_type, state FROM public.tenants WHERE id > $1 ORDER BY id LIMIT $2;
