-- The feed of changes to other systems (simplu_worker/feed/). Each write is fenced by the token in `feed_shards`.

-- fragment: feed_state
-- What the row of the publisher says, and what decides where to read: the run of the server, the newest batch, and the
-- highest one that the retention has deleted.
feed_shards.incarnation, feed_shards.server_run, :server_run,
(SELECT shard_meta.batch_offset FROM public.shard_meta) AS batch_offset,
(SELECT pg_catalog.max(log_batches.batch_id) FROM public.log_batches) AS newest,
:forgotten_columns,
pg_catalog.clock_timestamp() AS read_at

-- fragment: forgotten_columns
(SELECT log_forgotten.batch_id FROM public.log_forgotten) AS forgotten,
(SELECT log_forgotten.completed_at FROM public.log_forgotten) AS forgotten_at

-- fragment: feed_horizon
-- Below it every transaction has ended.
(
    SELECT
        pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.text::bigint + shard_meta.batch_offset
    FROM public.shard_meta
)

-- fragment: without_disk_wait
-- The row may be lost: then another replica has the row, and nothing was published for longer than its time.
pg_catalog.set_config('synchronous_commit', 'off', true)

-- name: find_feed_publisher
-- For how long the shard has a publisher yet, in seconds; no row if it never had one.
SELECT extract(EPOCH FROM feed_shards.expires_at - pg_catalog.clock_timestamp())::pg_catalog.float8 AS expires_in_s
FROM public.feed_shards;

-- name: claim_feed
-- Take the row for the replica $2 with the token $1 for $3 seconds, if it is free.
INSERT INTO public.feed_shards AS known (token, publisher, expires_at)
VALUES ($1::pg_catalog.uuid, $2, pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3))
ON CONFLICT (only_row) DO UPDATE
SET token = excluded.token, publisher = excluded.publisher, expires_at = excluded.expires_at
WHERE known.expires_at < pg_catalog.clock_timestamp()
RETURNING publisher;

-- name: renew_feed
-- Keep the row with the token $1 for $2 more seconds; no row if it is another publisher's by now.
UPDATE public.feed_shards
SET expires_at = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2)
WHERE token = $1::pg_catalog.uuid
RETURNING :feed_state, :without_disk_wait;

-- name: release_feed
UPDATE public.feed_shards SET expires_at = pg_catalog.clock_timestamp() WHERE token = $1::pg_catalog.uuid;

-- name: lock_feed
-- The row, while its token is $1: no other replica takes it until the end of the transaction.
SELECT :feed_state FROM public.feed_shards WHERE token = $1::pg_catalog.uuid FOR UPDATE OF feed_shards;

-- name: begin_incarnation
UPDATE public.feed_shards SET incarnation = $2, server_run = $3 WHERE token = $1::pg_catalog.uuid;

-- name: begin_feed_cursors
-- Of the destinations $1 those that were not there, with $2 where each begins: `now`, `oldest`, or a time. On a shard that had no publisher yet, and whose log began within $3 seconds, `now` is at the
-- beginning: the shard is new, and what came meanwhile is behind the begin of the destination elsewhere.
-- Each begins with a reset: nobody knows whether a promotion has taken back an earlier cursor.
-- In a transaction that has locked the row of the publisher. A destination begins before a tenant that has arrived within
-- the last ten minutes, so that it waits for its source.
WITH wanted AS (
    SELECT sent.destination, sent.begin,
        CASE
            WHEN
                sent.begin = 'oldest'
                OR sent.begin = 'now'
                AND (SELECT feed_shards.server_run FROM public.feed_shards) IS NULL
                AND NOT EXISTS (SELECT FROM public.log_forgotten)
                AND NOT EXISTS (
                    SELECT
                    FROM public.log_batches
                    WHERE
                        log_batches.completed_at
                        < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3)
                        AND log_batches.batch_id > 0::bigint
                )
            THEN coalesce((SELECT log_forgotten.batch_id FROM public.log_forgotten), 0)
            WHEN sent.begin = 'now' THEN :feed_horizon - 1
            ELSE coalesce(
                (
                    SELECT pg_catalog.min(later.batch_id) - 1
                    FROM (
                        SELECT log_batches.batch_id
                        FROM public.log_batches
                        WHERE
                            log_batches.completed_at >= sent.begin::pg_catalog.timestamptz
                            AND log_batches.batch_id > 0::bigint
                        ORDER BY log_batches.completed_at
                        LIMIT 10000
                    ) AS later
                ),
                :feed_horizon - 1
            )
        END AS batch_id
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS sent (destination, begin)
    WHERE NOT EXISTS (SELECT FROM public.feed_cursors WHERE feed_cursors.destination = sent.destination)
)
INSERT INTO public.feed_cursors (destination, batch_id, position)
SELECT
    wanted.destination,
    least(
        wanted.batch_id,
        (
            SELECT pg_catalog.min(arrived.batch_id) - 1
            FROM public.log_batches AS arrived
            WHERE
                arrived.kind = 'a' AND arrived.epoch IS NOT NULL
                AND arrived.completed_at > pg_catalog.clock_timestamp() - interval '10 minutes'
        )
    ),
    32767
