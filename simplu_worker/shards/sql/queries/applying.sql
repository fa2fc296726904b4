-- The statements of one batch, in the order in which its transaction runs them (READ COMMITTED). The values of a
-- batch's operations come as texts, one a column, joined by the separator $1 (shards/postgres/column_packing.py); the
-- documents, $9, come as the bytes of their text, as the worker has them. A select list splits them in step, and pads
-- a shorter one with NULL; in FROM each column would first be stored as a table of its own, which takes half as long
-- again.

-- fragment: utc_format
-- Of times in results (docs/interface.md), for times at UTC.
'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'

-- fragment: members_match
-- Whether every wanted member equals the resource's: then it changes nothing to replace them all. Linear in both
-- documents. `@>`, which takes the product of the lengths of two arrays and cannot be interrupted, is only for scalars:
-- there it takes less time where a resource does not match. A resource much smaller than the members cannot match.
CASE
    WHEN
        wanted.size > 4096 AND wanted.size > 4 * pg_catalog.pg_column_size(resources.data || '{}'::pg_catalog.jsonb)
    THEN false
    WHEN NOT wanted.has_scalars_only OR resources.data @> wanted.members
    THEN (resources.data || wanted.members) = resources.data
    ELSE false
END

-- fragment: numbers_of_document
-- The numbers of `checked.document`. From an array: the rows of `jsonb_path_query` take quadratic time for their number.
pg_catalog.jsonb_array_elements(
    pg_catalog.jsonb_path_query_array(checked.document, 'strict $.** ? (@.type() == "number")'::pg_catalog.jsonpath)
) AS element

-- fragment: has_long_number
-- Whether `checked.document` has a number that takes more than 1,000 digits to write out. Builds no text of a number
-- that is much longer.
EXISTS (
    SELECT FROM :numbers_of_document
    WHERE CASE
        WHEN pg_catalog.abs(element::numeric) < 1e100 AND pg_catalog.scale(element::numeric) < 100 THEN false
        WHEN pg_catalog.abs(element::numeric) >= 1e1000 OR pg_catalog.scale(element::numeric) > 1000 THEN true
        ELSE
            pg_catalog.octet_length(pg_catalog.abs(element::numeric)::pg_catalog.text)
            - (pg_catalog.scale(element::numeric) > 0)::integer > 1000
    END
)

-- fragment: is_within_bounds
-- Whether `checked.document` may be stored (operations/document_bounds.py has the same bounds). A value takes more than
-- four bytes, so that a small document can only have too long a number. Once there is none of these, the text of any
-- document is at most a hundred times as long as the document.
CASE
    WHEN :has_long_number THEN false
    WHEN pg_catalog.pg_column_size(checked.document) <= 100000 THEN true
    WHEN
        pg_catalog.jsonb_array_length(
            pg_catalog.jsonb_path_query_array(checked.document, 'strict $.**.type()'::pg_catalog.jsonpath)
        ) > 100001
    THEN false
    ELSE pg_catalog.octet_length(checked.document::pg_catalog.text) <= 16977216
END

-- fragment: extreme_numbers
-- The numbers that may take far more bytes as text than as jsonb: large ones, tiny ones, and zeros, of which only the
-- text has the scale. The first filter drops nearly all others after two comparisons.
strict $.** ? (@ < 1e-30 || @ >= 1e30) ? (@ >= 1e30 || @ <= -1e30 || @ > -1e-30)

-- fragment: has_bounded_text
-- Whether the text of `checked.document` has no more than 32 MiB, as far as its numbers decide: 250 of these make it no
-- longer, and 3,000 bytes have no more of them, since a number takes 12 at least. The estimate is at most twice as much.
CASE
    WHEN
        pg_catalog.pg_column_size(checked.document) <= 3000
        OR pg_catalog.jsonb_array_length(
            pg_catalog.jsonb_path_query_array(checked.document, ':extreme_numbers'::pg_catalog.jsonpath)
        ) <= 250
    THEN true
    ELSE (
        SELECT
            pg_catalog.sum(
                pg_catalog.scale(element::numeric) + CASE
                    WHEN pg_catalog.abs(element::numeric) < 1e1000 THEN 0
                    WHEN pg_catalog.abs(element::numeric) < 1e2000 THEN 2000
                    WHEN pg_catalog.abs(element::numeric) < 1e4000 THEN 4000
                    WHEN pg_catalog.abs(element::numeric) < 1e8000 THEN 8000
                    WHEN pg_catalog.abs(element::numeric) < 1e16000 THEN 16000
                    WHEN pg_catalog.abs(element::numeric) < 1e32000 THEN 32000
                    WHEN pg_catalog.abs(element::numeric) < 1e64000 THEN 64000
                    ELSE 131072
                END
            ) <= 33554432
        FROM :numbers_of_document
    )
END

-- fragment: text_bytes
-- The length of the text of `checked.document`; of one that is much too long, which is not built, more than 32 MiB.
CASE WHEN :has_bounded_text THEN pg_catalog.octet_length(checked.document::pg_catalog.text) ELSE 33554433 END

