-- What became of records that are no operations.

-- fragment: rejection
-- The columns that people see of a rejected record.
request_id, reason, error, dead_letter_queue, source, sequence_number, message_id, rejected_at

-- name: note_rejections
-- Insert or replace a row for each rejected record of a tenant that lives here; $1 is the dead-letter queue, $2 to $9
-- are the records. With $10 also for those of tenants without a home, or of none, but none beyond 10,000 rows, as
-- anybody can name any tenant. In order of their keys, so that two replicas cannot deadlock here. Return the tenants
-- with the named ids, which may be of other businesses, and those of the rows without a home. The share lock on the
-- first makes a mover wait, whose next look finds the rows.
WITH own AS MATERIALIZED (
    SELECT id, business_id
    FROM public.tenants
    WHERE id = ANY($2::pg_catalog.text[]) AND :takes_notes
    ORDER BY id
    FOR SHARE
), noted AS (
    INSERT INTO public.rejections AS known (tenant_id, named_tenant_id, named_business_id, :rejection)
    SELECT DISTINCT ON (coalesce(own.id, ''), rejected.request_id)
        coalesce(own.id, ''), CASE WHEN own.id IS NULL THEN rejected.tenant_id END,
        CASE WHEN own.id IS NULL THEN rejected.business_id END, rejected.request_id, rejected.reason, rejected.error,
        $1::pg_catalog.text, rejected.source, rejected.sequence_number, rejected.message_id, pg_catalog.clock_timestamp()
    FROM unnest(
        $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[],
        $6::pg_catalog.text[], $7::pg_catalog.text[], $8::pg_catalog.text[], $9::pg_catalog.text[]
    ) AS rejected (tenant_id, business_id, request_id, reason, error, source, sequence_number, message_id)
    LEFT JOIN own ON own.id = rejected.tenant_id AND own.business_id = rejected.business_id
    WHERE
        own.id IS NOT NULL
        OR $10::boolean AND (
            SELECT pg_catalog.count(*) FROM (SELECT FROM public.rejections WHERE tenant_id = '' LIMIT 10000) AS kept
        ) < 10000
    ORDER BY coalesce(own.id, ''), rejected.request_id
    ON CONFLICT (tenant_id, request_id) DO UPDATE
    SET
        named_tenant_id = excluded.named_tenant_id, named_business_id = excluded.named_business_id,
        reason = excluded.reason, error = excluded.error, dead_letter_queue = excluded.dead_letter_queue,
        source = excluded.source, sequence_number = excluded.sequence_number, message_id = excluded.message_id,
        rejected_at = excluded.rejected_at
    RETURNING known.named_tenant_id, known.named_business_id
)
SELECT id, business_id FROM own
UNION ALL
SELECT named_tenant_id, named_business_id FROM noted WHERE named_tenant_id IS NOT NULL;

-- name: find_rejections
-- The rejected record of the tenant $1 with the request id $2, and the business whose tenant it is: a row without a
-- request id if there is none, and no row if the tenant does not live here.
SELECT tenants.business_id, found.*
FROM public.tenants
LEFT JOIN LATERAL (
    SELECT :rejection
    FROM public.rejections
    WHERE rejections.tenant_id = tenants.id AND rejections.request_id = $2
) AS found ON true
WHERE tenants.id = $1 AND :lives_here;

-- name: find_rejection_of_any_tenant
-- Those of one request id: one lookup by primary key for each tenant that lives on the shard, and for none.
SELECT found.*
FROM (SELECT tenants.id FROM public.tenants WHERE :lives_here UNION ALL SELECT '') AS homes (id)
CROSS JOIN LATERAL (
    SELECT :rejection
    FROM public.rejections
    WHERE rejections.tenant_id = homes.id AND rejections.request_id = $1
) AS found;

-- name: find_unplaced_rejections
-- That of the request id $1 and the tenant $2 without a home, of the business $3 unless that is null.
SELECT :rejection
FROM public.rejections
WHERE
    tenant_id = '' AND request_id = $1 AND named_tenant_id = $2
    AND ($3::pg_catalog.text IS NULL OR named_business_id = $3::pg_catalog.text);

-- name: forget_rejections_of_tenant
-- Delete at most $2 rows of one tenant.
DELETE FROM public.rejections
WHERE tenant_id = $1 AND request_id = ANY(ARRAY(SELECT request_id FROM public.rejections WHERE tenant_id = $1 LIMIT $2));

-- name: forget_old_rejections
-- Delete at most $2 of the rows written more than $1 seconds ago, by the shard's clock. Locked rows are skipped:
-- another replica is deleting or replacing them.
DELETE FROM public.rejections
WHERE ctid = ANY(ARRAY(
    SELECT ctid
    FROM public.rejections
    WHERE rejected_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
    LIMIT $2
    FOR UPDATE SKIP LOCKED
));