FROM wanted;

-- name: read_feed_cursors
SELECT
    destination, batch_id, position, incarnation, waits_for IS NOT NULL AS is_waiting, stopped, error, refused_event,
    passed_event, behind_since
FROM public.feed_cursors;

-- name: note_feed_file
-- The publisher has the destinations $1 in its file, and no others.
UPDATE public.feed_cursors
SET is_in_file = NOT is_in_file
WHERE is_in_file <> (destination = ANY($1::pg_catalog.text[]));

-- name: write_feed_cursors
-- Those in $2, while the token of the publisher is $1 and the server is in the run with the timeline $3 and the start $4.
-- A claim waits for the end of it.
WITH run AS (
    SELECT :server_run
), mine AS (
    SELECT :without_disk_wait
    FROM public.feed_shards
    CROSS JOIN run
    WHERE
        feed_shards.token = $1::pg_catalog.uuid
        AND run.timeline = $3::pg_catalog.text AND run.started_at = $4::pg_catalog.timestamptz
    FOR SHARE OF feed_shards
)
UPDATE public.feed_cursors
SET
    batch_id = sent.batch_id, position = sent.position, incarnation = sent.incarnation, waits_for = sent.waits_for,
    stopped = sent.stopped, error = sent.error, refused_event = sent.refused_event, passed_event = sent.passed_event,
    behind_since = sent.behind_since, updated_at = pg_catalog.clock_timestamp()
FROM mine, pg_catalog.jsonb_populate_recordset(
    NULL::public.feed_cursors, $2::pg_catalog.text::pg_catalog.jsonb
) AS sent
WHERE feed_cursors.destination = sent.destination
RETURNING feed_cursors.destination;