-- fragment: least_text_bytes
-- A bound below the length of the text of `counted.document`, for less work than the length. The text has an eighth of
-- the stored bytes at least, and 31 for each number from 1e30 on or nearer to zero than 1e-30.
CASE
    WHEN counted.stored_bytes > 8 * $15::bigint THEN $15::bigint + 1
    WHEN pg_catalog.pg_column_size(counted.document) <= 2000 THEN 0
    ELSE 31 * pg_catalog.jsonb_array_length(
        pg_catalog.jsonb_path_query_array(
            counted.document,
            'strict $.** ? (@ >= 1e30 || @ <= -1e30 || (@ > 0 && @ < 1e-30) || (@ < 0 && @ > -1e-30))'::pg_catalog.jsonpath
        )
    )
END

-- fragment: patch_fits
-- Whether patched data may certainly be stored, and are merged here. The patch itself may, as it is applied. Small data
-- without an extreme number stay so: 32,000 bytes have no room for too many values or too much text. A zero is too long
-- only with about as many zeros behind its point.
CASE
    WHEN
        pg_catalog.pg_column_size(resources.data || '{}'::pg_catalog.jsonb) <= 300
        AND pg_catalog.pg_column_size(wave.data) <= 32000
    THEN pg_catalog.octet_length(resources.data::pg_catalog.text) <= 1000
    WHEN
        pg_catalog.pg_column_size(resources.data || '{}'::pg_catalog.jsonb) + pg_catalog.pg_column_size(wave.data)
        > 32000
    THEN false
    WHEN NOT pg_catalog.jsonb_path_exists(resources.data, ':extreme_numbers'::pg_catalog.jsonpath) THEN true
    WHEN pg_catalog.jsonb_path_exists(resources.data, ':extreme_numbers ? (@ != 0)'::pg_catalog.jsonpath) THEN false
    ELSE pg_catalog.strpos(resources.data::pg_catalog.text, pg_catalog.repeat('0'::pg_catalog.text, 900)) = 0
END

-- fragment: deep_merge
-- RFC 7396 for the jsonb `merging.target` and the object `merging.patch`. `node` has the objects of the patch, each with the value that it
-- patches; `flat` merges all members of each that are no objects; `merged` puts the objects of a level into those
-- above, from the deepest on. A patch with more than 1,024 levels is an error of its data (22P02).
(
    WITH RECURSIVE node AS (
        SELECT
            0 AS level, ''::pg_catalog.text AS place, ''::pg_catalog.text AS parent, ''::pg_catalog.text AS key,
            merging.target, merging.patch
        UNION ALL
        SELECT
            node.level + 1, node.place || '/'::pg_catalog.text || member.number::pg_catalog.text, node.place,
            member.key,
            node.target -> member.key, member.value
        FROM node
        CROSS JOIN LATERAL pg_catalog.jsonb_each(node.patch) WITH ORDINALITY AS member (key, value, number)
        WHERE pg_catalog.jsonb_typeof(member.value) = 'object' AND node.level <= 1024
    ), flat AS (
        SELECT
            node.level, node.place, node.parent, node.key,
            CASE
                WHEN pg_catalog.jsonb_typeof(node.target) = 'object' THEN node.target - special.keys
                ELSE '{}'::pg_catalog.jsonb
            END || (node.patch - special.keys) AS members
        FROM node
        CROSS JOIN LATERAL (
            SELECT ARRAY(
                SELECT member.key
                FROM pg_catalog.jsonb_each(node.patch) AS member
                WHERE pg_catalog.jsonb_typeof(member.value) IN ('null', 'object')
            ) AS keys
        ) AS special
    ), merged AS (
        SELECT
            pg_catalog.max(flat.level) AS level,
            CASE
                WHEN pg_catalog.max(flat.level) <= 1024 THEN '{}'::pg_catalog.jsonb
                ELSE ('levels: '::pg_catalog.text || pg_catalog.max(flat.level)::pg_catalog.text)::pg_catalog.jsonb
            END AS below
        FROM flat
        UNION ALL
        SELECT
            merged.level - 1,
            (
                SELECT pg_catalog.jsonb_object_agg(siblings.parent, siblings.members)
                FROM (
                    SELECT
                        flat.parent,
                        pg_catalog.jsonb_object_agg(
                            flat.key, flat.members || coalesce(merged.below -> flat.place, '{}'::pg_catalog.jsonb)
                        ) AS members
                    FROM flat
                    WHERE flat.level = merged.level
                    GROUP BY flat.parent
                ) AS siblings
            )
        FROM merged
        WHERE merged.level >= 0
    )
    SELECT merged.below -> ''::pg_catalog.text -> ''::pg_catalog.text FROM merged WHERE merged.level < 0
)

-- name: lock_tenants
-- The rows of the tenants $1. The share lock blocks a mover's fence and a destruction until the batch has committed;
-- batches do not block each other. In order of id, so that two batches cannot deadlock here.
SELECT id, business_id, location_id, business_type, state, moved_to, created_at
FROM public.tenants
WHERE id = ANY($1::pg_catalog.text[])
ORDER BY id
FOR SHARE;

