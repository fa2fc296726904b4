-- How often the operations of messages have failed.

-- name: count_failures
-- Count one failure more of each message; $1 are their tenants, $2 their ids, each message once. In order of their
-- keys, so that two replicas cannot deadlock here. A message of a tenant that lives on another shard by now is left out;
-- one that has no row yet counts here. The share lock is that of `note_rejections`.
WITH own AS MATERIALIZED (
    SELECT id, :takes_notes AS takes_notes
    FROM public.tenants
    WHERE id = ANY($1::pg_catalog.text[])
    ORDER BY id
    FOR SHARE
)
INSERT INTO public.message_failures AS known (tenant_id, message_id, failure_count, failed_at)
SELECT sent.tenant_id, sent.message_id, 1, pg_catalog.clock_timestamp()
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS sent (tenant_id, message_id)
LEFT JOIN own ON own.id = sent.tenant_id
WHERE own.takes_notes IS NOT false
ORDER BY sent.tenant_id, sent.message_id
ON CONFLICT (tenant_id, message_id) DO UPDATE
SET failure_count = known.failure_count + 1, failed_at = excluded.failed_at
RETURNING known.tenant_id, known.message_id, known.failure_count;

-- name: forget_failures
-- Delete the row of one message, unless its tenant lives on another shard by now.
DELETE FROM public.message_failures
WHERE
    tenant_id = $1
    AND message_id = $2
    AND NOT EXISTS (SELECT FROM public.tenants WHERE tenants.id = $1 AND NOT :takes_notes);

-- name: forget_failures_of_tenant
-- Delete all rows of one tenant.
DELETE FROM public.message_failures WHERE tenant_id = $1;

-- name: forget_old_failures
-- Delete at most $2 of the rows with a last failure more than $1 seconds ago, by the shard's clock. Scans the table,
-- which has a row only for messages that failed. Locked rows are skipped: another replica is deleting them.
DELETE FROM public.message_failures
WHERE ctid = ANY(ARRAY(
    SELECT ctid
    FROM public.message_failures
    WHERE failed_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
    LIMIT $2
    FOR UPDATE SKIP LOCKED
));
