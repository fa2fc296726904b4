-- The statements of one batch, in the order in which its transaction runs them (READ COMMITTED). The values of a
-- batch's operations come as texts, one a column, joined by the separator $1 (shards/postgres/queries.py); the
-- documents, $9, come as the bytes of their text, as the worker has them. A select list splits them in step, and pads
-- a shorter one with NULL; in FROM each column would first be stored as a table of its own, which takes half as long
-- again.

-- fragment: members_match
-- Whether every wanted member equals the resource's: then it changes nothing to replace them all. Linear in both
-- documents. `@>`, which takes the product of the lengths of two arrays and cannot be interrupted, is only for scalars:
-- there it takes less time where a resource does not match.
CASE
    WHEN NOT wanted.has_scalars_only OR resources.data @> wanted.members
    THEN (resources.data || wanted.members) = resources.data
    ELSE false
END

-- fragment: patch_fits
-- Whether patched data are merged here: then they are within the bounds of documents, as both parts are, for 64,000
-- bytes have no room for too many values or too much text.
pg_catalog.pg_column_size(resources.data || '{}'::pg_catalog.jsonb) + pg_catalog.pg_column_size(wave.data) <= 64000

-- name: lock_tenants
-- The rows of the tenants $1. The share lock blocks a mover's fence and a destruction until the batch has committed;
-- batches do not block each other. In order of id, so that two batches cannot deadlock here.
SELECT
    tenants.id, tenants.business_id, tenants.location_id, tenants.business_type, tenants.state, tenants.moved_to,
    tenants.created_at, tenants.number,
    coalesce(:pause_end > pg_catalog.clock_timestamp(), false) AS is_paused,
    tenants.weight, coalesce(of_business.weight, 1::pg_catalog.float8) AS business_weight,
    tenants.operations_per_s, tenants.bytes_per_s,
    of_business.operations_per_s AS business_operations_per_s, of_business.bytes_per_s AS business_bytes_per_s
FROM public.tenants
LEFT JOIN public.business_controls AS of_business ON of_business.business_id = tenants.business_id
WHERE tenants.id = ANY($1::pg_catalog.text[])
ORDER BY tenants.id
FOR SHARE OF tenants;

-- name: lock_buckets
-- What the targets $1 have saved up, and since when what was held of them may come again, in seconds; nothing of those
-- without a row. In order, against deadlocks, behind the locks of tenants and before those of the log. With the time
-- from behind the wait for the locks.
WITH locked AS MATERIALIZED (
    SELECT *
    FROM public.limit_buckets
    WHERE target = ANY($1::pg_catalog.text[])
    ORDER BY target
    FOR UPDATE
)
SELECT
    target,
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - operations_at) AS operations_s,
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - bytes_at) AS bytes_s,
    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - held_until) AS held_s
FROM locked;

-- name: change_buckets
-- Add the seconds $2 of operations and $3 of bytes to the times of the targets $1. What is held waits for $4 seconds.
INSERT INTO public.limit_buckets AS known (target, operations_at, bytes_at, held_until)
SELECT
    target,
    pg_catalog.now() + pg_catalog.make_interval(secs => operations_s::pg_catalog.float8),
    pg_catalog.now() + pg_catalog.make_interval(secs => bytes_s::pg_catalog.float8),
    pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => nullif(wait_s, '0.0')::pg_catalog.float8)
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[])
    AS sent (target, operations_s, bytes_s, wait_s)
ORDER BY target
ON CONFLICT (target) DO UPDATE SET
    operations_at = known.operations_at + (excluded.operations_at - pg_catalog.now()),
    bytes_at = known.bytes_at + (excluded.bytes_at - pg_catalog.now()),
    held_until = coalesce(excluded.held_until, known.held_until);

-- fragment: own_batch
-- The number of this transaction's batch in the log.
(
    SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text::bigint + shard_meta.batch_offset
    FROM public.shard_meta
)

-- fragment: into_log_batches
INSERT INTO public.log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)

-- fragment: into_log_rows
INSERT INTO public.log_rows (
    batch_id, position, tenant_no, request, kind, type_at, resource, origin_at, requested_at, received_at, size_bytes,
    digest
)

-- fragment: log_columns
-- The columns of rows of the log, as `log_rows` has them; $10 are microseconds since 1970, $11 bytes, $12 the digests, of 8
-- bytes each. In key order, against deadlocks.
    place::smallint, tenant_no::integer, pg_catalog.decode(request, 'hex'), kind::pg_catalog."char", type_at::smallint,
    pg_catalog.decode(nullif(resource, ''), 'hex'), origin_at::smallint, requested_at::pg_catalog.timestamptz,
    pg_catalog.to_timestamp(received_at::pg_catalog.float8 / 1000000::pg_catalog.float8),
    size_bytes::integer, substring($12::pg_catalog.bytea FROM 8 * number - 7 FOR 8)
FROM (
    SELECT
        pg_catalog.generate_subscripts(pg_catalog.string_to_array($2, $1), 1) AS number,
        pg_catalog.unnest(pg_catalog.string_to_array($2, $1)) AS place,
        pg_catalog.unnest(pg_catalog.string_to_array($3, $1)) AS tenant_no,
        pg_catalog.unnest(pg_catalog.string_to_array($4, $1)) AS request,
        pg_catalog.unnest(pg_catalog.string_to_array($5, $1)) AS kind,
        pg_catalog.unnest(pg_catalog.string_to_array($6, $1)) AS type_at,
        pg_catalog.unnest(pg_catalog.string_to_array($7, $1)) AS resource,
        pg_catalog.unnest(pg_catalog.string_to_array($8, $1)) AS origin_at,
        pg_catalog.unnest(pg_catalog.string_to_array($9, $1)) AS requested_at,
        pg_catalog.unnest(pg_catalog.string_to_array($10, $1)) AS received_at,
        pg_catalog.unnest(pg_catalog.string_to_array($11, $1)) AS size_bytes
) AS sent