-- fragment: logged_rows
-- Write the batch into the log before any effect. In key order, against deadlocks. $13 are the digests, of 33 bytes each.
INSERT INTO public.operations (
    tenant_id, request_id, operation, resource_type, resource_id, status, error, digest,
    source, stream_shard_id, sequence_number, requested_at, received_at
)
SELECT
    tenant_id, request_id, operation, resource_type, nullif(resource_id, ''),
    CASE WHEN error = '' IS NOT FALSE THEN 'succeeded' ELSE 'failed' END, nullif(error, ''),
    substring($13::pg_catalog.bytea FROM 33 * position - 32 FOR 33), source, nullif(stream_shard_id, ''),
    nullif(sequence_number, ''), requested_at::pg_catalog.timestamptz, received_at::pg_catalog.timestamptz
FROM (
    SELECT
        pg_catalog.generate_subscripts(pg_catalog.string_to_array($2, $1), 1) AS position,
        pg_catalog.unnest(pg_catalog.string_to_array($2, $1)) AS tenant_id,
        pg_catalog.unnest(pg_catalog.string_to_array($3, $1)) AS request_id,
        pg_catalog.unnest(pg_catalog.string_to_array($4, $1)) AS operation,
        pg_catalog.unnest(pg_catalog.string_to_array($5, $1)) AS resource_type,
        pg_catalog.unnest(pg_catalog.string_to_array($6, $1)) AS resource_id,
        pg_catalog.unnest(pg_catalog.string_to_array($7, $1)) AS error,
        pg_catalog.unnest(pg_catalog.string_to_array($8, $1)) AS source,
        pg_catalog.unnest(pg_catalog.string_to_array($9, $1)) AS stream_shard_id,
        pg_catalog.unnest(pg_catalog.string_to_array($10, $1)) AS sequence_number,
        pg_catalog.unnest(pg_catalog.string_to_array($11, $1)) AS requested_at,
        pg_catalog.unnest(pg_catalog.string_to_array($12, $1)) AS received_at
) AS batch
ORDER BY tenant_id COLLATE "C", request_id COLLATE "C", position

-- name: log_operations
-- An existing row, or one that another transaction is writing (this statement waits for it), stays as it is: its
-- operation was applied. Of two operations with one key the first of the batch is written.
:logged_rows
ON CONFLICT (tenant_id, request_id) DO NOTHING;

-- name: log_operations_new
-- The same where every row is expected to be new: fails at one that is not (23505, unique_violation), as soon as the
-- other transaction has committed it. The batch is then repeated with the statement above (apply/duplicates.py).
:logged_rows;

-- name: logged_operations
-- The rows of the batch's operations: whether this transaction wrote them, and the columns that distinguish a
-- redelivery from another use of the request id.
SELECT
    tenant_id, request_id, digest, error, source, stream_shard_id, sequence_number, requested_at,
    xid::pg_catalog.text AS xid, xid = pg_catalog.pg_current_xact_id() AS is_fresh
FROM public.operations
JOIN unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS batch (tenant_id, request_id)
    USING (tenant_id, request_id);

-- name: replace_rows
-- Replace the rows of operations that were given up by those of their replays, and rows of order events by those of
-- other events with their ids. These are then applied as new ones. Only a row still written by the transaction $3, as
-- seen before: of two replays at once the second waits here, finds another row, and its batch is tried again. So each
-- row is replaced once, and a repetition replaces none. Locked in key order, against deadlocks.
WITH replacement AS (
    SELECT *
    FROM unnest(
        $1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[],
        $5::pg_catalog.text[], $6::pg_catalog.text[], $7::pg_catalog.text[], $8::pg_catalog.text[],
        $9::pg_catalog.text[], $10::pg_catalog.text[], $11::pg_catalog.text[], $12::pg_catalog.text[],
        $13::pg_catalog.text[]
    ) AS sent (
        tenant_id, request_id, seen_xid, error, source, stream_shard_id, sequence_number, requested_at, received_at,
        operation, resource_type, resource_id, digest
    )
), seen AS (
    SELECT replacement.*
    FROM public.operations
    JOIN replacement USING (tenant_id, request_id)
    WHERE operations.xid = replacement.seen_xid::pg_catalog.xid8
    ORDER BY tenant_id, request_id
    FOR UPDATE OF operations
)
UPDATE public.operations
SET
    operation = seen.operation,
    resource_type = seen.resource_type,
    resource_id = seen.resource_id,
    digest = pg_catalog.decode(seen.digest, 'hex'),
    status = CASE WHEN seen.error IS NULL THEN 'succeeded' ELSE 'failed' END,
    error = seen.error,
    result = NULL,
    source = seen.source,
    stream_shard_id = seen.stream_shard_id,
    sequence_number = seen.sequence_number,
    xid = pg_catalog.pg_current_xact_id(),
    requested_at = seen.requested_at::pg_catalog.timestamptz,
    received_at = seen.received_at::pg_catalog.timestamptz,
    completed_at = pg_catalog.clock_timestamp()
