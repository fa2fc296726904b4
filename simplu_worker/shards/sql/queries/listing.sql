-- The operations of one tenant, newest first, in pages.
--
-- The log has no index by tenant and time: one more index would cost every operation, and these lists are for people.
-- The obvious query, `WHERE tenant_id = $1 ORDER BY completed_at DESC LIMIT 50` on the view, reads the log of all
-- tenants, or all of the tenant's, whichever the planner takes for less; both take longer with every row of the log.
--
-- So the work is bounded, whatever the data and the statistics are (shards/listing.py):
--
-- * `has_few_operations` counts up to 5,000 rows of the tenant in the primary key (1 ms). A tenant with no more has them
--   all read and sorted.
-- * For others `search_operations` reads the batches of all tenants by time, and the rows of those that have the tenant.
--   A chunk ends after a number of batches and rows. A page takes a bounded number of chunks, and reports how far it
--   came: it may be short, or empty. A tenant with many operations has a full page after one chunk.
--
-- Deleted rows that are not vacuumed yet are not counted, and a row on a cold page takes longer: a timeout of each
-- statement bounds these. Each chunk is a transaction of its own, so that neither a connection nor a snapshot is held
-- for longer. The settings of such a transaction (statement_timeouts.py) leave the planner no other way.
--
-- $1 is the tenant; $2 and $3 the position after which the page begins, see `is_after`; $4 the oldest time; $5 to $8 the
-- wanted names of a resource type, id of resource, status and error, null for any; $9 the most operations to return.

-- fragment: listed_operation
-- What a list has of an operation: no result, which may be large.
request_id, status, operation, resource_type, resource_id, error, received_at, completed_at

-- fragment: is_listed
-- Whether a row is wanted, and comes after the position: the operations completed before $2, and of those completed at
-- $2 the ones with a request id before $3, all of them without $3. Time and request id are a key within a tenant.
completed_at <= $2
AND completed_at >= $4
AND (completed_at < $2 OR $3::pg_catalog.text IS NULL OR request_id < $3)
AND ($5::pg_catalog.text[] IS NULL OR resource_type = ANY($5))
AND ($6::pg_catalog.text IS NULL OR resource_id = $6)
AND ($7::pg_catalog.text IS NULL OR status = $7)
AND ($8::pg_catalog.text IS NULL OR error = $8)

-- fragment: own_operations
-- The operations of the tenant in the batches of `searched`. OFFSET 0: batch by batch, by the index of batches.
CROSS JOIN LATERAL (
    SELECT :listed_operation
    FROM public.operations
    WHERE operations.tenant_id = $1 AND operations.batch_id = searched.batch_id
    OFFSET 0
) AS own

-- name: search_operations
-- The operations of the tenant in the newest batches of all tenants that are not newer than $2: $10 batches, and of those
-- with the tenant as many as have $10 rows together; always all of one time. With the number of these rows and batches,
-- the time of the oldest, and whether there are no more. There is one row without an operation if there is none. A batch
-- has one time, so that the batches are read one by one, newest first, until there are $9 operations.
WITH scanned AS MATERIALIZED (
    SELECT batch_id, completed_at, row_count, :number_of_tenant = ANY(tenants) AS has_tenant
    FROM public.log_batches
    WHERE completed_at <= $2 AND completed_at >= $4
    ORDER BY completed_at DESC
    FETCH FIRST $10 ROWS WITH TIES
), own_batches AS (
    SELECT
        batch_id, completed_at, row_count,
        coalesce(pg_catalog.sum(row_count) OVER (ORDER BY completed_at DESC RANGE UNBOUNDED PRECEDING EXCLUDE GROUP), 0)
            AS row_count_before
    FROM scanned
    WHERE has_tenant
), taken AS MATERIALIZED (
    SELECT batch_id, completed_at, row_count FROM own_batches WHERE row_count_before < $10
), chunk AS MATERIALIZED (
    SELECT
        CASE WHEN is_whole THEN batch_count + row_count ELSE row_count END AS row_count,
        CASE WHEN is_whole THEN oldest ELSE oldest_taken END AS oldest,
        is_whole AND batch_count < $10 AS is_last
    FROM (
        SELECT
            pg_catalog.count(*) AS batch_count, pg_catalog.min(completed_at) AS oldest,
            pg_catalog.count(*) FILTER (WHERE has_tenant) = (SELECT pg_catalog.count(*) FROM taken) AS is_whole
        FROM scanned
    ) AS of_scanned
    CROSS JOIN (
        SELECT
            coalesce(pg_catalog.sum(row_count), 0)::bigint AS row_count, pg_catalog.min(completed_at) AS oldest_taken
        FROM taken
    ) AS of_taken
)
SELECT chunk.row_count, chunk.oldest, chunk.is_last, found.*
FROM chunk
LEFT JOIN LATERAL (
    SELECT own.*
    FROM (
        SELECT taken.batch_id, taken.completed_at AS batch_at
        FROM taken
        ORDER BY taken.completed_at DESC
    ) AS searched
    :own_operations
    WHERE :is_listed
    ORDER BY searched.batch_at DESC, request_id DESC
    LIMIT $9
) AS found ON true
ORDER BY found.completed_at DESC, found.request_id DESC;

-- name: has_few_operations
-- Whether the tenant has no more than $2 rows in the log. Reads the primary key only, where the log is vacuumed.
SELECT pg_catalog.count(*) <= $2
FROM (
    SELECT
    FROM public.log_rows
    WHERE tenant_no = :number_of_tenant
    LIMIT $2 + 1::bigint
) AS first;

-- name: list_few_operations
-- The operations of a tenant that has few, $10 when they were counted. First their keys: in this order, and with a
-- LIMIT, the planner takes them from the primary key, whatever the statistics are.
SELECT own.*
FROM (
    SELECT log_rows.request
    FROM public.log_rows
    WHERE log_rows.tenant_no = :number_of_tenant
    ORDER BY log_rows.request
    LIMIT 2 * $10::bigint
) AS few
CROSS JOIN LATERAL (
    SELECT :listed_operation
    FROM public.operations
    WHERE operations.tenant_id = $1 AND operations.request_key = few.request
    OFFSET 0
) AS own
WHERE :is_listed
ORDER BY completed_at DESC, request_id DESC
LIMIT $9;