-- fragment: logged_rows
-- Write the batch into the log before any effect: its row, with the types $13, the origins $14 and the numbers $15 of
-- tenants, and the rows of its operations. The row of the batch shows that all rows with its number are this
-- transaction's: it fails where another one has the number (`foreign_numbers_error`).
WITH batch AS (
    :into_log_batches
    SELECT
        :own_batch, pg_catalog.clock_timestamp(), pg_catalog.cardinality(pg_catalog.string_to_array($2, $1)), 'o',
        pg_catalog.string_to_array($15, $1)::integer[], pg_catalog.string_to_array($13, $1),
        pg_catalog.string_to_array($14, $1)
    RETURNING batch_id
)
:into_log_rows
SELECT
    (SELECT batch_id FROM batch),
:log_columns
ORDER BY tenant_no::integer, request, number

-- name: log_operations
-- An existing row, or one that another transaction is writing (this statement waits for it), stays as it is: its
-- operation was applied. Of two operations with one key the first of the batch is written.
:logged_rows
ON CONFLICT (tenant_no, request) DO NOTHING;

-- name: log_operations_new
-- The same where every row is expected to be new: fails at one that is not (23505, unique_violation), as soon as the
-- other transaction has committed it. The batch is then repeated with the statement above (apply/duplicates.py).
:logged_rows;

-- name: logged_operations
-- The rows with the keys $1, $2, by their number from 0 on: whether this transaction wrote them, and the columns that
-- distinguish a redelivery from another use of the request id.
SELECT
    (sent.number - 1)::integer AS index, log_rows.digest, log_outcomes.error, log_outcomes.sequence_number,
    pg_catalog.split_part(log_batches.origins[log_rows.origin_at], '/', 1) AS source, log_rows.requested_at,
    log_rows.received_at,
    log_rows.batch_id, log_rows.position, log_rows.batch_id = :own_batch AS is_fresh
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) WITH ORDINALITY AS sent (tenant_no, request, number)
JOIN public.log_rows
    ON log_rows.tenant_no = sent.tenant_no::integer AND log_rows.request = pg_catalog.decode(sent.request, 'hex')
JOIN public.log_batches ON log_batches.batch_id = log_rows.batch_id
LEFT JOIN public.log_outcomes
    ON log_outcomes.batch_id = log_rows.batch_id AND log_outcomes.position = log_rows.position;

-- fragment: kept_key
-- The key of a row of which another one takes the key: still in the order of the id, and the same on every shard.
'\x03'::pg_catalog.bytea || log_rows.request
|| pg_catalog.int8send((1000000::numeric * extract(EPOCH FROM seen.completed_at))::bigint)
|| pg_catalog.int2send(log_rows.position)

-- name: free_keys
-- Give other keys to the rows $1, $2: of operations that were given up and are replayed, and of order events with ids
-- that others use again. Only to a row that is in its batch $3 at $4, as seen before: of two replays at once the second
-- waits here, finds another row, and its batch is tried again. Locked in key order, against deadlocks.
WITH sent AS (
    SELECT
        named.tenant_no::integer AS tenant_no, pg_catalog.decode(named.request, 'hex') AS request,
        named.batch_id::bigint AS batch_id, named.place::smallint AS position
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[])
        AS named (tenant_no, request, batch_id, place)
), seen AS (
    SELECT log_rows.tenant_no, log_rows.request, log_batches.completed_at
    FROM sent
    JOIN public.log_rows USING (tenant_no, request, batch_id, position)
    JOIN public.log_batches USING (batch_id)
    ORDER BY log_rows.tenant_no, log_rows.request
    FOR UPDATE OF log_rows
)
UPDATE public.log_rows
SET request = :kept_key, kind = pg_catalog.upper(log_rows.kind::pg_catalog.text)::pg_catalog."char"
FROM seen
WHERE log_rows.tenant_no = seen.tenant_no AND log_rows.request = seen.request;

-- name: log_replacements
-- Write rows with keys that were freed into the batch of this transaction, of which they are.
:into_log_rows
SELECT
    :own_batch,
:log_columns
ORDER BY tenant_no::integer, request, number;

-- name: forget_empty_batch
-- Delete this transaction's batch, which has no rows: redeliveries come by the thousand.
DELETE FROM public.log_batches WHERE batch_id = :own_batch;

-- name: log_failures
-- The outcomes of the operations with the keys $1, $2 at the places $3 of this transaction's batch: errors, the
-- sequence numbers of those that were given up, and the findings of schemas. Nothing of one that was logged before.
INSERT INTO public.log_outcomes (batch_id, position, tenant_no, error, sequence_number, result)
SELECT
    log_rows.batch_id, log_rows.position, log_rows.tenant_no, sent.error, nullif(sent.sequence_number, ''),
    sent.result::pg_catalog.jsonb