FROM seen
WHERE operations.tenant_id = seen.tenant_id AND operations.request_id = seen.request_id;

-- fragment: wave_values
-- `wave` is materialized, so that all data and filters are parsed first: data that cannot be stored fail the
-- statement whether the resource exists or not.
$2::bigint + position - 1 AS index, tenant_id, request_id, operation, resource_type, resource_id, business_type,
nullif(data, '')::pg_catalog.jsonb AS data, requested_at::pg_catalog.timestamptz AS requested_at

-- fragment: wave_columns
-- The planner expects ten rows of an array, so it reads tables by their indexes. So the positions are an array too: of
-- `generate_subscripts` the planner expects a thousand rows, and would read tables of which it has few statistics as a
-- whole.
pg_catalog.unnest(
    ARRAY(SELECT pg_catalog.generate_subscripts(pg_catalog.string_to_array($3, $1), 1))
) AS position,
pg_catalog.unnest(pg_catalog.string_to_array($3, $1)) AS tenant_id,
pg_catalog.unnest(pg_catalog.string_to_array($4, $1)) AS request_id,
pg_catalog.unnest(pg_catalog.string_to_array($5, $1)) AS operation,
pg_catalog.unnest(pg_catalog.string_to_array($6, $1)) AS resource_type,
pg_catalog.unnest(pg_catalog.string_to_array($7, $1)) AS resource_id,
pg_catalog.unnest(pg_catalog.string_to_array($8, $1)) AS business_type,
pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.convert_from($9, 'UTF8'), $1)) AS data,
pg_catalog.unnest(pg_catalog.string_to_array($10, $1)) AS requested_at

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
        :wave_values,
        nullif(first_date, '')::pg_catalog.timestamptz AS first_date,
        nullif(last_date, '')::pg_catalog.timestamptz AS last_date,
        nullif(page, '')::bigint AS page, nullif(page_size, '')::bigint AS page_size
    FROM (
        SELECT
            :wave_columns,
            pg_catalog.unnest(pg_catalog.string_to_array($11, $1)) AS first_date,
            pg_catalog.unnest(pg_catalog.string_to_array($12, $1)) AS last_date,
            pg_catalog.unnest(pg_catalog.string_to_array($13, $1)) AS page,
            pg_catalog.unnest(pg_catalog.string_to_array($14, $1)) AS page_size
    ) AS sent
)

-- fragment: created_rows
INSERT INTO public.resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
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
-- Data changed by a patch with objects among its members. `:deep_merge` takes up to three times as long as the rest.
WHEN pg_catalog.jsonb_path_exists(wave.data, 'strict $.* ? (@.type() == "object")'::pg_catalog.jsonpath)
THEN CASE
    WHEN pg_catalog.jsonb_path_exists(
        wave.data,
        'strict $.* ? (@ == null || exists (
            @ ? (@.type() == "object").* ? (@ == null || @.type() == "object")
        ))'::pg_catalog.jsonpath
    )
    THEN (SELECT :deep_merge FROM (SELECT resources.data AS target, wave.data AS patch) AS merging)
    ELSE (resources.data || wave.data) || (
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
END

-- fragment: changed_rows
FROM wave
WHERE
    wave.operation IN ('update', 'patch') AND resources.id = wave.tenant_id
    AND resources."resourceName" = wave.resource_type AND resources."resourceId" = wave.resource_id
    AND CASE WHEN wave.operation = 'patch' THEN :patch_fits ELSE true END
RETURNING wave.index

-- fragment: changed
changed AS (
    UPDATE public.resources
    SET
        data = CASE
            WHEN wave.operation = 'update' THEN wave.data
            :flat_cases
        END,
        "lastUpdated" = wave.requested_at
    :changed_rows
)

-- fragment: changed_deeply
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
    RETURNING wave.index
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
    UPDATE public.operations
    SET status = 'failed', error = CASE WHEN wave.operation = 'create' THEN 'already_exists' ELSE :missed_error END
    FROM wave
    WHERE
        (SELECT pg_catalog.count(*) FROM created) + (SELECT pg_catalog.count(*) FROM changed)
            + (SELECT pg_catalog.count(*) FROM deleted)
            < (SELECT pg_catalog.count(*) FROM wave WHERE operation IN ('create', 'update', 'patch', 'delete'))
        AND CASE
            WHEN wave.operation = 'create' THEN (wave.tenant_id, wave.resource_type, wave.resource_id) NOT IN (
                SELECT id, "resourceName", "resourceId" FROM created
            )
            WHEN wave.operation = 'delete' THEN wave.index NOT IN (SELECT index FROM deleted)
            WHEN wave.operation IN ('update', 'patch') THEN wave.index NOT IN (SELECT index FROM changed)
        END
        AND operations.tenant_id = wave.tenant_id AND operations.request_id = wave.request_id
    RETURNING wave.index, operations.error
)

