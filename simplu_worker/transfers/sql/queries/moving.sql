-- Moves of tenants between shards (docs/adr/0007-moving-tenants.md). A mover writes only where a tenant's row has its
-- token.

-- name: list_begun_moves
SELECT tenant_id, place AS target_shard_id, step
FROM public.transfers
WHERE kind = 'departure' AND step IN ('open', 'committed', 'undoing');

-- name: note_drain
-- The shard is drained, or without $1 takes tenants again.
UPDATE public.shard_meta SET drained_at = CASE WHEN $1 THEN coalesce(drained_at, pg_catalog.clock_timestamp()) END;

-- name: fence_tenant
-- Waits for the batches in flight, whose rows of the log are from before `read_at`. $3: seconds.
UPDATE public.tenants
SET state = 'fenced', fenced_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3)
WHERE id = $1 AND state = 'active' AND move_token = $2
RETURNING :moving_columns;

-- name: end_own_fence
-- With the next token, so that a commit of this one that is under way does not find it.
UPDATE public.tenants
SET state = 'active', move_token = move_token + 1, fenced_until = NULL
WHERE id = $1 AND state = 'fenced' AND move_token = $2;

-- name: commit_move
-- The commit point: the tenant's home is now the shard $3, with the epoch $4.
WITH
    committed AS (
        UPDATE public.tenants
        SET
            state = 'moved', moved_to = $3, epoch = $4, fenced_until = NULL, deletion_began_at = NULL,
            state_changed_at = pg_catalog.clock_timestamp()
        WHERE id = $1 AND state = 'fenced' AND move_token = $2
        RETURNING id, number
    ),
    marked AS (
        INSERT INTO public.log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins, epoch)
        SELECT :own_batch, pg_catalog.clock_timestamp(), 0, 'l', ARRAY[number], '{}', '{}', $4 FROM committed
    )
SELECT :committing_server FROM committed;

-- name: make_incoming
-- Only over a lower token, never over a tenant with its home here, or a type that was removed.
INSERT INTO public.tenants AS known (
    id, business_id, location_id, business_type, state, epoch, move_token, control_at, created_at
)
SELECT $1, $2, $3, $4, 'incoming', $5, $6, $7, $8
WHERE EXISTS (SELECT FROM public.business_types WHERE business_types.name = $4)
ON CONFLICT (id) DO UPDATE SET
    business_id = excluded.business_id, location_id = excluded.location_id, business_type = excluded.business_type,
    state = 'incoming', epoch = excluded.epoch, move_token = excluded.move_token, moved_to = NULL, fenced_until = NULL,
    control_at = excluded.control_at, created_at = excluded.created_at, deletion_began_at = NULL
WHERE known.state IN ('incoming', 'ready', 'moved', 'destroyed') AND known.move_token < excluded.move_token;

-- name: make_ready
-- With what was changed on the source since the row was copied, what is set for the business there, unless it was set
-- later here, and what is owed of limits there. Begins the last transaction that writes to the target.
WITH of_business AS (
    INSERT INTO public.business_controls AS known
    SELECT controls.*
    FROM pg_catalog.jsonb_populate_record(NULL::public.business_controls, $10::pg_catalog.text::pg_catalog.jsonb)
        AS controls
    WHERE controls.business_id IS NOT NULL
    ON CONFLICT (business_id) DO UPDATE SET
        paused_until = excluded.paused_until, weight = excluded.weight, operations_per_s = excluded.operations_per_s,
        bytes_per_s = excluded.bytes_per_s, set_at = excluded.set_at
    WHERE known.set_at < excluded.set_at
),

owed AS (
    INSERT INTO public.limit_buckets AS known (target, operations_at, bytes_at, held_until)
    SELECT
        pg_catalog.concat(sent.key, CASE sent.key WHEN 't/' THEN tenants.number::pg_catalog.text ELSE business_id END),
        pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => (sent.value ->> 0)::pg_catalog.float8),
        pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => (sent.value ->> 1)::pg_catalog.float8),
        pg_catalog.clock_timestamp() -- in a move operations wait
    FROM public.tenants
    CROSS JOIN pg_catalog.jsonb_each($11::pg_catalog.text::pg_catalog.jsonb) AS sent
    WHERE tenants.id = $1
    ON CONFLICT (target) DO UPDATE SET
        operations_at = greatest(known.operations_at, excluded.operations_at),
        bytes_at = greatest(known.bytes_at, excluded.bytes_at), held_until = excluded.held_until
)
UPDATE public.tenants
SET
    state = 'ready', business_type = $3, control_at = $4, created_at = $5, paused_until = $6, weight = $7,
    operations_per_s = $8, bytes_per_s = $9
WHERE id = $1 AND state = 'incoming' AND move_token = $2
RETURNING :committing_server;