FROM unnest(
    $1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[],
    $6::pg_catalog.text[]
) AS sent (tenant_no, request, place, error, sequence_number, result)
JOIN public.log_rows
    ON log_rows.tenant_no = sent.tenant_no::integer AND log_rows.request = pg_catalog.decode(sent.request, 'hex')
    AND log_rows.position = sent.place::smallint
WHERE log_rows.batch_id = :own_batch;

-- fragment: wave_values
-- `wave` is materialized, so that all data and filters are parsed first: data that cannot be stored fail the
-- statement whether the resource exists or not.
place::smallint AS place, tenant_id, operation, resource_type, resource_id, business_type,
nullif(data, '')::pg_catalog.jsonb AS data, requested_at::pg_catalog.timestamptz AS requested_at

-- fragment: wave_columns
-- The planner expects ten rows of an array, so it reads tables by their indexes.
pg_catalog.unnest(pg_catalog.string_to_array($3, $1)) AS tenant_id,
pg_catalog.unnest(pg_catalog.string_to_array($2, $1)) AS place,
pg_catalog.unnest(pg_catalog.string_to_array($4, $1)) AS operation,
pg_catalog.unnest(pg_catalog.string_to_array($5, $1)) AS resource_type,
pg_catalog.unnest(pg_catalog.string_to_array($6, $1)) AS resource_id,
pg_catalog.unnest(pg_catalog.string_to_array($7, $1)) AS business_type,
pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.convert_from($8, 'UTF8'), $1)) AS data,
pg_catalog.unnest(pg_catalog.string_to_array($9, $1)) AS requested_at

-- fragment: wave
wave AS MATERIALIZED (
    SELECT
        :wave_values
    FROM (
        SELECT
            :wave_columns
    ) AS sent
)

-- fragment: reading_wave
wave AS MATERIALIZED (
    SELECT
        :wave_values, nullif(asked, '')::pg_catalog.jsonb AS asked
    FROM (
        SELECT
            :wave_columns,
            pg_catalog.unnest(pg_catalog.string_to_array($10, $1)) AS asked
    ) AS sent
)

-- fragment: created_rows
:into_resources
SELECT tenant_id, business_type, resource_type, resource_id, data, requested_at, requested_at
FROM wave
WHERE operation = 'create'

-- fragment: created
created AS (
    :created_rows
    ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING
    RETURNING id, "resourceName", "resourceId"
)

-- fragment: created_new
-- Where every created resource is expected to be new: fails at one that is not (23505), and the batch is repeated.
created AS (
    :created_rows
)

-- fragment: flat_cases
-- Data changed by a patch without an object among its members: `||` and `-` are then all of RFC 7396.
WHEN pg_catalog.jsonb_path_exists(wave.data, 'strict $.* ? (@ == null)'::pg_catalog.jsonpath)
THEN (resources.data || wave.data) - ARRAY(
    SELECT pg_catalog.jsonb_path_query(
        wave.data, 'strict $.keyvalue() ? (@.value == null).key'::pg_catalog.jsonpath
    ) #>> '{}'::pg_catalog.text[]
)
ELSE resources.data || wave.data

-- fragment: nested_cases
-- Data changed by a patch with objects among its members; these have neither nulls nor objects (`is_laborious`).
WHEN pg_catalog.jsonb_path_exists(wave.data, 'strict $.* ? (@.type() == "object")'::pg_catalog.jsonpath)
THEN CASE
    :flat_cases
END || (
    SELECT pg_catalog.jsonb_object_agg(
        member.key,
        CASE pg_catalog.jsonb_typeof(resources.data -> member.key)
            WHEN 'object' THEN (resources.data -> member.key) || member.value
            ELSE member.value
        END
    )
    FROM pg_catalog.jsonb_each(wave.data) AS member
    WHERE pg_catalog.jsonb_typeof(member.value) = 'object'
)

-- fragment: changed_rows
FROM wave
WHERE
    wave.operation IN ('update', 'patch') AND resources.id = wave.tenant_id
    AND resources."resourceName" = wave.resource_type AND resources."resourceId" = wave.resource_id
    AND CASE WHEN wave.operation = 'patch' THEN :patch_fits ELSE true END
RETURNING wave.place

-- fragment: changed
changed AS (
    UPDATE public.resources
    SET
        data = CASE
            WHEN wave.operation = 'update' THEN wave.data
            :nested_cases
            :flat_cases
        END,
        "lastUpdated" = wave.requested_at
    :changed_rows
)

-- fragment: deleted
deleted AS (
    DELETE FROM public.resources
    USING wave
    WHERE
        wave.operation = 'delete' AND resources.id = wave.tenant_id
        AND resources."resourceName" = wave.resource_type AND resources."resourceId" = wave.resource_id
    RETURNING wave.place
)

-- fragment: missed_error
CASE
    WHEN wave.operation = 'patch' AND EXISTS (
        SELECT FROM public.resources
        WHERE
            resources.id = wave.tenant_id AND resources."resourceName" = wave.resource_type
            AND resources."resourceId" = wave.resource_id
    ) THEN 'unmerged'
    ELSE 'not_found'
END