-- fragment: undone_new
-- The same behind `:created_new`: all creates have an effect.
undone AS (
    UPDATE public.operations
    SET status = 'failed', error = :missed_error
    FROM wave
    WHERE
        (SELECT pg_catalog.count(*) FROM changed) + (SELECT pg_catalog.count(*) FROM deleted)
            < (SELECT pg_catalog.count(*) FROM wave WHERE operation IN ('update', 'patch', 'delete'))
        AND CASE
            WHEN wave.operation = 'delete' THEN wave.index NOT IN (SELECT index FROM deleted)
            WHEN wave.operation IN ('update', 'patch') THEN wave.index NOT IN (SELECT index FROM changed)
        END
        AND operations.tenant_id = wave.tenant_id AND operations.request_id = wave.request_id
    RETURNING wave.index, operations.error
)

-- fragment: found
found AS (
    UPDATE public.operations
    SET
        status = CASE WHEN measured.fits THEN 'succeeded' ELSE 'failed' END,
        error = CASE
            WHEN resources.id IS NULL THEN 'not_found'
            WHEN NOT measured.fits THEN 'result_too_large'
        END,
        result = CASE WHEN measured.fits THEN pg_catalog.jsonb_build_object(
            'resourceId', resources."resourceId",
            'data', resources.data,
            'date', pg_catalog.to_char(resources.date AT TIME ZONE 'UTC', :utc_format),
            'lastUpdated', pg_catalog.to_char(resources."lastUpdated" AT TIME ZONE 'UTC', :utc_format)
        ) END
    FROM wave
    LEFT JOIN public.resources ON
        resources.id = wave.tenant_id AND resources."resourceName" = wave.resource_type
        AND resources."resourceId" = wave.resource_id
    CROSS JOIN LATERAL (
        SELECT
            CASE
                WHEN pg_catalog.pg_column_size(checked.document) <= 1500 THEN true
                ELSE coalesce(:text_bytes <= 16977216, false)
            END AS fits
        FROM (SELECT resources.data || '{}'::pg_catalog.jsonb AS document OFFSET 0) AS checked
        OFFSET 0
    ) AS measured
    WHERE
        wave.operation = 'read'
        AND operations.tenant_id = wave.tenant_id AND operations.request_id = wave.request_id
    RETURNING wave.index, operations.error
)

