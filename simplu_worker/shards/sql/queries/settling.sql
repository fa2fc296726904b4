-- What a worker reads of moves, and how it ends one that a killed mover left.

-- fragment: moving_columns
-- The columns of a tenant's row that decide the next step of its move, those that people set, the time, and the server.
id, business_id, location_id, business_type, state, epoch, move_token, moved_to, control_at, created_at,
paused_until, weight, operations_per_s, bytes_per_s,
(
    SELECT pg_catalog.to_jsonb(business_controls)::pg_catalog.text
    FROM public.business_controls
    WHERE business_controls.business_id = tenants.business_id
) AS business_controls,
(
    SELECT
        pg_catalog.jsonb_object_agg(
            pg_catalog."left"(target, 2),
            ARRAY[
                pg_catalog.date_part('epoch', operations_at - pg_catalog.clock_timestamp()),
                pg_catalog.date_part('epoch', bytes_at - pg_catalog.clock_timestamp())
            ]
        )::pg_catalog.text
    FROM public.limit_buckets
    WHERE target IN (pg_catalog.concat('t/', tenants.number), pg_catalog.concat('b/', tenants.business_id))
) AS buckets, pg_catalog.clock_timestamp() AS read_at, :server_run

-- name: find_tenant_to_move
SELECT :moving_columns FROM public.tenants WHERE id = $1;

-- name: lock_tenant_to_move
-- Waits for the batches in flight: their rows of the log are from before `read_at`, and all later ones from after it.
-- The row is locked in a query of its own: in one with the time, the time would be that from before the wait.
WITH locked AS MATERIALIZED (SELECT * FROM public.tenants WHERE id = $1 FOR UPDATE)
SELECT :moving_columns
FROM locked AS tenants;

-- fragment: transfer_columns
transfers.place, transfers.token, transfers.step, transfers.writes, transfers.detail::pg_catalog.text AS detail,
transfers.updated_at, pg_catalog.clock_timestamp() AS read_at

-- name: find_transfer
-- The row of the tenant $1 and the kind $2 in the journal of this shard.
SELECT :transfer_columns
FROM public.transfers
WHERE tenant_id = $1 AND kind = $2;

-- name: take_move_token
-- From now on no earlier mover of the tenant $1 can fence it or commit. Not while a restore replaces the tenant's rows:
-- its fence has no deadline.
UPDATE public.tenants
SET move_token = $2::pg_catalog.int8, fenced_until = NULL, state = CASE state WHEN 'fenced' THEN 'active' ELSE state END
WHERE
    id = $1 AND state IN ('active', 'fenced', 'moved') AND move_token < $2::pg_catalog.int8
    AND (state <> 'fenced' OR fenced_until IS NOT NULL);

-- name: list_moves
-- The moves from this shard that have not ended, those without a note for longest first, and the last ones that ended
-- within ten minutes: a probe of a shard comes more often than that.
SELECT
    tenant_id, place AS target_shard_id, token::bigint AS move_token, step, started_at, updated_at,
    (SELECT tenants.business_id FROM public.tenants WHERE tenants.id = listed.tenant_id) AS business_id,
    (SELECT tenants.location_id FROM public.tenants WHERE tenants.id = listed.tenant_id) AS location_id,
    pg_catalog.clock_timestamp() AS read_at,
    noted.phase, noted."rowCount" AS row_count, noted."byteCount" AS byte_count, noted.error, noted."seenAt" AS seen_at,
    noted.stopped IS NOT NULL AS is_stopped, noted.verdict, ended."pauseS" AS pause_s, ended."rowsCopied" AS rows_copied
FROM (
    (
        SELECT * FROM public.transfers
        WHERE kind = 'departure' AND step IN ('open', 'committed', 'undoing', 'cleaning')
        ORDER BY updated_at LIMIT 100
    )
    UNION ALL
    (
        SELECT * FROM public.transfers
        WHERE
            kind = 'departure' AND step IN ('done', 'undone')
            AND updated_at > pg_catalog.clock_timestamp() - interval '10 minutes'
        ORDER BY updated_at DESC LIMIT 500
    )
) AS listed
CROSS JOIN LATERAL pg_catalog.jsonb_to_record(listed.detail) AS noted (
    phase pg_catalog.text, "rowCount" pg_catalog.int8, "byteCount" pg_catalog.int8, error pg_catalog.text,
    "seenAt" pg_catalog.timestamptz, stopped boolean, verdict pg_catalog.text, certificate pg_catalog.jsonb
)
CROSS JOIN LATERAL pg_catalog.jsonb_to_record(noted.certificate) AS ended (
    "pauseS" pg_catalog.float8, "rowsCopied" pg_catalog.int8
);