-- name: take_incoming
-- Take over what an earlier mover has left, for a rollback, with a higher token.
UPDATE public.tenants
SET state = 'incoming', move_token = $2
WHERE id = $1 AND state IN ('incoming', 'ready') AND move_token < $2;

-- name: drop_incoming
DELETE FROM public.tenants WHERE id = $1 AND state = 'incoming' AND move_token = $2;

-- name: find_left_behind
-- The tenants that left at least $1 ago and have rows here, or whose deletion has begun. `differs`: the target had
-- other rows.
SELECT
    tenant_id, place AS target_shard_id,
    step = 'done' AND pg_catalog.jsonb_extract_path_text(detail, 'verdict') IS DISTINCT FROM 'equal' AS differs
FROM public.transfers
WHERE
    kind = 'departure'
    AND (step = 'cleaning' OR step = 'done' AND updated_at < pg_catalog.clock_timestamp() - $1::pg_catalog.interval)
ORDER BY updated_at, tenant_id;

-- name: has_unread_changes
-- Whether a running destination has yet to read a change of the tenant $1 here: one in the publisher's file, or without
-- $2 one that is not.
WITH place AS MATERIALIZED (
    SELECT feed_cursors.batch_id, feed_cursors.position
    FROM public.feed_cursors
    WHERE
        feed_cursors.is_in_file = $2::boolean
        AND EXISTS (
            SELECT FROM public.feed_shards WHERE expires_at > pg_catalog.clock_timestamp() - interval '10 minutes'
        )
    ORDER BY feed_cursors.batch_id, feed_cursors.position
    LIMIT 1
)
SELECT EXISTS (
    SELECT
    FROM place
    JOIN public.log_batches ON log_batches.batch_id >= place.batch_id
    JOIN public.log_rows ON log_rows.batch_id = log_batches.batch_id
    WHERE
        :number_of_tenant = ANY(log_batches.tenants) AND log_rows.tenant_no = :number_of_tenant
        AND log_rows.kind NOT IN ('r', 'l')
        AND (log_rows.batch_id > place.batch_id OR log_rows.position::integer > place.position)
);

-- name: drop_resources
-- At most $2 of a tenant's resources. This one and those below run with `StatementBudget.KEY_RANGE`: a sequential scan
-- would pass over all that earlier ones have deleted.
DELETE FROM public.resources
WHERE ctid = ANY(ARRAY(SELECT ctid FROM public.resources WHERE id = $1 LIMIT $2));

-- name: drop_operations
-- Those that `usage` has yet to count are counted here. The lock keeps a roll-up away until the end.
WITH progress AS MATERIALIZED (
    SELECT batch_id FROM public.usage_progress FOR SHARE
), dropped AS MATERIALIZED (
    SELECT ctid, batch_id, position, type_at, kind, size_bytes
    FROM public.log_rows
    WHERE tenant_no = :number_of_tenant
    LIMIT $2
), counted AS (
    :into_usage
    SELECT
        :of_one_batch, pg_catalog.count(*), pg_catalog.sum(log_rows.size_bytes)
    FROM dropped AS log_rows
    JOIN public.log_batches USING (batch_id)
    JOIN public.tenants ON tenants.id = $1
    WHERE batch_id >= coalesce((SELECT progress.batch_id FROM progress), 0) AND :is_operation
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY 1, 2, 3, 4
    :beside_usage
), outcomes AS (
    DELETE FROM public.log_outcomes
    USING dropped
    WHERE log_outcomes.batch_id = dropped.batch_id AND log_outcomes.position = dropped.position
)
DELETE FROM public.log_rows WHERE ctid = ANY(ARRAY(SELECT ctid FROM dropped));

-- name: drop_batches
-- Those that were copied here, once their rows are dropped. All others are of other tenants too, and stay.
DELETE FROM public.log_batches
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM public.log_batches WHERE batch_id < 0 AND tenants[1] = :number_of_tenant LIMIT $2
));

-- name: drop_rejections
DELETE FROM public.rejections
WHERE ctid = ANY(ARRAY(SELECT ctid FROM public.rejections WHERE tenant_id = $1 LIMIT $2));

-- name: drop_versions
DELETE FROM public.resource_versions
WHERE ctid = ANY(ARRAY(SELECT ctid FROM public.resource_versions WHERE tenant_no = :number_of_tenant LIMIT $2));

-- name: resource_boundary
-- The key of the $4-th resource after the key $2, $3: the end of the next chunk. NULL if there are fewer.
SELECT "resourceName" AS first, "resourceId" AS second
FROM public.resources
WHERE id = $1 AND ("resourceName", "resourceId") > ($2::pg_catalog.text, $3::pg_catalog.text)
ORDER BY "resourceName", "resourceId"
OFFSET $4 - 1 LIMIT 1;