-- name: read_feed
-- The batches of the log from $2 to $5, with about $4 rows at most: those behind the row $3 of the batch $2, in their
-- order, by column. With what tells how safe they are, and what the retention has deleted by then. None if the token is
-- not $1 any more; without $1 whoever publishes.
-- The batch $2 costs nothing: a move may have dropped its rest, and whoever gets no row takes that for the end.
WITH mine AS MATERIALIZED (
    SELECT :replication_facts, :forgotten_columns
    WHERE
        $1::pg_catalog.uuid IS NULL
        OR EXISTS (SELECT FROM public.feed_shards WHERE feed_shards.token = $1::pg_catalog.uuid)
), horizon AS MATERIALIZED (
    SELECT :feed_horizon AS batch_id
), found AS MATERIALIZED (
    SELECT
        batch_id, completed_at, token, kind, epoch, tenants, types, origins,
        CASE batch_id WHEN $2 THEN 0 ELSE 1 + row_count END AS cost
    FROM public.log_batches
    WHERE
        batch_id >= $2::bigint AND batch_id <= $5::bigint AND batch_id < (SELECT horizon.batch_id FROM horizon)
    ORDER BY batch_id
    LIMIT $4::integer + 1
), summed AS (
    SELECT *, pg_catalog.sum(cost) OVER (ORDER BY batch_id) - cost AS cost_before FROM found
)
SELECT
    mine.*,
    batches.batch_id, batches.completed_at, batches.token::pg_catalog.text AS token,
    batches.kind::pg_catalog.text AS kind, batches.epoch, batches.tenants[1] AS tenant_no, batches.types,
    batches.origins,
    ARRAY(
        SELECT ARRAY[
            tenants.number::pg_catalog.text, tenants.id, business_id, location_id, business_type,
            coalesce(business_types.stored_names::pg_catalog.text, '{}')
        ]
        FROM public.tenants
        LEFT JOIN public.business_types ON business_types.name = tenants.business_type
        WHERE tenants.number = ANY(batches.tenants)
    ) AS tenants,
    ARRAY(
        SELECT log_outcomes.position::pg_catalog.text
        FROM public.log_outcomes
        WHERE log_outcomes.batch_id = batches.batch_id AND log_outcomes.error IS NOT NULL
    ) AS failed,
    logged.*
FROM (SELECT * FROM summed WHERE cost_before < $4) AS batches
CROSS JOIN mine
CROSS JOIN LATERAL (
    SELECT
        pg_catalog.string_agg(pg_catalog.int2send(position), '\x'::pg_catalog.bytea) AS positions,
        pg_catalog.string_agg(pg_catalog.int4send(tenant_no), '\x'::pg_catalog.bytea) AS row_tenant_nos,
        pg_catalog.string_agg(kind::pg_catalog.text, '') AS kinds,
        pg_catalog.string_agg(pg_catalog.int2send(type_at), '\x'::pg_catalog.bytea) AS types_at,
        pg_catalog.string_agg(pg_catalog.int2send(origin_at), '\x'::pg_catalog.bytea) AS origins_at,
        pg_catalog.array_agg(pg_catalog.encode(resource, 'hex')) AS resources,
        pg_catalog.array_agg(pg_catalog.encode(request, 'hex')) AS requests
    FROM (
        SELECT *
        FROM public.log_rows
        WHERE
            log_rows.batch_id = batches.batch_id
            AND (batches.batch_id > $2 OR log_rows.position > $3::integer)
        ORDER BY log_rows.position
        LIMIT $4 - batches.cost_before
    ) AS ordered
) AS logged
ORDER BY batches.batch_id;

-- name: read_feed_data
-- The resources $2, $3 of the tenants $1 that live here, as they are now, in their order: of each its number, from 0, and
-- its document, empty if that has more than $4 bytes, or its tenant does not live here. As many as begin within $5 bytes,
-- of what is stored and of texts; `left_at` is the number of the first that is left. With what tells how safe they are.
WITH found AS MATERIALIZED (
    SELECT
        wanted.number, resources.data,
        coalesce(
            pg_catalog.sum(pg_catalog.pg_column_size(resources.data)) OVER (ORDER BY wanted.number)
            - pg_catalog.pg_column_size(resources.data),
            0::bigint
        ) AS bytes_before
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[])
        WITH ORDINALITY AS wanted (tenant_id, resource_type, resource_id, number)
    JOIN public.tenants ON tenants.id = wanted.tenant_id
    LEFT JOIN public.resources
        ON
            resources.id = wanted.tenant_id
            AND resources."resourceName" = wanted.resource_type
            AND resources."resourceId" = wanted.resource_id
            AND :lives_here
    WHERE NOT (:lives_here AND resources.id IS NULL)
), summed AS MATERIALIZED (
    SELECT
        found.number, fitting.text,
        pg_catalog.sum(pg_catalog.octet_length(fitting.text)) OVER (ORDER BY found.number)
        - pg_catalog.octet_length(fitting.text) AS bytes_before
    FROM found
    CROSS JOIN LATERAL (SELECT found.data::pg_catalog.text AS text OFFSET 0) AS whole
    CROSS JOIN LATERAL (
        SELECT CASE WHEN pg_catalog.octet_length(whole.text) <= $4::integer THEN whole.text ELSE '' END AS text OFFSET 0
    ) AS fitting
    WHERE found.bytes_before < $5::bigint
), given AS MATERIALIZED (
    SELECT summed.number, summed.text FROM summed WHERE summed.bytes_before < $5
)
SELECT
    :replication_facts,
    ARRAY(SELECT (given.number - 1)::pg_catalog.text FROM given ORDER BY given.number) AS numbers,
    ARRAY(SELECT given.text FROM given ORDER BY given.number) AS documents,
    (
        SELECT pg_catalog.min(found.number) - 1
        FROM found
        WHERE found.number > (SELECT pg_catalog.max(given.number) FROM given)
    ) AS left_at;