-- name: end_overdue_fence
-- By any worker. No program may merely take an overdue fence for ended: the mover's commit may be under way. No fence
-- lasts a minute: the clock was set back since a later deadline was set.
UPDATE public.tenants
SET state = 'active', move_token = move_token + 1, fenced_until = NULL
WHERE
    id = $1 AND state = 'fenced'
    AND (
        fenced_until < pg_catalog.clock_timestamp()
        OR fenced_until > pg_catalog.clock_timestamp() + interval '1 minute'
    );

-- name: read_all_positions_of_shard
-- Of every stream.
SELECT stream, stream_shard_id, pending_from, pending_since, parents_done, token::pg_catalog.text AS token
FROM public.stream_positions;

-- name: lock_positions
-- Against readers' writes, until the commit.
LOCK TABLE public.stream_positions IN SHARE ROW EXCLUSIVE MODE;

-- name: merge_positions
-- Lower the positions of rows that both shards have, with new tokens. $1 streams, $2 stream shards, $3 positions, $4 the
-- times that belong to them, $5 whether all that the parents had for the shard is here, $6 the tokens. With the source
-- $9 of a tenant that has come it is noted where the new tokens come from: from those before, $7, and those of the
-- source as of the fence, $8. Older notes go: readers look at each row every few seconds.
WITH
    sent AS (
        SELECT *
        FROM unnest(
            $1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[],
            $5::pg_catalog.text[], $6::pg_catalog.text[], $7::pg_catalog.text[], $8::pg_catalog.text[]
        ) AS row (stream, stream_shard_id, pending_from, pending_since, parents_done, token, former_token, carried_token)
    ),
    forgotten AS (
        DELETE FROM public.position_merges
        WHERE merged_at < pg_catalog.clock_timestamp() - interval '10 minutes'
    ),
    noted AS (
        INSERT INTO public.position_merges (
            stream, stream_shard_id, token, former_token, carried_token, source_shard_id
        )
        SELECT
            stream, stream_shard_id, token::pg_catalog.uuid, former_token::pg_catalog.uuid,
            carried_token::pg_catalog.uuid, $9
        FROM sent
        WHERE $9::pg_catalog.text IS NOT NULL
    )
UPDATE public.stream_positions AS known
SET
    pending_from = sent.pending_from, pending_since = sent.pending_since::pg_catalog.timestamptz, read_to = NULL, held = NULL,
    read_up_to = NULL,
    parents_done = sent.parents_done::pg_catalog.bool, token = sent.token::pg_catalog.uuid
FROM sent
WHERE known.stream = sent.stream AND known.stream_shard_id = sent.stream_shard_id;

-- name: delete_positions
-- Of stream shards that only one of the two shards had a row of.
DELETE FROM public.stream_positions AS known
USING unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS sent (stream, stream_shard_id)
WHERE known.stream = sent.stream AND known.stream_shard_id = sent.stream_shard_id;

-- name: activate_tenant
-- The token is that of the `moved` row on the source. The new time shows readers that a tenant has arrived. Returns what
-- the journal has of it, NULL if that was deleted by hand; no row if the tenant is not ready.
WITH activated AS (
    UPDATE public.tenants
    SET state = 'active', state_changed_at = pg_catalog.clock_timestamp()
    WHERE id = $1 AND state = 'ready' AND move_token = $2
    RETURNING id, number, epoch
), marked AS (
    INSERT INTO public.log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins, epoch)
    SELECT
        :own_batch, pg_catalog.clock_timestamp(), 0, 'a', ARRAY[number], '{}',
        ARRAY(SELECT place FROM public.transfers WHERE transfers.tenant_id = $1 AND kind = 'arrival'), epoch
    FROM activated
)
SELECT :transfer_columns
FROM activated
LEFT JOIN public.transfers ON transfers.tenant_id = $1 AND transfers.kind = 'arrival';