-- fragment: log_in_range
-- The operations of $1 with keys behind $2, up to $4 if given, in the order of their keys. What is no operation has
-- keys from \x04 on.
FROM (
    SELECT *
    FROM public.log_rows
    WHERE
        log_rows.tenant_no = :number_of_tenant AND log_rows.request < '\x04'
        AND log_rows.request > pg_catalog.decode($2, 'hex') AND $3::pg_catalog.text = ''
        AND (
            $4::pg_catalog.text IS NULL
            OR (log_rows.request <= pg_catalog.decode($4, 'hex') AND $5::pg_catalog.text = '')
        )
    ORDER BY log_rows.request
    OFFSET 0
) AS log_rows
:beside_log_rows

-- name: operation_boundary
-- As `resource_boundary`; a key of the log has one part, hexadecimal text.
SELECT pg_catalog.encode(request, 'hex') AS first, '' AS second
FROM public.log_rows
WHERE
    tenant_no = :number_of_tenant AND request < '\x04'
    AND request > pg_catalog.decode($2, 'hex') AND $3::pg_catalog.text = ''
ORDER BY request
OFFSET $4 - 1 LIMIT 1;

-- fragment: resources_in_range
-- The resources of $1 behind the key $2, $3, up to $4, $5 if given, in the order of their keys. With
-- `StatementBudget.KEY_RANGE`, so that only this part of the index is read.
FROM (
    SELECT *
    FROM public.resources
    WHERE
        id = $1 AND ("resourceName", "resourceId") > ($2::pg_catalog.text, $3::pg_catalog.text)
        AND (
            $4::pg_catalog.text IS NULL
            OR ("resourceName", "resourceId") <= ($4::pg_catalog.text, $5::pg_catalog.text)
        )
    ORDER BY "resourceName", "resourceId"
    OFFSET 0
) AS resources

-- name: copy_resources
SELECT :resource_columns
:resources_in_range;

-- name: find_copied_place
-- The tenant's number in this shard's log, and the number above those of the batches that this transaction may copy
-- (`log_batches.batch_id`).
SELECT
    :number_of_tenant AS tenant_no,
    own.first_id - (
        SELECT pg_catalog.count(*)
        FROM public.log_batches
        WHERE batch_id > own.first_id - 1048576 AND batch_id < own.first_id
    ) AS batch_id
FROM (SELECT -1048576 * :own_batch AS first_id) AS own;

-- fragment: batches_in_range
-- The rows as they are on the other shard: there a batch is of one tenant, with the rows in the range. $6 is the place
-- of the first one.
FROM (
    SELECT
        log_rows.*, log_batches.completed_at, log_outcomes.error, log_outcomes.sequence_number, log_outcomes.result,
        log_batches.types[log_rows.type_at] AS resource_type, log_batches.origins[log_rows.origin_at] AS origin,
        $6::bigint - pg_catalog.dense_rank() OVER (ORDER BY log_rows.batch_id) AS copied_id,
        pg_catalog.dense_rank() OVER (
            PARTITION BY log_rows.batch_id ORDER BY log_batches.types[log_rows.type_at]
        )::smallint AS copied_type_at,
        pg_catalog.dense_rank() OVER (
            PARTITION BY log_rows.batch_id ORDER BY log_batches.origins[log_rows.origin_at]
        )::smallint AS copied_origin_at
    :log_in_range
) AS copied

-- name: copy_log_batches
-- `tenants` as the bytes of the array: the driver would look for the type of another array than of texts.
SELECT
    copied_id AS batch_id, completed_at, pg_catalog.count(*)::integer AS row_count, 'c'::pg_catalog."char" AS kind,
    pg_catalog.array_send(ARRAY[$7::integer]) AS tenants, pg_catalog.array_agg(DISTINCT resource_type ORDER BY resource_type) AS types,
    pg_catalog.array_agg(DISTINCT origin ORDER BY origin) AS origins
:batches_in_range
GROUP BY copied_id, completed_at;

-- name: copy_log_outcomes
SELECT copied_id AS batch_id, position, $7::integer AS tenant_no, error, sequence_number, result
:batches_in_range
WHERE error IS NOT NULL OR result IS NOT NULL;

-- name: copy_log_rows
SELECT
    copied_id AS batch_id, requested_at, received_at, $7::integer AS tenant_no, position,
    copied_type_at AS type_at, copied_origin_at AS origin_at, kind, digest, request, resource
:batches_in_range;