-- name: find_passed_departure
-- On the source: the run of the server that answers, if the destination $1 has passed the departure of the tenant $2 in the
-- epoch $3, or that left no mark any more. No row while the destination has no cursor here.
SELECT :server_run
FROM public.feed_cursors
WHERE
    feed_cursors.destination = $1
    AND NOT EXISTS (
        SELECT
        FROM public.log_batches
        JOIN public.tenants ON tenants.number = log_batches.tenants[1]
        WHERE
            log_batches.kind = 'l' AND tenants.id = $2 AND log_batches.epoch = $3::bigint
            AND log_batches.epoch IS NOT NULL
            AND (
                log_batches.batch_id > feed_cursors.batch_id
                OR log_batches.batch_id = feed_cursors.batch_id AND feed_cursors.position < 0::integer
            )
    );

-- name: note_feed_refusal
-- Keep an event that the destination $2 refused for good, while the token is $1; at most 10,000 of a destination.
INSERT INTO public.feed_refusals (destination, event_id, event, error)
SELECT $2, $3, $4::pg_catalog.text::pg_catalog.jsonb, $5
FROM public.feed_shards
WHERE
    feed_shards.token = $1::pg_catalog.uuid
    AND (
        SELECT pg_catalog.count(*) FROM public.feed_refusals WHERE feed_refusals.destination = $2
    ) < 10000::bigint
ON CONFLICT (destination, event_id) DO UPDATE SET error = excluded.error;

-- name: forget_old_refusals
-- Delete at most $2 refusals that are older than $1 seconds; those that another worker deletes now are left to it.
DELETE FROM public.feed_refusals
WHERE ctid = ANY(
    ARRAY(
        SELECT ctid FROM public.feed_refusals
        WHERE refused_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    )
);

-- name: show_feed
-- What each destination has of this shard, with its latest $1 refusals. The lag counts from the oldest change that is not
-- delivered.
SELECT
    feed_cursors.destination, feed_cursors.is_in_file,
    feed_cursors.waits_for::pg_catalog.text AS waits_for, feed_cursors.stopped, feed_cursors.error, feed_cursors.refused_event,
    CASE WHEN feed_shards.expires_at > pg_catalog.clock_timestamp() THEN feed_shards.publisher END AS publisher,
    extract(
        EPOCH FROM pg_catalog.clock_timestamp() - least(
            feed_cursors.behind_since,
            (
                SELECT log_batches.completed_at
                FROM public.log_batches
                WHERE log_batches.batch_id > feed_cursors.batch_id
                ORDER BY log_batches.batch_id
                LIMIT 1
            )
        )
    )::pg_catalog.float8 AS lag_s,
    (
        SELECT pg_catalog.count(*) FROM public.feed_refusals
        WHERE feed_refusals.destination = feed_cursors.destination
    ) AS refusal_count,
    (
        SELECT
            pg_catalog.jsonb_agg(
                pg_catalog.jsonb_build_array(latest.event, latest.error, latest.refused_at)
            )::pg_catalog.text
        FROM (
            SELECT feed_refusals.event, feed_refusals.error, feed_refusals.refused_at
            FROM public.feed_refusals
            WHERE feed_refusals.destination = feed_cursors.destination
            ORDER BY feed_refusals.refused_at DESC, feed_refusals.event_id
            LIMIT $1
        ) AS latest
    ) AS refusals