-- fragment: undone
-- The effects are counted first: nearly always they are complete, and no failure is searched for.
undone AS (
    SELECT
        wave.place, wave.tenant_id,
        CASE WHEN wave.operation = 'create' THEN 'already_exists' ELSE :missed_error END AS error
    FROM wave
    WHERE
        (SELECT pg_catalog.count(*) FROM created) + (SELECT pg_catalog.count(*) FROM changed)
            + (SELECT pg_catalog.count(*) FROM deleted)
            < (SELECT pg_catalog.count(*) FROM wave WHERE operation IN ('create', 'update', 'patch', 'delete'))
        AND CASE
            WHEN wave.operation = 'create' THEN (wave.tenant_id, wave.resource_type, wave.resource_id) NOT IN (
                SELECT id, "resourceName", "resourceId" FROM created
            )
            WHEN wave.operation = 'delete' THEN wave.place NOT IN (SELECT place FROM deleted)
            WHEN wave.operation IN ('update', 'patch') THEN wave.place NOT IN (SELECT place FROM changed)
        END
)

-- fragment: undone_new
-- The same behind `:created_new`: all creates have an effect.
undone AS (
    SELECT wave.place, wave.tenant_id, :missed_error AS error
    FROM wave
    WHERE
        (SELECT pg_catalog.count(*) FROM changed) + (SELECT pg_catalog.count(*) FROM deleted)
            < (SELECT pg_catalog.count(*) FROM wave WHERE operation IN ('update', 'patch', 'delete'))
        AND CASE
            WHEN wave.operation = 'delete' THEN wave.place NOT IN (SELECT place FROM deleted)
            WHEN wave.operation IN ('update', 'patch') THEN wave.place NOT IN (SELECT place FROM changed)
        END
)

-- fragment: found
found AS (
    SELECT
        wave.place, wave.tenant_id, CASE WHEN resources.id IS NULL THEN 'not_found' END AS error,
        CASE WHEN resources.id IS NOT NULL THEN (:shown_resource)::pg_catalog.jsonb END AS result
    FROM wave
    LEFT JOIN public.resources ON
        resources.id = wave.tenant_id AND resources."resourceName" = wave.resource_type
        AND resources."resourceId" = wave.resource_id
    WHERE wave.operation = 'read'
)