-- fragment: versions_in_range
-- The versions of $1 behind the key $2, $3, up to $4, $5 if given: a resource type, and the key of a resource with the
-- number of the version. Type by type, each by the primary key.
FROM (
    SELECT DISTINCT resource_type, type_no
    FROM public.history_types
    WHERE resource_type >= $2 AND ($4::pg_catalog.text IS NULL OR resource_type <= $4)
    ORDER BY resource_type
    OFFSET 0
) AS types
CROSS JOIN LATERAL (
    SELECT resource_versions.*
    FROM public.resource_versions
    WHERE
        resource_versions.tenant_no = :number_of_tenant AND resource_versions.type_no = types.type_no
        AND (resource_versions.resource, resource_versions.version) > (
            CASE WHEN types.resource_type = $2 THEN pg_catalog.decode(pg_catalog.split_part($3, '/', 1), 'hex') ELSE '' END,
            CASE
                WHEN types.resource_type = $2 THEN nullif(pg_catalog.split_part($3, '/', 2), '')::integer
                ELSE -1
            END
        )
        AND (resource_versions.resource, resource_versions.version) <= (
            CASE
                WHEN types.resource_type = $4 THEN pg_catalog.decode(pg_catalog.split_part($5, '/', 1), 'hex')
                ELSE '\xff'
            END,
            CASE
                WHEN types.resource_type = $4 THEN nullif(pg_catalog.split_part($5, '/', 2), '')::integer
                ELSE 0
            END
        )
    ORDER BY resource_versions.resource, resource_versions.version
    OFFSET 0
) AS versions

-- name: version_boundary
-- As `resource_boundary`.
SELECT
    ranged.resource_type AS first,
    pg_catalog.concat(pg_catalog.encode(ranged.resource, 'hex'), '/', ranged.version) AS second
FROM (
    SELECT types.resource_type, versions.resource, versions.version
    FROM (
        SELECT DISTINCT resource_type, type_no
        FROM public.history_types
        WHERE resource_type >= $2
        ORDER BY resource_type
        OFFSET 0
    ) AS types
    CROSS JOIN LATERAL (
        SELECT resource_versions.resource, resource_versions.version
        FROM public.resource_versions
        WHERE
            resource_versions.tenant_no = :number_of_tenant AND resource_versions.type_no = types.type_no
            AND (resource_versions.resource, resource_versions.version) > (
                CASE
                    WHEN types.resource_type = $2
                    THEN pg_catalog.decode(pg_catalog.split_part($3, '/', 1), 'hex') ELSE ''
                END,
                CASE
                    WHEN types.resource_type = $2 THEN nullif(pg_catalog.split_part($3, '/', 2), '')::integer
                    ELSE -1
                END
            )
        ORDER BY resource_versions.resource, resource_versions.version
        LIMIT $4
    ) AS versions
) AS ranged
OFFSET $4 - 1 LIMIT 1;

-- name: list_history_names
SELECT name FROM public.history_names ORDER BY name;

-- name: number_history_names
-- The numbers of the names $1 on this shard, made where they are missing.
WITH made AS (
    INSERT INTO public.history_names (name)
    SELECT name
    FROM pg_catalog.unnest($1::pg_catalog.text[]) AS name
    WHERE name NOT IN (SELECT history_names.name FROM public.history_names)
    ON CONFLICT (name) DO NOTHING
    RETURNING name, number
)
SELECT name, number FROM made
UNION ALL
SELECT name, number FROM public.history_names WHERE name = ANY($1::pg_catalog.text[])
ORDER BY name;

-- name: read_tenant_number
SELECT :number_of_tenant;

-- name: list_histories
-- What is kept for the business type $1.
SELECT resource_type, members, keep_days FROM public.history_types WHERE business_type = $1 ORDER BY resource_type;

-- name: copy_versions
-- With the numbers $7 of the names $6 on the other shard, and that of the tenant, $8.
SELECT
    versions.applied_at, $8::integer AS tenant_no, versions.version, type.number::smallint AS type_no,
    source.number::smallint AS source_no, versions.kind, versions.digest, versions.resource, versions.request,
    versions.former
:versions_in_range
JOIN unnest($6::pg_catalog.text[], $7::pg_catalog.text[]) AS type (name, number) ON type.name = types.resource_type
JOIN public.history_names AS names ON names.number = versions.source_no
JOIN unnest($6::pg_catalog.text[], $7::pg_catalog.text[]) AS source (name, number) ON source.name = names.name;

-- name: find_newest_versions
-- The number of the newest version of each resource with the type $2 and the key $3: -1 without one.
SELECT
    coalesce(
        (
            SELECT versions.version
            FROM public.resource_versions AS versions
            WHERE
                versions.tenant_no = :number_of_tenant AND versions.resource = pg_catalog.decode(sent.resource, 'hex')
                AND versions.type_no = (
                    SELECT history_names.number FROM public.history_names WHERE history_names.name = sent.resource_type
                )
            ORDER BY versions.version DESC
            LIMIT 1
        ),
        -1
    ) AS version
FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[]) WITH ORDINALITY AS sent (resource_type, resource, number)
ORDER BY sent.number;

-- name: read_newer_versions
-- At most $5 versions of these resources behind the numbers $4, in order.
SELECT
    (
        pg_catalog.to_jsonb(versions.*) || pg_catalog.jsonb_build_object(
            'resource_type'::pg_catalog.text, sent.resource_type, 'source'::pg_catalog.text, names.name
        )
    )::pg_catalog.text AS whole
FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[])
    AS sent (resource_type, resource, version)
JOIN public.history_names AS type ON type.name = sent.resource_type
CROSS JOIN LATERAL (
    SELECT *
    FROM public.resource_versions
    WHERE
        resource_versions.tenant_no = :number_of_tenant AND resource_versions.type_no = type.number
        AND resource_versions.resource = pg_catalog.decode(sent.resource, 'hex')
        AND resource_versions.version > sent.version::integer
    ORDER BY resource_versions.version
    LIMIT $5
) AS versions
JOIN public.history_names AS names ON names.number = versions.source_no
ORDER BY sent.resource_type, sent.resource, versions.version
LIMIT $5;

-- name: write_versions
-- Versions of the tenant $1, each as the JSON of its columns, with its names in place of numbers.
INSERT INTO public.resource_versions (
    applied_at, tenant_no, version, type_no, source_no, kind, digest, resource, request, former
)
SELECT
    sent.applied_at, :number_of_tenant, sent.version,
    (SELECT history_names.number FROM public.history_names WHERE history_names.name = sent.resource_type),
    (SELECT history_names.number FROM public.history_names WHERE history_names.name = sent.source),
    sent.kind, sent.digest, sent.resource, sent.request, sent.former
FROM pg_catalog.unnest($2::pg_catalog.text[]) AS row (document)
CROSS JOIN LATERAL pg_catalog.jsonb_to_record(row.document::pg_catalog.jsonb) AS sent (
    applied_at pg_catalog.timestamptz, version integer, kind pg_catalog."char", digest pg_catalog.bytea,
    resource pg_catalog.bytea, request pg_catalog.bytea, former pg_catalog.jsonb, resource_type pg_catalog.text,
    source pg_catalog.text
)
ON CONFLICT (tenant_no, type_no, resource, version) DO NOTHING;

-- name: checksum_versions
-- Of the versions in a range that were applied before $6, and that a history keeps for another day.
SELECT
    pg_catalog.count(*) AS row_count,
    coalesce(pg_catalog.sum(pg_catalog.hashtextextended(hashed.text, 0)), 0)::pg_catalog.text AS checksum
FROM (
    SELECT
        pg_catalog.concat_ws(
            e'\x01', types.resource_type, pg_catalog.encode(versions.resource, 'hex'), versions.version, versions.kind,
            pg_catalog.encode(versions.digest, 'hex'), coalesce(pg_catalog.encode(versions.request, 'hex'), e'\x02'),
            names.name, versions.applied_at::pg_catalog.text,
            CASE
                WHEN versions.applied_at <= due.until THEN e'\x02'
                ELSE coalesce(versions.former::pg_catalog.text, e'\x02')
            END
        ) AS text
    :versions_in_range
    JOIN public.history_names AS names ON names.number = versions.source_no
    LEFT JOIN LATERAL (
        SELECT $6::pg_catalog.timestamptz + pg_catalog.make_interval(days => 1 - kept.keep_days) AS until
        FROM public.tenants
        JOIN public.history_types AS kept
            ON kept.business_type = tenants.business_type AND kept.type_no = types.type_no
        WHERE tenants.id = $1
        OFFSET 0
    ) AS due ON true
    WHERE
        versions.applied_at < $6
        AND (
            due.until IS NULL OR versions.applied_at > due.until OR versions.version = 0
            OR (
                versions.kind <> 'd' AND NOT EXISTS (
                    SELECT
                    FROM public.resource_versions AS later
                    WHERE
                        later.tenant_no = versions.tenant_no AND later.type_no = versions.type_no
                        AND later.resource = versions.resource AND later.version = versions.version + 1
                        AND later.applied_at <= due.until
                )
            )
        )
) AS hashed;

-- name: may_copy_into
-- Whether COPY may write the tables: with policies in force for this role only INSERT may.
SELECT
    NOT pg_catalog.row_security_active('public.resources'::pg_catalog.regclass)
    AND NOT pg_catalog.row_security_active('public.log_rows'::pg_catalog.regclass);

-- fragment: log_to_write
-- The columns that `write_log` writes.
log_rows.request, log_rows.kind, log_batches.types[log_rows.type_at] AS resource_type, log_rows.resource,
log_batches.origins[log_rows.origin_at] AS origin, log_outcomes.error, log_outcomes.sequence_number,
log_outcomes.result, log_rows.digest, log_rows.requested_at, log_rows.received_at, log_batches.completed_at,
log_rows.batch_id, log_rows.position