-- fragment: listed
-- A `list` selects by containment (`@>`), which equality implies, and then compares member by member. Once the bytes
-- of the page exceed the bound ($15), its further items are not built, and not measured where a lower bound is enough.
-- The page is built as the text that jsonb has, and parsed once: functions of jsonb would copy each document for the
-- item, for the items and for the page, which takes longer. So its length is that of the result too. A text that is
-- much longer than its document is not kept until then, but built again: a window keeps its rows in temporary files.
-- A list reads in order of id until the page is full. A list of days, a month at most, reads by date and sorts
-- afterwards: few of a type's resources are of one month, and a scan by id would read all the others too. `is_short`
-- selects one of the two. Without the CASE the planner, which has no statistics of the filters, would expect hardly
-- any row to pass; it would read all resources of the type and sort them.
wanted AS MATERIALIZED (
    SELECT
        index, tenant_id, request_id, resource_type, data AS members, first_date, last_date, page, page_size,
        NOT pg_catalog.jsonb_path_exists(
            data, 'strict $.* ? (@.type() == "array" || @.type() == "object")'::pg_catalog.jsonpath
        ) AS has_scalars_only,
        pg_catalog.pg_column_size(data) AS size,
        coalesce(last_date - first_date < interval '32 days', false) AS is_short
    FROM wave
    WHERE operation = 'list'
), listed AS (
    UPDATE public.operations
    SET
        status = CASE WHEN answer.fits THEN 'succeeded' ELSE 'failed' END,
        error = CASE WHEN NOT answer.fits THEN 'result_too_large' END,
        result = CASE WHEN answer.fits THEN answer.result END
    FROM wanted
    CROSS JOIN LATERAL (
        SELECT
            result::pg_catalog.jsonb AS result,
            page_bytes <= $15::bigint AND pg_catalog.octet_length(result) <= $15::bigint AS fits
        FROM (
            SELECT
                '{"page": ' || wanted.page::pg_catalog.text || ', "items": ['
                || coalesce(
                    pg_catalog.string_agg(item, ', ' ORDER BY page_row) FILTER (WHERE page_row <= wanted.page_size), ''
                )
                || '], "limit": ' || wanted.page_size::pg_catalog.text
                || ', "hasMore": ' || (pg_catalog.count(*) > wanted.page_size)::pg_catalog.text || '}' AS result,
                coalesce(pg_catalog.max(bytes_so_far) FILTER (WHERE page_row <= wanted.page_size), 0) AS page_bytes
            FROM (
                SELECT
                    page_row,
                    bytes_so_far,
                    CASE WHEN bytes_so_far <= $15::bigint THEN
                        '{"data": ' || coalesce(text, document::pg_catalog.text)
                        || ', "date": '
                        || coalesce('"' || pg_catalog.to_char(date AT TIME ZONE 'UTC', :utc_format) || '"', 'null')
                        || ', "resourceId": ' || pg_catalog.to_json("resourceId")::pg_catalog.text
                        || ', "lastUpdated": '
                        || coalesce(
                            '"' || pg_catalog.to_char("lastUpdated" AT TIME ZONE 'UTC', :utc_format) || '"', 'null'
                        )
                        || '}'
                    END AS item
                FROM (
                    SELECT
                        "resourceId", document, date, "lastUpdated", page_row, text,
                        CASE
                            WHEN least_bytes > $15::bigint THEN least_bytes
                            ELSE (pg_catalog.sum(text_bytes) OVER in_order)::bigint
                        END AS bytes_so_far
                    FROM (
                        SELECT
                            checked.*,
                            coalesce(pg_catalog.octet_length(whole.text)::bigint, $15::bigint + 1) AS text_bytes,
                            CASE
                                WHEN
                                    pg_catalog.octet_length(whole.text)
                                    <= 4 * pg_catalog.pg_column_size(checked.document)
                                THEN whole.text
                            END AS text
                        FROM (
                            SELECT counted.*, (pg_catalog.sum(:least_text_bytes) OVER in_order)::bigint AS least_bytes
                            FROM (
                                SELECT
                                    "resourceId", date, "lastUpdated",
                                    stored.document,
                                    pg_catalog.row_number() OVER in_order AS page_row,
                                    pg_catalog.sum(
                                        pg_catalog.pg_column_size(stored.document)
                                    ) OVER in_order AS stored_bytes
                                FROM (
                                    (
                                        SELECT "resourceId", data, date, "lastUpdated"
                                        FROM public.resources
                                        WHERE
                                            NOT wanted.is_short AND resources.id = wanted.tenant_id
                                            AND resources."resourceName" = wanted.resource_type
                                            AND CASE
                                                WHEN
                                                    resources.date < wanted.first_date
                                                    OR resources.date > wanted.last_date
                                                THEN false
                                                ELSE :members_match
                                            END
                                        ORDER BY "resourceId"
                                        LIMIT wanted.page_size + 1 OFFSET (wanted.page - 1) * wanted.page_size
                                    )
                                    UNION ALL
                                    (
                                        SELECT "resourceId", data, date, "lastUpdated"
                                        FROM public.resources
                                        WHERE
                                            wanted.is_short AND resources.id = wanted.tenant_id
                                            AND resources."resourceName" = wanted.resource_type
                                            AND resources.date BETWEEN wanted.first_date AND wanted.last_date
                                            AND :members_match
                                        ORDER BY "resourceId"
                                        LIMIT wanted.page_size + 1 OFFSET (wanted.page - 1) * wanted.page_size
                                    )
                                ) AS matching
                                CROSS JOIN LATERAL (
                                    SELECT matching.data || '{}'::pg_catalog.jsonb AS document OFFSET 0
                                ) AS stored
                                WINDOW in_order AS (ORDER BY "resourceId")
                            ) AS counted
                            WINDOW in_order AS (ORDER BY "resourceId")
                        ) AS checked
                        CROSS JOIN LATERAL (
                            SELECT
                                CASE
                                    WHEN checked.least_bytes <= $15::bigint AND :has_bounded_text
                                    THEN checked.document::pg_catalog.text
                                END AS text
                            OFFSET 0
                        ) AS whole
                    ) AS worded
                    WINDOW in_order AS (ORDER BY "resourceId")
                ) AS measured
            ) AS items
        ) AS page
    ) AS answer
    WHERE operations.tenant_id = wanted.tenant_id AND operations.request_id = wanted.request_id
    RETURNING wanted.index, operations.error
)

-- name: apply_wave
-- Apply one wave: it writes each resource at most once, and its reads see the state before it. Operations without
-- effect or without an answer are marked as failed in the log; only these are returned, by their index from $2 on.
-- No row of the log is updated twice: an operation is of one kind. No part of a wave is joined with another (`NOT IN`
-- is by hash): the plan is made once, for arrays of any length, and a join would be in nested loops.
-- This is for all waves. A server prepares all parts of a plan again at each run, which takes as long as a few
-- operations. So the texts below, with the same first arguments, leave out parts that most waves do not need. The text
-- with `_new` behind the name of each is for a wave of which every created resource is expected to be new.
WITH :reading_wave, :created, :changed_deeply, :deleted, :undone, :found, :listed
SELECT index, error FROM undone
UNION ALL SELECT index, error FROM found WHERE error IS NOT NULL
UNION ALL SELECT index, error FROM listed WHERE error IS NOT NULL;

-- name: apply_wave_new
WITH :reading_wave, :created_new, :changed_deeply, :deleted, :undone_new, :found, :listed
SELECT index, error FROM undone
UNION ALL SELECT index, error FROM found WHERE error IS NOT NULL
UNION ALL SELECT index, error FROM listed WHERE error IS NOT NULL;