FROM public.feed_cursors
CROSS JOIN public.feed_shards
ORDER BY feed_cursors.destination;

-- name: take_feed
-- Take the row from its publisher, for a change of cursors in this transaction: it writes none of its own any more, reads
-- nothing more, and stops at its next renewal. A replica takes the row once its time is over, and reads the cursors anew.
UPDATE public.feed_shards SET token = pg_catalog.gen_random_uuid();

-- name: plan_feed_replay
-- `behind`, the batch behind which everything is that was committed at $2 or later, null if the destination $1 was sent
-- nothing of that yet; how many changes that are, of 100,000 batches; and when they begin, if the log has nothing older.
SELECT
    replay.behind, feed_cursors.stopped,
    CASE WHEN forgotten.completed_at > $2::pg_catalog.timestamptz THEN forgotten.completed_at END AS begins_at,
    (
        SELECT coalesce(pg_catalog.sum(again.row_count), 0::bigint)::bigint
        FROM (
            SELECT log_batches.row_count
            FROM public.log_batches
            WHERE log_batches.batch_id > replay.behind AND log_batches.batch_id <= feed_cursors.batch_id
            ORDER BY log_batches.batch_id
            LIMIT 100000
        ) AS again
    ) AS change_count
FROM public.feed_cursors
LEFT JOIN public.log_forgotten AS forgotten ON true
LEFT JOIN LATERAL (
    SELECT greatest(pg_catalog.min(later.batch_id) - 1, forgotten.batch_id) AS behind
    FROM (
        SELECT log_batches.batch_id
        FROM public.log_batches
        WHERE log_batches.completed_at >= $2 AND log_batches.batch_id > 0::bigint
        ORDER BY log_batches.completed_at
        LIMIT 10000
    ) AS later
    HAVING
        pg_catalog.count(*) > 0::bigint
        AND greatest(pg_catalog.min(later.batch_id) - 1, forgotten.batch_id) < feed_cursors.batch_id
) AS replay ON true
WHERE feed_cursors.destination = $1;

-- name: put_feed_cursor_back
-- Put the cursor of the destination $1 behind the batch $2, in a transaction that has taken the row.
UPDATE public.feed_cursors
SET batch_id = $2, position = 32767, waits_for = NULL, updated_at = pg_catalog.clock_timestamp()
WHERE destination = $1 AND batch_id > $2;

-- name: read_feed_cursor
SELECT stopped, error, refused_event FROM public.feed_cursors WHERE destination = $1;

-- name: skip_in_feed
-- Let the destination $1 go on where it has stopped, or pass the event $2, in a transaction that has taken the row.
UPDATE public.feed_cursors
SET
    stopped = NULL, error = NULL, passed_event = coalesce($2, passed_event), updated_at = pg_catalog.clock_timestamp()
WHERE destination = $1;

-- name: plan_feed_forget
-- What the shard has of the destination $1. With the row of the publisher locked: a replica that has the destination in its
-- file begins it anew behind this transaction. It counts as in the file until no replica has published for a minute.
SELECT
    feed_shards.publisher, feed_cursors.updated_at,
    feed_cursors.is_in_file AND feed_shards.expires_at > pg_catalog.clock_timestamp() - interval '1 minute' AS is_in_file,
    (SELECT pg_catalog.count(*) FROM public.feed_refusals WHERE feed_refusals.destination = $1) AS refusal_count
FROM public.feed_cursors
CROSS JOIN public.feed_shards
WHERE feed_cursors.destination = $1
FOR UPDATE OF feed_shards;

-- name: forget_feed_destination
WITH refusals AS (
    DELETE FROM public.feed_refusals WHERE feed_refusals.destination = $1
)
DELETE FROM public.feed_cursors WHERE feed_cursors.destination = $1;