-- fragment: log_to_send
-- The rows of `own` with these columns: what a mover looks at, and a document of them all.
pg_catalog.encode(own.request, 'hex') AS key, own.kind::pg_catalog.text AS kind, own.resource_type,
public.simplu_id(own.resource) AS resource_id, own.completed_at, pg_catalog.to_jsonb(own.*)::pg_catalog.text AS whole

-- fragment: beside_log_rows
-- The batch and the outcome of each of `log_rows`. OFFSET 0: one by one, by their keys.
CROSS JOIN LATERAL (
    SELECT * FROM public.log_batches WHERE log_batches.batch_id = log_rows.batch_id OFFSET 0
) AS log_batches
LEFT JOIN LATERAL (
    SELECT *
    FROM public.log_outcomes
    WHERE log_outcomes.batch_id = log_rows.batch_id AND log_outcomes.position = log_rows.position
    OFFSET 0
) AS log_outcomes ON true

-- name: find_logged_end
-- The time before which there are $3 batches from $2 on, and rows of the tenant $1; none if there are fewer. The log
-- has no index by tenant and time, so the batches of all tenants are read, so many at a time.
WITH scanned AS (
    SELECT
        log_batches.completed_at,
        CASE WHEN :number_of_tenant = ANY(log_batches.tenants) THEN log_batches.row_count + 1 ELSE 1 END AS cost
    FROM public.log_batches
    WHERE log_batches.completed_at >= $2
    ORDER BY log_batches.completed_at
    LIMIT $3 + 1::bigint
), summed AS (
    SELECT
        completed_at,
        pg_catalog.sum(cost) OVER (ORDER BY completed_at ROWS UNBOUNDED PRECEDING) - cost AS cost_before
    FROM scanned
)
SELECT pg_catalog.min(completed_at) FROM summed WHERE cost_before >= $3;

-- fragment: rows_completed
-- The rows of the log of $1 written from $2 on, and not after $3. OFFSET 0: by the index of batches.
FROM (
    SELECT log_batches.batch_id
    FROM public.log_batches
    WHERE
        log_batches.completed_at >= $2 AND log_batches.completed_at <= $3
        AND :number_of_tenant = ANY(log_batches.tenants)
    OFFSET 0
) AS changed
CROSS JOIN LATERAL (
    SELECT *
    FROM public.log_rows
    WHERE log_rows.batch_id = changed.batch_id AND log_rows.tenant_no = :number_of_tenant
    OFFSET 0
) AS log_rows
:beside_log_rows

-- name: read_logged_changes
-- At most $5 of them, after the row of $2 with the key $4.
SELECT :log_to_send
FROM (SELECT :log_to_write :rows_completed) AS own
WHERE (own.completed_at, own.request) > ($2::pg_catalog.timestamptz, pg_catalog.decode($4, 'hex'))
ORDER BY own.completed_at, own.request
LIMIT $5;

-- name: read_logged_keys
SELECT pg_catalog.encode(log_rows.request, 'hex') AS key, log_batches.completed_at
:rows_completed;

-- fragment: keys_named
-- The keys with the types $2 and the ids $3. Materialized, as the planner does not see that all have one tenant: right
-- after a copy any index that begins with it would do.
WITH named AS MATERIALIZED (
    SELECT $1::pg_catalog.text AS tenant_id, sent.resource_type, sent.resource_id
    FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[]) AS sent (resource_type, resource_id)
)

-- fragment: are_named
resources.id = named.tenant_id AND resources."resourceName" = named.resource_type
AND resources."resourceId" = named.resource_id

-- name: read_resources
:keys_named
SELECT
    "resourceName" AS resource_type, "resourceId" AS resource_id,
    pg_catalog.to_jsonb(resources.*)::pg_catalog.text AS whole
FROM named
JOIN public.resources ON :are_named;

-- name: write_resources
-- Rows of the tenant $1, each as the JSON of all its columns.
INSERT INTO public.resources (:resource_columns)
SELECT whole.*
FROM pg_catalog.unnest($2::pg_catalog.text[]) AS sent (document)
CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(NULL::public.resources, sent.document::pg_catalog.jsonb) AS whole
WHERE whole.id = $1::pg_catalog.text
:or_replaced;

-- name: delete_resources_named
:keys_named
DELETE FROM public.resources
USING named
WHERE :are_named
RETURNING resources."resourceName" AS resource_type;