-- name: apply_lists
-- The same for waves without `read` and without patches that have objects among their members.
WITH :reading_wave, :created, :changed, :deleted, :undone, :listed
SELECT index, error FROM undone
UNION ALL SELECT index, error FROM listed WHERE error IS NOT NULL;

-- name: apply_lists_new
WITH :reading_wave, :created_new, :changed, :deleted, :undone_new, :listed
SELECT index, error FROM undone
UNION ALL SELECT index, error FROM listed WHERE error IS NOT NULL;

-- name: apply_reads
-- The same for waves without `list` and without such patches.
WITH :wave, :created, :changed, :deleted, :undone, :found
SELECT index, error FROM undone
UNION ALL SELECT index, error FROM found WHERE error IS NOT NULL;

-- name: apply_reads_new
WITH :wave, :created_new, :changed, :deleted, :undone_new, :found
SELECT index, error FROM undone
UNION ALL SELECT index, error FROM found WHERE error IS NOT NULL;

-- name: apply_nested_writes
-- The same for waves without reads.
WITH :wave, :created, :changed_deeply, :deleted, :undone
SELECT index, error FROM undone;

-- name: apply_nested_writes_new
WITH :wave, :created_new, :changed_deeply, :deleted, :undone_new
SELECT index, error FROM undone;

-- name: apply_writes
-- The same for waves without reads and without such patches.
WITH :wave, :created, :changed, :deleted, :undone
SELECT index, error FROM undone;

-- name: apply_writes_new
WITH :wave, :created_new, :changed, :deleted, :undone_new
SELECT index, error FROM undone;

-- name: lock_target
-- The data of the resource $3 of type $2 of the tenant $1, locked until the batch has committed, so that the worker can
-- merge a patch into it. NULL if it has more than $4 bytes, or a number with more than 1,000 digits: then its text may
-- be any number of times as long.
SELECT
    CASE
        WHEN pg_catalog.pg_column_size(checked.document) <= $4::bigint AND NOT :has_long_number
        THEN checked.document::pg_catalog.text
    END AS data
FROM public.resources
CROSS JOIN LATERAL (SELECT resources.data || '{}'::pg_catalog.jsonb AS document OFFSET 0) AS checked
WHERE resources.id = $1 AND resources."resourceName" = $2 AND resources."resourceId" = $3
FOR UPDATE OF resources;

-- name: patch_target
-- The text of the data of `lock_target` changed by the patch $4 (RFC 7396), by Postgres, for data that the worker does
-- not read; NULL if the changed data may not be stored.
SELECT CASE WHEN :is_within_bounds THEN checked.document::pg_catalog.text END AS data
FROM public.resources
CROSS JOIN LATERAL (
    SELECT (
        SELECT :deep_merge
        FROM (SELECT resources.data AS target, $4::pg_catalog.text::pg_catalog.jsonb AS patch) AS merging
    ) AS document
    OFFSET 0
) AS checked
WHERE resources.id = $1 AND resources."resourceName" = $2 AND resources."resourceId" = $3;

-- fragment: batch_columns
-- The columns of the log and of a wave, of which both have some. As texts: no data are parsed here.
sent AS MATERIALIZED (
    SELECT
        :wave_columns,
        pg_catalog.unnest(pg_catalog.string_to_array($11, $1)) AS source,
        pg_catalog.unnest(pg_catalog.string_to_array($12, $1)) AS stream_shard_id,
        pg_catalog.unnest(pg_catalog.string_to_array($13, $1)) AS sequence_number,
        pg_catalog.unnest(pg_catalog.string_to_array($14, $1)) AS received_at
)

-- fragment: known_tenants
-- The tenants $16 to $20 as the writer remembers their rows. `confirmed` are those with such a row, locked as by
-- `lock_tenants`. Not a row that was changed since the statement began, which `xmin` shows: the statement would not see
-- the other changes that were committed with it.
known AS MATERIALIZED (
    SELECT
        pg_catalog.unnest(pg_catalog.string_to_array($16, $1)) AS id,
        pg_catalog.unnest(pg_catalog.string_to_array($17, $1)) AS business_id,
        pg_catalog.unnest(pg_catalog.string_to_array($18, $1)) AS location_id,
        pg_catalog.unnest(pg_catalog.string_to_array($19, $1)) AS business_type,
        pg_catalog.unnest(pg_catalog.string_to_array($20, $1)) AS created_at
), seen AS MATERIALIZED (
    SELECT tenants.id, tenants.xmin AS version
    FROM public.tenants
    JOIN known ON tenants.id = known.id
)

-- fragment: matching_tenant
tenants.state = 'active' AND tenants.business_id = known.business_id AND tenants.location_id = known.location_id
AND tenants.business_type = known.business_type AND tenants.created_at = known.created_at::pg_catalog.timestamptz
AND tenants.xmin = seen.version

