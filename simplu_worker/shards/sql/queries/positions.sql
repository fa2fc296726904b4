-- The positions that a shard stores of each stream shard (architecture, idea 8). All writes are idempotent: the
-- writer names the fencing tokens that it knows of the row, and leaves a new one.

-- fragment: move_token
-- A text that changes with each tenant that is moved to this shard: a move leaves a higher epoch; other changes may
-- too.
pg_catalog.concat_ws(
    ' ', pg_catalog.sum(epoch) FILTER (WHERE epoch > 1),
    extract(epoch FROM pg_catalog.max(state_changed_at) FILTER (WHERE epoch > 1))
) AS move_token

-- fragment: positions_document
-- The rows of the stream $1 and its stream shards $2, as JSON by stream shard; null without any.
(
    SELECT
        pg_catalog.jsonb_object_agg(
            stream_shard_id, pg_catalog.jsonb_strip_nulls(pg_catalog.to_jsonb(stream_positions))
        )::pg_catalog.text
    FROM public.stream_positions
    WHERE stream = $1 AND stream_shard_id = ANY($2::pg_catalog.text[])
) AS positions

-- name: read_positions
-- The rows of the stream $1 and its stream shards $2, all of them for null.
SELECT
    stream_shard_id, pending_from, pending_since, read_to, held, parents_done, token::pg_catalog.text AS token, gap_from,
    gap_accepted_at IS NOT NULL AS is_gap_accepted
FROM public.stream_positions
WHERE stream = $1 AND ($2::pg_catalog.text[] IS NULL OR stream_shard_id = ANY($2))
ORDER BY stream_shard_id;

-- name: read_tenant_arrivals
-- When the first of this shard's tenants was made: no operation was ever applied here that arrived long before. And
-- at most how many seconds ago the last tenant was moved here.
SELECT
    pg_catalog.min(created_at) AS first_at,
    extract(
        epoch FROM pg_catalog.clock_timestamp() - pg_catalog.max(state_changed_at) FILTER (WHERE epoch > 1)
    )::pg_catalog.float8 AS last_move_age_s,
    :move_token
FROM public.tenants;

-- fragment: fenced_token
-- The token $3 with the time that the row's token contains, if any: the content of the row stays as old as it is.
(
    CASE
        WHEN pg_catalog.substr(stream_positions.token::pg_catalog.text, 15, 1) = '7'::pg_catalog.text
        THEN
            pg_catalog.left(stream_positions.token::pg_catalog.text, 15)
            || pg_catalog.substr($3::pg_catalog.uuid::pg_catalog.text, 16)
        ELSE $3::pg_catalog.uuid::pg_catalog.text
    END
)::pg_catalog.uuid

-- name: fence_known_position
-- Leave the token $3 in the row if this reader wrote or read the row last: its token is one of $4. The row stays
-- locked, so that the reader's knowledge of the row holds until the commit.
UPDATE public.stream_positions
SET token = :fenced_token
WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($4::pg_catalog.text[]::pg_catalog.uuid[]);

-- name: fence_position
-- Leave the token $3 in the row, or make a row without progress. Rows of other stream shards that the same
-- transaction has read survive a failover if the token does.
INSERT INTO public.stream_positions (stream, stream_shard_id, pending_from, parents_done, token)
VALUES ($1, $2, 'TRIM_HORIZON', false, $3::pg_catalog.uuid)
ON CONFLICT (stream, stream_shard_id) DO UPDATE SET token = :fenced_token;

-- name: update_position
-- Set the position if this reader wrote or read the row last: its token is one of $9; otherwise no row is returned.
-- The row stays locked until the batch has committed: of two readers one waits for the other and then finds another
-- token.
UPDATE public.stream_positions
SET
    pending_from = $3, pending_since = $4, read_to = $5, held = $6::pg_catalog.text[], parents_done = $7, read_up_to = $8,
    token = $10::pg_catalog.uuid
WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($9::pg_catalog.text[]::pg_catalog.uuid[])
RETURNING stream, stream_shard_id;

-- name: insert_position
-- Make the row unless another reader has made it. Not if a tenant was moved here since the reader found no row: $10 is
-- the `move_token` that `read_tenant_arrivals` returned then, or null if a move does not matter.
INSERT INTO public.stream_positions (
    stream, stream_shard_id, pending_from, pending_since, read_to, held, parents_done, read_up_to, token
)
SELECT
    $1, $2, $3, $4::pg_catalog.timestamptz, $5, $6::pg_catalog.text[], $7::boolean, $8::pg_catalog.timestamptz,
    $9::pg_catalog.uuid
FROM (
    SELECT :move_token
    FROM public.tenants
) AS came
WHERE $10::pg_catalog.text IS NULL OR came.move_token = $10
ON CONFLICT (stream, stream_shard_id) DO NOTHING;

-- name: read_position_merges
-- How the row of the stream shard $2 got its last tokens from moves of tenants to this shard.
SELECT
    token::pg_catalog.text AS token, former_token::pg_catalog.text AS former_token, source_shard_id,
    carried_token::pg_catalog.text AS carried_token
FROM public.position_merges
WHERE stream = $1 AND stream_shard_id = $2;

-- name: mark_gap
-- Mark the row of the stream shard $2: the stream does not reach back to its position $3. Not again while the row has
-- that position, so that an acceptance stays. The token stays: the reader's knowledge of the content still holds.
UPDATE public.stream_positions
SET gap_from = pending_from, gap_found_at = pg_catalog.clock_timestamp(), gap_accepted_at = NULL
WHERE stream = $1 AND stream_shard_id = $2 AND pending_from = $3 AND gap_from IS DISTINCT FROM pending_from;

-- name: list_gaps
-- The rows with a gap that no person has accepted; the stream and the stream shard of each.
SELECT stream, stream_shard_id, gap_from, gap_found_at
FROM public.stream_positions
WHERE gap_from = pending_from AND gap_accepted_at IS NULL
ORDER BY stream, stream_shard_id;

-- name: accept_gaps
-- Accept all gaps of the shard; the rows that had one. The next write of a position ends the acceptance.
UPDATE public.stream_positions
SET gap_accepted_at = pg_catalog.clock_timestamp()
WHERE gap_from = pending_from AND gap_accepted_at IS NULL
RETURNING stream, stream_shard_id, gap_from, gap_found_at;

-- name: forget_positions
-- Delete the rows of stream shards without any record within its retention. Not a row with a gap that no person has
-- accepted: the mark is what holds the shard.
DELETE FROM public.stream_positions
WHERE
    stream = $1 AND stream_shard_id = ANY($2::pg_catalog.text[])
    AND (gap_from IS DISTINCT FROM pending_from OR gap_accepted_at IS NOT NULL);

-- name: skip_disk_wait
-- For transactions that write positions alone: lost ones are written again.
SET LOCAL synchronous_commit = off;