-- name: free_copied_keys
-- Before `write_log`: rows that are here give their keys to others, as on the source. A row has the same key, time and
-- position on both shards.
WITH sent AS (
    SELECT
        CASE WHEN is_freed THEN pg_catalog.substr(sent.request, 2, pg_catalog.octet_length(sent.request) - 11)
        ELSE sent.request END AS request,
        sent.completed_at, sent.position, is_freed
    FROM pg_catalog.unnest($2::pg_catalog.text[]) AS row (document)
    CROSS JOIN LATERAL pg_catalog.jsonb_to_record(row.document::pg_catalog.jsonb)
        AS sent (request pg_catalog.bytea, completed_at pg_catalog.timestamptz, position smallint)
    CROSS JOIN LATERAL (SELECT pg_catalog.get_byte(sent.request, 0) = 3 AS is_freed) AS freed
), seen AS (
    SELECT DISTINCT log_rows.request, log_batches.completed_at
    FROM sent
    JOIN public.log_rows ON log_rows.tenant_no = :number_of_tenant AND log_rows.request = sent.request
    JOIN public.log_batches ON log_batches.batch_id = log_rows.batch_id
    WHERE
        (log_batches.completed_at = sent.completed_at AND log_rows.position = sent.position) = sent.is_freed
)
UPDATE public.log_rows
SET request = :kept_key, kind = pg_catalog.upper(log_rows.kind::pg_catalog.text)::pg_catalog."char"
FROM seen
WHERE log_rows.tenant_no = :number_of_tenant AND log_rows.request = seen.request;

-- name: write_log
-- Those of the rows $2 (`log_to_send`) that are not here, with their times. Each batch of the source is one here, of this
-- tenant alone; $3 is the place of the first one, $4 the tenant's number (`find_copied_place`).
WITH missing AS MATERIALIZED (
    SELECT sent.*
    FROM pg_catalog.unnest($2::pg_catalog.text[]) AS row (document)
    CROSS JOIN LATERAL pg_catalog.jsonb_to_record(row.document::pg_catalog.jsonb) AS sent (
        request pg_catalog.bytea, kind pg_catalog."char", resource_type pg_catalog.text COLLATE "C",
        resource pg_catalog.bytea, origin pg_catalog.text COLLATE "C", error pg_catalog.text,
        sequence_number pg_catalog.text, result pg_catalog.jsonb, digest pg_catalog.bytea,
        requested_at pg_catalog.timestamptz, received_at pg_catalog.timestamptz, completed_at pg_catalog.timestamptz,
        batch_id bigint, position smallint
    )
    WHERE NOT EXISTS (
        SELECT FROM public.log_rows WHERE log_rows.tenant_no = :number_of_tenant AND log_rows.request = sent.request
    )
), copied AS MATERIALIZED (
    SELECT
        missing.*,
        $3::bigint - pg_catalog.dense_rank() OVER (ORDER BY batch_id) AS copied_id,
        pg_catalog.dense_rank() OVER (PARTITION BY batch_id ORDER BY resource_type)::smallint AS type_at,
        pg_catalog.dense_rank() OVER (PARTITION BY batch_id ORDER BY origin)::smallint AS origin_at
    FROM missing
), batches AS (
    :into_log_batches
    SELECT
        copied_id, completed_at, pg_catalog.count(*), 'c', ARRAY[$4::integer],
        pg_catalog.array_agg(DISTINCT resource_type ORDER BY resource_type),
        pg_catalog.array_agg(DISTINCT origin ORDER BY origin)
    FROM copied
    GROUP BY copied_id, completed_at
), outcomes AS (
    INSERT INTO public.log_outcomes (batch_id, position, tenant_no, error, sequence_number, result)
    SELECT copied_id, position, $4::integer, error, sequence_number, result
    FROM copied
    WHERE error IS NOT NULL OR result IS NOT NULL
)
:into_log_rows
SELECT
    copied_id, position, $4::integer, request, kind, type_at, resource, origin_at, requested_at,
    received_at, 0, digest
FROM copied
ORDER BY request;

-- name: read_new_rejections
-- At most $5 records rejected from $2 until $3, after the row of $2, $4, in the order of the index by time.
SELECT request_id, rejected_at, pg_catalog.to_jsonb(rejections.*)::pg_catalog.text AS whole
FROM public.rejections
WHERE
    tenant_id = $1 AND rejected_at >= $2 AND rejected_at <= $3
    AND (rejected_at, request_id) > ($2::pg_catalog.timestamptz, $4::pg_catalog.text)
ORDER BY rejected_at, request_id
LIMIT $5;

-- fragment: rejection_columns
tenant_id, request_id, reason, error, dead_letter_queue, source, sequence_number, message_id, rejected_at,
named_tenant_id, named_business_id

-- name: write_rejections
-- The newer ones replace the older.
INSERT INTO public.rejections (:rejection_columns)
SELECT sent.*
FROM pg_catalog.unnest($2::pg_catalog.text[]) AS row (document)
CROSS JOIN LATERAL pg_catalog.jsonb_populate_record(NULL::public.rejections, row.document::pg_catalog.jsonb) AS sent
WHERE sent.tenant_id = $1::pg_catalog.text
ON CONFLICT (tenant_id, request_id) DO UPDATE SET (:rejection_columns) = (SELECT excluded.*);