-- fragment: matching_rows
-- The resources of a list, by what it asks (`resolved` in operations/list_query.py). Read in order of id until the page
-- is full; a list of days, a month at most, by date (`is_short`): few of a type's resources are of one month, and a
-- scan by id would read all the others too. Where it is sorted, counted or found by an index, all that match are read.
-- `row_max` is no constant: the planner would expect to read all rows, and sort them. Sorted by the type of the value
-- (numbers, texts, true and false; all else last in both directions), the value, and the id. Beside those of the page
-- are two that are `is_extra`: one that `is_beyond` the 100,000 that a list may look through, and the first one, for
-- its total.
(
    SELECT numbered.*, NOT (is_behind AND list_row > (wanted.page - 1) * wanted.page_size) AS is_extra
    FROM (
        SELECT
            placed.*,
            pg_catalog.row_number() OVER (
                PARTITION BY is_behind
                ORDER BY
                    is_beyond, is_last, sort_rank, sort_number,
                    CASE WHEN NOT (wanted.asked ->> 'isDescending'::pg_catalog.text)::boolean THEN sort_text END,
                    CASE WHEN (wanted.asked ->> 'isDescending'::pg_catalog.text)::boolean THEN sort_text END DESC,
                    "resourceId"
            ) AS list_row
        FROM (
            SELECT
                counted.*,
                wanted.after IS NULL OR CASE
                    WHEN
                        (is_last, sort_rank, sort_number)
                        <> ((wanted.after ->> 1)::boolean, (wanted.after ->> 2)::integer, (wanted.after ->> 3)::numeric)
                    THEN
                        (is_last, sort_rank, sort_number)
                        > ((wanted.after ->> 1)::boolean, (wanted.after ->> 2)::integer, (wanted.after ->> 3)::numeric)
                    WHEN sort_text <> wanted.after ->> 4
                    THEN
                        (sort_text > wanted.after ->> 4)
                        <> coalesce((wanted.asked ->> 'isDescending'::pg_catalog.text)::boolean, false)
                    ELSE "resourceId" > wanted.after ->> 5
                END AS is_behind
            FROM (
                SELECT
                    matched.*, pg_catalog.row_number() OVER () = 1 AS is_first, keys.is_last, keys.sort_rank,
                    keys.sort_number, keys.sort_text,
                    CASE
                        WHEN (wanted.asked ->> 'hasTotal'::pg_catalog.text)::boolean THEN pg_catalog.count(*) OVER ()
                    END AS total
                FROM (
                    SELECT
                        resources.*, resources.seen > 100000 AS is_beyond
                    FROM (
                        SELECT candidates.*, pg_catalog.row_number() OVER () AS seen
                        FROM (
                            (
                                SELECT resources.*
                                FROM public.resources
                                WHERE
                                    wanted.is_plain AND NOT wanted.is_short AND resources.id = wanted.tenant_id
                                    AND resources."resourceName" = wanted.resource_type
                                    AND resources."resourceId" > wanted.from_id
                                ORDER BY resources."resourceId"
                                LIMIT wanted.row_max
                            )
                            UNION ALL
                            (
                                SELECT resources.*
                                FROM public.resources
                                WHERE
                                    wanted.is_plain AND wanted.is_short AND resources.id = wanted.tenant_id
                                    AND resources."resourceName" = wanted.resource_type
                                    AND resources.date BETWEEN wanted.first_date AND wanted.last_date
                                    AND resources."resourceId" > wanted.from_id
                                ORDER BY resources."resourceId"
                                LIMIT wanted.row_max
                            )
                            UNION ALL
                            (
                                SELECT indexed.*
                                FROM public.simplu_indexed(
                                    wanted.tenant_id, wanted.resource_type, wanted.asked -> 'index'::pg_catalog.text,
                                    wanted.first_moment, wanted.moment_behind, 100001
                                ) AS indexed
                                WHERE wanted.asked -> 'index'::pg_catalog.text IS NOT NULL
                            )
                        ) AS candidates
                    ) AS resources
                    CROSS JOIN LATERAL (
                        SELECT
                            CASE
                                WHEN wanted.date_path IS NULL THEN NULL
                                WHEN
                                    (wanted.asked ->> 'orCreation'::pg_catalog.text)::boolean
                                    AND resources.data #> wanted.date_path IS NULL
                                THEN resources.date
                                WHEN pg_catalog.length(resources.data #>> wanted.date_path) = 10
                                THEN public.simplu_timestamptz(resources.data #> wanted.date_path) AT TIME ZONE 'UTC'
                                    AT TIME ZONE wanted.zone
                                ELSE public.simplu_timestamptz(resources.data #> wanted.date_path)
                            END AS moment
                        OFFSET 0
                    ) AS own
                    WHERE CASE
                        WHEN resources.seen > 100000 THEN true
                        WHEN resources.date < wanted.first_date OR resources.date > wanted.last_date THEN false
                        WHEN
                            wanted.date_path IS NOT NULL
                            AND (
                                own.moment IS NULL OR own.moment < wanted.first_moment
                                OR own.moment >= wanted.moment_behind
                            )
                        THEN false
                        WHEN
                            wanted.path IS NOT NULL
                            AND pg_catalog.jsonb_path_match(
                                resources.data, wanted.path, wanted.asked -> 'values'::pg_catalog.text, true
                            ) IS NOT TRUE
                        THEN false
                        ELSE :members_match
                    END
                    LIMIT CASE WHEN NOT wanted.is_whole THEN wanted.page * wanted.page_size + 1 END
                ) AS matched
                CROSS JOIN LATERAL (
                    SELECT
                        CASE
                            WHEN wanted.by_path IS NOT NULL THEN matched.data #> wanted.by_path
                            WHEN wanted.asked -> 'isSorted'::pg_catalog.text IS NOT NULL
                            THEN pg_catalog.to_jsonb(extract(EPOCH FROM matched.date))
                        END AS value,
                        CASE WHEN (wanted.asked ->> 'isDescending'::pg_catalog.text)::boolean THEN -1 ELSE 1 END AS sign
                    OFFSET 0
                ) AS sorted
                CROSS JOIN LATERAL (
                    SELECT
                        wanted.asked -> 'isSorted'::pg_catalog.text IS NOT NULL
                        AND pg_catalog.jsonb_typeof(sorted.value) IN ('number', 'string', 'boolean') IS NOT TRUE
                            AS is_last,
                        sorted.sign * CASE pg_catalog.jsonb_typeof(sorted.value)
                            WHEN 'number' THEN 1
                            WHEN 'string' THEN 2
                            WHEN 'boolean' THEN 3
                            ELSE 0
                        END AS sort_rank,
                        CASE
                            WHEN pg_catalog.jsonb_typeof(sorted.value) = 'number'
                            THEN sorted.sign::numeric * sorted.value::numeric
                            ELSE 0
                        END AS sort_number,
                        CASE
                            WHEN pg_catalog.jsonb_typeof(sorted.value) IN ('string', 'boolean')
                            THEN pg_catalog.left(sorted.value #>> '{}'::pg_catalog.text[], 200)
                            ELSE ''
                        END COLLATE "C" AS sort_text
                    OFFSET 0
                ) AS keys
            ) AS counted
        ) AS placed
    ) AS numbered
    WHERE
        wanted.zone IS NOT NULL
        AND (
            is_beyond AND wanted.is_whole
            OR is_first AND total IS NOT NULL
            OR is_behind AND list_row > (wanted.page - 1) * wanted.page_size
            AND list_row <= wanted.page * wanted.page_size + 1
        )
)

-- fragment: wanted
-- The lists of a wave. The days of a resource type that names its date are those of the tenant's time zone; `zone` is
-- NULL where the tenant's settings name none that there is.
zoned AS MATERIALIZED (
    SELECT
        place, tenant_id, resource_type, data AS members, asked,
        (asked ->> 'page'::pg_catalog.text)::bigint AS page, (asked ->> 'limit'::pg_catalog.text)::bigint AS page_size,
        (asked ->> 'madeFrom'::pg_catalog.text)::pg_catalog.timestamptz AS first_date,
        (asked ->> 'madeTo'::pg_catalog.text)::pg_catalog.timestamptz AS last_date,
        NOT pg_catalog.jsonb_path_exists(
            data, 'strict $.* ? (@.type() == "array" || @.type() == "object")'::pg_catalog.jsonpath
        ) AS has_scalars_only,
        coalesce(
            (
                SELECT resources.data ->> 'timezone'::pg_catalog.text
                FROM public.resources
                WHERE
                    wave.asked ->> 'orCreation'::pg_catalog.text = 'false' AND resources.id = wave.tenant_id
                    AND resources."resourceName" = 'settings' AND resources."resourceId" = 'default'
            ),
            'UTC'
        ) AS own_zone
    FROM wave
    WHERE operation = 'list'
), wanted AS MATERIALIZED (
    SELECT
        zoned.*, whole.is_whole, asked -> 'index'::pg_catalog.text IS NULL AS is_plain,
        coalesce(last_date - first_date < interval '32 days', false) AS is_short, 100001 AS row_max,
        CASE
            WHEN own_zone = 'UTC' OR public.simplu_day('2000-01-01'::pg_catalog.text, own_zone) IS NOT NULL
            THEN own_zone
        END AS zone,
        public.simplu_day(asked ->> 'first'::pg_catalog.text, own_zone) AS first_moment,
        public.simplu_day(
            ((asked ->> 'last'::pg_catalog.text)::pg_catalog.date + 1)::pg_catalog.text, own_zone
        ) AS moment_behind,
        CASE
            WHEN asked -> 'date'::pg_catalog.text IS NOT NULL
            THEN ARRAY(SELECT pg_catalog.jsonb_array_elements_text(asked -> 'date'::pg_catalog.text))
        END AS date_path,
        CASE
            WHEN pg_catalog.jsonb_array_length(asked -> 'by'::pg_catalog.text) > 0
            THEN ARRAY(SELECT pg_catalog.jsonb_array_elements_text(asked -> 'by'::pg_catalog.text))
        END AS by_path,
        nullif(asked ->> 'path'::pg_catalog.text, ''::pg_catalog.text)::pg_catalog.jsonpath AS path,
        asked -> 'after'::pg_catalog.text AS after,
        CASE WHEN is_whole THEN '' ELSE coalesce(asked -> 'after'::pg_catalog.text ->> 5, '') END COLLATE "C" AS from_id
    FROM zoned
    CROSS JOIN LATERAL (
        SELECT
            coalesce(asked ->> 'isSorted'::pg_catalog.text, asked ->> 'index'::pg_catalog.text) IS NOT NULL
            OR coalesce((asked ->> 'hasTotal'::pg_catalog.text)::boolean, false) AS is_whole
    ) AS whole
)

-- fragment: listed
-- A `list` selects by containment (`@>`), which equality implies, and then compares member by member. The page is built
-- as the text that jsonb has, and parsed once. No text is built of a page with more than eight times its bound ($11) as
-- stored: a text has an eighth of the stored bytes at least.
listed AS (
    SELECT
        wanted.place, wanted.tenant_id,
        CASE
            WHEN wanted.zone IS NULL THEN 'invalid_query'
            WHEN answer.is_beyond THEN 'query_too_large'
            WHEN NOT answer.fits THEN 'result_too_large'
        END AS error,
        CASE
            WHEN wanted.zone IS NULL
            THEN pg_catalog.jsonb_build_object(
                'member', 'settings.timezone', 'expected', 'a time zone, such as Europe/Berlin'
            )
            WHEN answer.is_beyond
            THEN pg_catalog.jsonb_build_object(
                'expected', 'at most 100000 resources to look through',
                'indexWouldHelp', wanted.asked -> 'names'::pg_catalog.text
            )
            WHEN answer.fits THEN answer.result::pg_catalog.jsonb
        END AS result
    FROM wanted
    CROSS JOIN LATERAL (
        SELECT result, is_beyond, has_texts AND pg_catalog.octet_length(result) <= $11::bigint AS fits
        FROM (
            SELECT
                '{"page": ' || wanted.page::pg_catalog.text || ', "items": ['
                || coalesce(pg_catalog.string_agg(item, ', ' ORDER BY page_row), '')
                || '], "limit": ' || wanted.page_size::pg_catalog.text
                || ', "hasMore": '
                || (pg_catalog.count(*) FILTER (WHERE NOT is_extra) > wanted.page_size)::pg_catalog.text
                || CASE
                    WHEN (wanted.asked ->> 'hasTotal'::pg_catalog.text)::boolean
                    THEN ', "total": ' || coalesce(pg_catalog.max(total), 0)::pg_catalog.text
                    ELSE ''
                END
                || CASE
                    WHEN pg_catalog.count(*) FILTER (WHERE NOT is_extra) > wanted.page_size
                    THEN ', "next": "' || pg_catalog.max(cursor) || '"'
                    ELSE ''
                END
                || '}' AS result,
                coalesce(pg_catalog.bool_or(is_beyond), false) AS is_beyond,
                coalesce(pg_catalog.bool_and(item IS NOT NULL OR NOT is_shown), true) AS has_texts
            FROM (
                SELECT
                    resources.*,
                    CASE WHEN page_row = wanted.page_size THEN pg_catalog.translate(
                        pg_catalog.encode(
                            pg_catalog.convert_to(
                                pg_catalog.json_build_array(
                                    wanted.asked ->> 'listId'::pg_catalog.text, is_last, sort_rank,
                                    sort_number::pg_catalog.text, sort_text, "resourceId"
                                )::pg_catalog.text, 'UTF8'
                            ),
                            'base64'
                        ),
                        e'\n', ''
                    ) END AS cursor,
                    CASE WHEN is_shown AND stored_bytes <= 8 * $11::bigint THEN :shown_resource END AS item
                FROM (
                    SELECT
                        matching.*, pg_catalog.row_number() OVER in_order AS page_row,
                        pg_catalog.row_number() OVER in_order <= wanted.page_size AND NOT is_extra AS is_shown,
                        pg_catalog.sum(
                            pg_catalog.pg_column_size(matching.data || '{}'::pg_catalog.jsonb)
                        ) OVER in_order AS stored_bytes
                    FROM :matching_rows AS matching
                    WINDOW in_order AS (ORDER BY is_extra, list_row, "resourceId")
                ) AS resources
            ) AS items
        ) AS page
    ) AS answer
)

-- fragment: noted
-- The outcomes of a wave: in the log, and returned where an operation has failed. An operation is of one kind, so that
-- it has one at most.
noted AS (
    INSERT INTO public.log_outcomes (batch_id, position, tenant_no, error, result)
    SELECT
        :own_batch, outcome.place,
        (SELECT tenants.number FROM public.tenants WHERE tenants.id = outcome.tenant_id),
        outcome.error, outcome.result
    FROM (
        SELECT place, tenant_id, error, NULL::pg_catalog.jsonb AS result FROM undone

-- fragment: or_found
        UNION ALL SELECT place, tenant_id, error, result FROM found

-- fragment: or_listed
        UNION ALL SELECT place, tenant_id, error, result FROM listed

-- fragment: returned
    ) AS outcome
    RETURNING position, error
)
SELECT position AS place, error FROM noted WHERE error IS NOT NULL

-- name: apply_lists
-- Apply one wave: it writes each resource at most once, and its reads see the state before it. Operations without
-- effect or without an answer have failed; these are returned, by their places in the batch. No part of a wave is
-- joined with another (`NOT IN` is by hash): the plan is made once, for arrays of any length, and a join would be in
-- nested loops. This is for all waves. A server prepares all parts of a plan again at each run, which takes as long as
-- a few operations. So the texts below, with the same first arguments, leave out parts that most waves do not need. The
-- text with `_new` behind the name of each is for a wave of which every created resource is expected to be new.
WITH :reading_wave, :created, :changed, :deleted, :undone, :found, :wanted, :listed, :noted
:or_found
:or_listed
:returned;

-- name: apply_lists_new
WITH :reading_wave, :created_new, :changed, :deleted, :undone_new, :found, :wanted, :listed, :noted
:or_found
:or_listed
:returned;

-- name: apply_reads
-- The same for waves without `list`.
WITH :wave, :created, :changed, :deleted, :undone, :found, :noted
:or_found
:returned;

-- name: apply_reads_new
WITH :wave, :created_new, :changed, :deleted, :undone_new, :found, :noted
:or_found
:returned;

-- name: apply_writes
-- The same for waves without reads.
WITH :wave, :created, :changed, :deleted, :undone, :noted
:returned;

-- name: apply_writes_new
WITH :wave, :created_new, :changed, :deleted, :undone_new, :noted
:returned;

-- name: lock_targets
-- The data of the resources $3 of types $2 of the tenants $1, by their numbers from 0 on, locked until the batch has
-- committed, so that the worker can merge patches into them; nothing of a resource that does not exist. NULL if one has
-- more than $4 bytes. In the order of the key, against deadlocks. Locked first: beside the lock, a subquery of a row
-- would keep the data from before the wait for it.
WITH locked AS MATERIALIZED (
    SELECT (sent.number - 1)::integer AS number, resources.data || '{}'::pg_catalog.jsonb AS document
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[]) WITH ORDINALITY
        AS sent (tenant_id, resource_type, resource_id, number)
    JOIN public.resources
        ON resources.id = sent.tenant_id AND resources."resourceName" = sent.resource_type
        AND resources."resourceId" = sent.resource_id
    ORDER BY resources.id, resources."resourceName", resources."resourceId"
    FOR UPDATE OF resources
)
SELECT
    number,
    CASE WHEN pg_catalog.pg_column_size(document) <= $4::bigint THEN document::pg_catalog.text END AS data
FROM locked;

-- fragment: batch_columns
-- The columns of a wave, and those of the log beside them. As texts: no data are parsed here. The numbers of the rows
-- are an array too: of `generate_subscripts` the planner expects a thousand rows, and would read tables of which it has
-- few statistics as a whole.
sent AS MATERIALIZED (
    SELECT
        :wave_columns,
        pg_catalog.unnest(
            ARRAY(SELECT pg_catalog.generate_subscripts(pg_catalog.string_to_array($3, $1), 1))
        ) AS number,
        pg_catalog.unnest(pg_catalog.string_to_array($11, $1)) AS tenant_no,
        pg_catalog.unnest(pg_catalog.string_to_array($12, $1)) AS request,
        pg_catalog.unnest(pg_catalog.string_to_array($13, $1)) AS type_at,
        pg_catalog.unnest(pg_catalog.string_to_array($14, $1)) AS resource,
        pg_catalog.unnest(pg_catalog.string_to_array($15, $1)) AS origin_at,
        pg_catalog.unnest(pg_catalog.string_to_array($16, $1)) AS received_at,
        pg_catalog.unnest(pg_catalog.string_to_array($25, $1)) AS size_bytes
)

-- fragment: known_tenants
-- The tenants $19 to $24 as the writer remembers their rows. `confirmed` are those with such a row, locked as by
-- `lock_tenants`. Not a row that was changed since the statement began, which `xmin` shows: the statement would not see
-- the other changes that were committed with it.
known AS MATERIALIZED (
    SELECT
        pg_catalog.unnest(pg_catalog.string_to_array($19, $1)) AS id,
        pg_catalog.unnest(pg_catalog.string_to_array($20, $1)) AS business_id,
        pg_catalog.unnest(pg_catalog.string_to_array($21, $1)) AS location_id,
        pg_catalog.unnest(pg_catalog.string_to_array($22, $1)) AS business_type,
        pg_catalog.unnest(pg_catalog.string_to_array($23, $1)) AS created_at,
        pg_catalog.unnest(pg_catalog.string_to_array($24, $1)) AS number
), seen AS MATERIALIZED (
    SELECT tenants.id, tenants.xmin AS version
    FROM public.tenants
    JOIN known ON tenants.id = known.id
)

-- fragment: matching_tenant
-- Weights and limits are read by the single steps.
tenants.state = 'active' AND tenants.business_id = known.business_id AND tenants.location_id = known.location_id
AND tenants.business_type = known.business_type AND tenants.created_at = known.created_at::pg_catalog.timestamptz
AND tenants.number = known.number::integer AND tenants.xmin = seen.version
AND coalesce(tenants.paused_until <= pg_catalog.clock_timestamp(), true)
AND tenants.weight = 1::pg_catalog.float8 AND tenants.operations_per_s IS NULL AND tenants.bytes_per_s IS NULL
AND NOT EXISTS (
    SELECT FROM public.business_controls AS of_business
    WHERE
        of_business.business_id = tenants.business_id
        AND (
            of_business.paused_until > pg_catalog.clock_timestamp() OR of_business.weight <> 1::pg_catalog.float8
            OR of_business.operations_per_s IS NOT NULL OR of_business.bytes_per_s IS NOT NULL
        )
)

-- fragment: locked_tenants
SELECT tenants.id
FROM public.tenants
JOIN known ON tenants.id = known.id
JOIN seen ON seen.id = known.id
WHERE :matching_tenant

-- fragment: logged_fast
-- The batch and its rows of the log, and then the wave and its created resources, as `log_operations_new` and
-- `apply_writes_new` do; nothing of all unless the rows of all tenants are `confirmed`. $10 are the digests.
batch AS (
    :into_log_batches
    SELECT
        :own_batch, pg_catalog.clock_timestamp(), pg_catalog.cardinality(pg_catalog.string_to_array($3, $1)), 'o',
        pg_catalog.string_to_array($24, $1)::integer[], pg_catalog.string_to_array($17, $1),
        pg_catalog.string_to_array($18, $1)
    WHERE
        (SELECT pg_catalog.count(*) FROM confirmed)
        = pg_catalog.cardinality(pg_catalog.string_to_array($19, $1))
    RETURNING batch_id
), logged AS (
    :into_log_rows
    SELECT
        (SELECT batch_id FROM batch), place::smallint, tenant_no::integer, pg_catalog.decode(request, 'hex'),
        pg_catalog."left"(operation, 1)::pg_catalog."char", type_at::smallint, pg_catalog.decode(resource, 'hex'),
        origin_at::smallint, requested_at::pg_catalog.timestamptz,
        pg_catalog.to_timestamp(received_at::pg_catalog.float8 / 1000000::pg_catalog.float8),
        size_bytes::integer, substring($10::pg_catalog.bytea FROM 8 * number - 7 FOR 8)
    FROM sent
    WHERE (SELECT pg_catalog.count(*) FROM batch) > 0
    ORDER BY tenant_no::integer, request, number
    RETURNING 1
), wave AS MATERIALIZED (
    SELECT
        :wave_values
    FROM sent
    WHERE (SELECT pg_catalog.count(*) FROM logged) > 0
), :created_new

-- fragment: missed_fast
-- The operations without effect; or that nothing was applied.
:undone_new, :noted
:returned
UNION ALL SELECT NULL, 'unconfirmed' WHERE (SELECT pg_catalog.count(*) FROM logged) = 0

-- fragment: confirmed_tenants
confirmed AS MATERIALIZED (
    :locked_tenants
    ORDER BY tenants.id
    FOR SHARE OF tenants
)

-- fragment: claimed_tenants
-- First the position, as `update_position` sets it; not in a row that was changed since the statement began.
written AS (
    UPDATE public.stream_positions
    SET
        pending_from = $28, pending_since = $29, read_to = $30, held = $31::pg_catalog.text[], parents_done = $32,
        read_up_to = $33, token = $35::pg_catalog.uuid
    WHERE
        stream = $26 AND stream_shard_id = $27 AND token = ANY($34::pg_catalog.text[]::pg_catalog.uuid[])
        AND xmin = (SELECT xmin FROM public.stream_positions WHERE stream = $26 AND stream_shard_id = $27)
    RETURNING 1
), confirmed AS MATERIALIZED (
    :locked_tenants AND (SELECT pg_catalog.count(*) FROM written) = 1
    ORDER BY tenants.id
    FOR SHARE OF tenants
)

-- name: fast_path
-- Apply a batch of one wave in one round trip, where all is expected to be as usual: the tenants' rows are as the
-- writer remembers them, and all rows of the log and all created resources are new. Otherwise the row 'unconfirmed' is
-- returned, or the statement fails (23505), and the transaction is repeated step by step. The operations without effect
-- are returned. The locks are taken in the order of the single steps. For waves without reads.
WITH :batch_columns, :known_tenants, :confirmed_tenants, :logged_fast, :changed, :deleted, :missed_fast;

-- name: fast_path_claimed
-- The same as `fast_path` for a batch with one claim, of which the row is known.
WITH :batch_columns, :known_tenants, :claimed_tenants, :logged_fast, :changed, :deleted, :missed_fast;

-- name: fail_operation
-- The outcome $3 of the operation of the tenant $1 at the place $2 of this transaction's batch, with the finding $4.
INSERT INTO public.log_outcomes (batch_id, position, tenant_no, error, result)
SELECT :own_batch, $2::smallint, tenants.number, $3, $4::pg_catalog.text::pg_catalog.jsonb
FROM public.tenants
WHERE tenants.id = $1;