-- fragment: locked_tenants
SELECT tenants.id
FROM public.tenants
JOIN known ON tenants.id = known.id
JOIN seen ON seen.id = known.id
WHERE :matching_tenant

-- fragment: logged_at_once
-- The rows of the log, and then the wave and its created resources, as `log_operations_new` and `apply_writes_new` do;
-- nothing of all unless the rows of all tenants are `confirmed`.
logged AS (
    INSERT INTO public.operations (
        tenant_id, request_id, operation, resource_type, resource_id, status, digest,
        source, stream_shard_id, sequence_number, requested_at, received_at
    )
    SELECT
        tenant_id, request_id, operation, resource_type, resource_id, 'succeeded',
        substring($15::pg_catalog.bytea FROM 33 * position - 32 FOR 33), source, nullif(stream_shard_id, ''),
        nullif(sequence_number, ''), requested_at::pg_catalog.timestamptz, received_at::pg_catalog.timestamptz
    FROM sent
    WHERE
        (SELECT pg_catalog.count(*) FROM confirmed)
        = pg_catalog.cardinality(pg_catalog.string_to_array($16, $1))
    ORDER BY tenant_id COLLATE "C", request_id COLLATE "C", position
    RETURNING 1
), wave AS MATERIALIZED (
    SELECT
        :wave_values
    FROM sent
    WHERE (SELECT pg_catalog.count(*) FROM logged) > 0
), :created_new

-- fragment: missed_at_once
-- The operations without effect; or that nothing was applied.
SELECT wave.index, :missed_error AS error
FROM wave
WHERE
    (SELECT pg_catalog.count(*) FROM changed) + (SELECT pg_catalog.count(*) FROM deleted)
        < (SELECT pg_catalog.count(*) FROM wave WHERE operation IN ('update', 'patch', 'delete'))
    AND CASE
        WHEN wave.operation = 'delete' THEN wave.index NOT IN (SELECT index FROM deleted)
        WHEN wave.operation IN ('update', 'patch') THEN wave.index NOT IN (SELECT index FROM changed)
    END
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
        pending_from = $23, pending_since = $24, read_to = $25, held = $26::pg_catalog.text[], parents_done = $27,
        read_up_to = $28, token = $30::pg_catalog.uuid
    WHERE
        stream = $21 AND stream_shard_id = $22 AND token = ANY($29::pg_catalog.text[]::pg_catalog.uuid[])
        AND xmin = (SELECT xmin FROM public.stream_positions WHERE stream = $21 AND stream_shard_id = $22)
    RETURNING 1
), confirmed AS MATERIALIZED (
    :locked_tenants AND (SELECT pg_catalog.count(*) FROM written) = 1
    ORDER BY tenants.id
    FOR SHARE OF tenants
)

-- name: at_once
-- Apply a batch of one wave in one round trip, where all is expected to be as usual: the tenants' rows are as the writer
-- remembers them, and all rows of the log and all created resources are new. Otherwise the row 'unconfirmed' is returned,
-- or the statement fails (23505), and the transaction is repeated step by step. The operations without effect are
-- returned; their rows of the log are still to be marked, since a statement does not see the rows that it inserts.
-- The locks are taken in the order of the single steps. For waves without reads and without patches that have objects
-- among their members.
WITH :batch_columns, :known_tenants, :confirmed_tenants, :logged_at_once, :changed, :deleted
:missed_at_once;

-- name: at_once_nested
-- The same for waves without reads.
WITH :batch_columns, :known_tenants, :confirmed_tenants, :logged_at_once, :changed_deeply, :deleted
:missed_at_once;

-- name: at_once_claimed
-- The same as `at_once` for a batch with one claim, of which the row is known.
WITH :batch_columns, :known_tenants, :claimed_tenants, :logged_at_once, :changed, :deleted
:missed_at_once;

-- name: at_once_claimed_nested
-- The same for waves without reads.
WITH :batch_columns, :known_tenants, :claimed_tenants, :logged_at_once, :changed_deeply, :deleted
:missed_at_once;

-- name: fail_operation
-- Turn the row that this transaction wrote for the operation $2 of the tenant $1 into that of a failure, $3.
UPDATE public.operations SET status = 'failed', error = $3 WHERE tenant_id = $1 AND request_id = $2;

-- name: are_tables_locked
-- Whether a table as a whole is locked against batches, or is about to be, for example by ALTER TABLE.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_locks
    WHERE
        locktype = 'relation'
        AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
        AND relation IN (
            'public.tenants'::pg_catalog.regclass::pg_catalog.oid,
            'public.operations'::pg_catalog.regclass::pg_catalog.oid,
            'public.resources'::pg_catalog.regclass::pg_catalog.oid
        )
        AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
);

-- name: find_unstorable
-- The indexes of the texts that cannot be stored as jsonb. Reads no table; the function catches a text's error.
SELECT position - 1 AS position
FROM pg_catalog.unnest($1::pg_catalog.text[]) WITH ORDINALITY AS sent (document, position)
WHERE NOT public.simplu_is_storable(document);