-- fragment: hashes
-- A hash of the data of each of `resources`, as text, which is made once; not of those with the types $6 and the ids $7.
CROSS JOIN LATERAL (SELECT resources.data::pg_catalog.text AS text OFFSET 0) AS document
CROSS JOIN LATERAL (
    SELECT pg_catalog.hashtextextended(
        pg_catalog.concat_ws(
            e'\x01', resources."businessType", resources."resourceName", resources."resourceId", document.text,
            resources.date::pg_catalog.text, resources."lastUpdated"::pg_catalog.text
        ),
        0
    ) AS hash
    OFFSET 0
) AS hashed
WHERE NOT EXISTS (
    SELECT FROM unnest($6::pg_catalog.text[], $7::pg_catalog.text[]) AS left_out (resource_type, resource_id)
    WHERE
        left_out.resource_type = resources."resourceName" AND left_out.resource_id = resources."resourceId"
)

-- name: checksum_resources
-- Of each resource type in a range: the number, the bytes as text, and the sum of hashes.
SELECT
    "resourceName" AS resource_type, pg_catalog.count(*) AS row_count,
    pg_catalog.sum(pg_catalog.octet_length(document.text))::pg_catalog.int8 AS byte_count,
    pg_catalog.sum(hashed.hash)::pg_catalog.text AS checksum
:resources_in_range
:hashes
GROUP BY "resourceName"
ORDER BY "resourceName";

-- name: hash_resources
SELECT "resourceName" AS resource_type, "resourceId" AS resource_id, hashed.hash::pg_catalog.text AS checksum
:resources_in_range
:hashes;

-- name: checksum_log
-- Of the operations in a range of keys completed from $6 on and before $7, without the requests $8, with all columns
-- that are copied. Not of rows that gave their keys to others: one shard may have done so, and the other not.
SELECT
    pg_catalog.count(*) AS row_count,
    coalesce(pg_catalog.sum(pg_catalog.hashtextextended(hashed.text, 0)), 0)::pg_catalog.text AS checksum
FROM (
    SELECT
        pg_catalog.concat_ws(
            e'\x01', pg_catalog.encode(log_rows.request, 'hex'), log_rows.kind,
            log_batches.types[log_rows.type_at], coalesce(pg_catalog.encode(log_rows.resource, 'hex'), e'\x02'),
            coalesce(log_outcomes.error, e'\x02'), coalesce(log_outcomes.sequence_number, e'\x02'),
            coalesce(log_outcomes.result::pg_catalog.text, e'\x02'),
            pg_catalog.encode(log_rows.digest, 'hex'), log_batches.origins[log_rows.origin_at],
            log_rows.requested_at::pg_catalog.text, log_rows.received_at::pg_catalog.text,
            log_batches.completed_at::pg_catalog.text
        ) AS text
    :log_in_range
    WHERE
        log_rows.request < '\x03'
        AND log_batches.completed_at >= $6 AND log_batches.completed_at < $7
        AND NOT EXISTS (  -- hashed, where ANY would look through all of them for each row
            SELECT FROM pg_catalog.unnest($8::pg_catalog.text[]) AS left_out (key)
            WHERE pg_catalog.decode(left_out.key, 'hex') = log_rows.request
        )
) AS hashed;

-- name: describe_tenant_size
-- For a plan: rows, stored bytes of resources, and the time of the last operation. Reads all rows.
SELECT
    kept.*, logged.*,
    (
        SELECT pg_catalog.count(*) FROM public.resource_versions WHERE resource_versions.tenant_no = :number_of_tenant
    ) AS versions
FROM (
    SELECT
        pg_catalog.count(*) AS resources,
        coalesce(pg_catalog.sum(pg_catalog.pg_column_size(resources.data)), 0)::pg_catalog.int8 AS byte_count
    FROM public.resources
    WHERE resources.id = $1
) AS kept
CROSS JOIN (
    SELECT pg_catalog.count(*) AS operations, pg_catalog.max(log_batches.completed_at) AS last_applied_at
    FROM public.log_rows
    JOIN public.log_batches USING (batch_id)
    WHERE log_rows.tenant_no = :number_of_tenant
) AS logged;

-- name: weigh_resources
-- The resources of each tenant, and their stored bytes; of a large shard from as many pages as have about $1 rows, as
-- reading all of them may take an hour.
WITH part AS MATERIALIZED (
    :sampled_part
)
SELECT resources.id, :sampled_sizes
FROM public.resources TABLESAMPLE system ((100::pg_catalog.float8 / (SELECT times FROM part))::pg_catalog.float4)
GROUP BY resources.id;

-- name: weigh_load
-- The operations in the last hour.
SELECT tenants.id, pg_catalog.count(*) AS load
FROM public.log_batches
JOIN public.log_rows USING (batch_id)
JOIN public.tenants ON tenants.number = log_rows.tenant_no
WHERE log_batches.completed_at > pg_catalog.clock_timestamp() - interval '1 hour'
GROUP BY tenants.id;
