-- The operations of one tenant, newest first, in pages.
--
-- The log has no index by tenant and time: one more index would cost every operation, and these lists are for people.
-- Measured on 2,000,000 rows of 200 tenants, 534 MB, in memory (PostgreSQL 18): the obvious query, `WHERE tenant_id = $1
-- ORDER BY completed_at DESC LIMIT 50`, takes 0.1 ms for a tenant of 1,000,000 rows, and 0.5 to 0.8 s for one of 10: the
-- planner reads the index by time backwards through the whole log until it has 50 rows. By primary key it takes 0.1 ms
-- for the small tenant, and 0.8 s for the large one: all its rows are sorted. And where the statistics are old, or
-- for a resource with few operations, the planner chooses the wrong one of the two. All of these take longer with every
-- row of the log.
--
-- So the work is bounded by rows, whatever the data and the statistics are (shards/listing/lister.py):
--
-- * `search_operations` reads a chunk of the log of all tenants by time, 10,000 rows in 5 to 20 ms, and returns those of
--   the tenant. A page takes a bounded number of chunks, and reports how far it came: it may be short, or empty. A
--   tenant with many operations has a full page after one chunk.
-- * If the first chunk does not fill the page, `has_few_operations` counts up to 5,000 operations of the tenant in the
--   primary key (1 ms). A tenant with no more has them all read and sorted: 20 ms, and 0.1 ms for 10.
--
-- A page of the large tenant takes 14 ms so, one of the small tenant 7 ms, and one for a resource with three operations
-- of the large tenant 0.2 to 0.5 s, after which the next page goes on; the whole log is read in 10 of these.
--
-- Deleted rows that are not vacuumed yet are not counted, and a row on a cold page takes longer: a timeout of each
-- statement bounds these. Each chunk is a transaction of its own, so that neither a connection nor a snapshot is held
-- for longer. The settings of such a transaction (statement_timeouts.py) leave the planner no other way.
--
-- $1 is the tenant; $2 and $3 the position after which the page begins, see `is_after`; $4 the oldest time; $5 to $8 the
-- wanted type and id of resource, status and error, null for any; $9 the most operations to return.

-- fragment: listed_operation
-- What a list has of an operation: no result, which may be large.
request_id, status, operation, resource_type, resource_id, error, received_at, completed_at

-- fragment: is_listed
-- Whether a row is wanted, and comes after the position: the operations completed before $2, and of those completed at
-- $2 the ones with a request id before $3, all of them without $3. Time and request id are a key within a tenant.
completed_at <= $2
AND completed_at >= $4
AND (completed_at < $2 OR $3::pg_catalog.text IS NULL OR request_id < $3)
AND ($5::pg_catalog.text IS NULL OR resource_type = $5)
AND ($6::pg_catalog.text IS NULL OR resource_id = $6)
AND ($7::pg_catalog.text IS NULL OR status = $7)
AND ($8::pg_catalog.text IS NULL OR error = $8)

-- name: search_operations
-- The operations of the tenant among the newest $10 rows of all tenants that are not newer than $2; with the number of
-- these rows, and the time of the oldest. The chunk may end between rows of one time, so that these are not returned
-- unless it is the last chunk. There is one row without an operation if there is none.
WITH scanned AS MATERIALIZED (
    SELECT tenant_id, :listed_operation
    FROM public.operations
    WHERE completed_at <= $2 AND completed_at >= $4
    ORDER BY completed_at DESC
    LIMIT $10
), chunk AS (
    SELECT pg_catalog.count(*) AS row_count, pg_catalog.min(completed_at) AS oldest FROM scanned
)
SELECT chunk.row_count, chunk.oldest, found.*
FROM chunk
LEFT JOIN LATERAL (
    SELECT :listed_operation
    FROM scanned
    WHERE tenant_id = $1 AND (chunk.row_count < $10 OR completed_at > chunk.oldest) AND :is_listed
    ORDER BY completed_at DESC, request_id DESC
    LIMIT $9
) AS found ON true
ORDER BY found.completed_at DESC, found.request_id DESC;

-- name: search_operations_of_instant
-- The operations of the tenant that were completed at $2, for an instant with more rows than a chunk. Workers write no
-- such instant, as each row has the clock's own time; another program may.
SELECT :listed_operation
FROM public.operations
WHERE tenant_id = $1 AND completed_at = $2 AND :is_listed
ORDER BY request_id DESC
LIMIT $9;

-- name: has_few_operations
-- Whether the tenant has no more than $2 operations. Reads the primary key only, where the log is vacuumed.
SELECT pg_catalog.count(*) <= $2
FROM (SELECT FROM public.operations WHERE tenant_id = $1 LIMIT $2 + 1::bigint) AS first;

-- name: list_few_operations
-- The operations of a tenant that has few. OFFSET 0 keeps the planner from reading the index by time instead.
SELECT :listed_operation
FROM (SELECT :listed_operation FROM public.operations WHERE tenant_id = $1 OFFSET 0) AS own
WHERE :is_listed
ORDER BY completed_at DESC, request_id DESC
LIMIT $9;
