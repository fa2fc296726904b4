-- What became of records that are no operations.

-- fragment: rejection
-- The columns that people see of a rejected record.
tenant_id, request_id, reason, error, dead_letter_queue, source, sequence_number, message_id, rejected_at

-- fragment: rejected_values
-- The values of the columns: $1 is the dead-letter queue.
    rejected.tenant_id, rejected.request_id, rejected.reason, rejected.error, $1::pg_catalog.text, rejected.source,
    rejected.sequence_number, rejected.message_id, pg_catalog.clock_timestamp()

-- fragment: rejected
-- What is written: $2 to $9.
    unnest(
        $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[],
        $6::pg_catalog.text[], $7::pg_catalog.text[], $8::pg_catalog.text[], $9::pg_catalog.text[]
    ) AS rejected (tenant_id, business_id, request_id, reason, error, source, sequence_number, message_id)

-- fragment: replaced
SET
    reason = excluded.reason, error = excluded.error, dead_letter_queue = excluded.dead_letter_queue,
    source = excluded.source, sequence_number = excluded.sequence_number, message_id = excluded.message_id,
    rejected_at = excluded.rejected_at

-- name: note_rejections
-- Insert or replace a row for each rejected record of a tenant that lives here; each key once. In order of their keys,
-- so that two replicas cannot deadlock here. Return the tenants with the named ids, which may be of other businesses. Their
-- share lock makes a mover wait, whose next look finds the rows.
WITH own AS MATERIALIZED (
    SELECT id, business_id
    FROM public.tenants
    WHERE id = ANY($2::pg_catalog.text[]) AND :takes_notes
    ORDER BY id
    FOR SHARE
), noted AS (
    INSERT INTO public.rejections (:rejection)
    SELECT :rejected_values
    FROM :rejected
    JOIN own ON own.id = rejected.tenant_id AND own.business_id = rejected.business_id
    ORDER BY rejected.tenant_id, rejected.request_id
    ON CONFLICT (tenant_id, request_id) DO UPDATE
    :replaced
)
SELECT id, business_id FROM own;

-- name: find_rejections
-- The rejected records of the tenant $1 among the request ids $2, with the business whose tenant it is: a row without a
-- request id if there is none, and no row if the tenant does not live here.
SELECT tenants.business_id, found.*
FROM public.tenants
LEFT JOIN LATERAL (
    SELECT :rejection
    FROM public.rejections
    WHERE rejections.tenant_id = tenants.id AND rejections.request_id = ANY($2::pg_catalog.text[])
) AS found ON true
WHERE tenants.id = $1 AND :lives_here;

-- name: find_rejection_of_any_tenant
-- Those of one request id: one lookup by primary key for each tenant that lives on the shard.
SELECT found.*
FROM public.tenants
CROSS JOIN LATERAL (
    SELECT :rejection
    FROM public.rejections
    WHERE rejections.tenant_id = tenants.id AND rejections.request_id = $1
) AS found
WHERE :lives_here;

-- name: note_unplaced_rejections
-- Insert or replace a row for each rejected record of a tenant without a home, or of none; each key once. None beyond
-- 10,000 rows, as anybody can name any tenant: a row for a known key may then be refused, too. In order of their keys, as
-- above. Return the keys.
INSERT INTO public.unplaced_rejections AS known (:rejection, business_id)
SELECT :rejected_values, rejected.business_id
FROM :rejected
WHERE (SELECT pg_catalog.count(*) FROM (SELECT FROM public.unplaced_rejections LIMIT 10000) AS kept) < 10000
ORDER BY rejected.request_id, rejected.tenant_id, rejected.business_id
ON CONFLICT (request_id, tenant_id, business_id) DO UPDATE
:replaced
RETURNING known.tenant_id;

-- name: find_unplaced_rejections
-- Those of the request ids $1 and the tenant $2, of the business $3 unless that is null.
SELECT :rejection
FROM public.unplaced_rejections
WHERE
    request_id = ANY($1::pg_catalog.text[]) AND tenant_id = $2
    AND ($3::pg_catalog.text IS NULL OR business_id = $3::pg_catalog.text);

-- name: find_unplaced_rejections_of_any_tenant
-- Those of one request id.
SELECT :rejection
FROM public.unplaced_rejections
WHERE request_id = $1;

-- name: forget_old_unplaced_rejections
-- Delete at most $2 of those written more than $1 seconds ago, as `forget_old_rejections` does.
DELETE FROM public.unplaced_rejections
WHERE ctid = ANY(ARRAY(
    SELECT ctid
    FROM public.unplaced_rejections
    WHERE rejected_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
    LIMIT $2
    FOR UPDATE SKIP LOCKED
));

-- name: forget_rejections_of_tenant
-- Delete at most $2 rows of one tenant.
DELETE FROM public.rejections
WHERE tenant_id = $1 AND request_id = ANY(ARRAY(SELECT request_id FROM public.rejections WHERE tenant_id = $1 LIMIT $2));

-- name: forget_old_rejections
-- Delete at most $2 of the rows written more than $1 seconds ago, by the shard's clock. Locked rows are skipped: another
-- replica is deleting or replacing them.
DELETE FROM public.rejections
WHERE ctid = ANY(ARRAY(
    SELECT ctid
    FROM public.rejections
    WHERE rejected_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
    LIMIT $2
    FOR UPDATE SKIP LOCKED
));
