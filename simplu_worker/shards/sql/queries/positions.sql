-- The positions that a shard stores of each stream shard (architecture, idea 8). All writes are idempotent: the
-- writer names the fencing tokens that it knows of the row, and leaves a new one.

-- fragment: move_token
-- A text that changes with each tenant that is moved to this shard: a move leaves a higher epoch; other changes may
-- too.
pg_catalog.concat_ws(
    ' ', pg_catalog.sum(epoch) FILTER (WHERE epoch > 1),
    extract(epoch FROM pg_catalog.max(state_changed_at) FILTER (WHERE epoch > 1))
) AS move_token

-- fragment: stored_positions
-- The rows of the stream $1.
SELECT stream_shard_id, owed_from, owed_since, read_to, held, parents_done, token::pg_catalog.text AS token
FROM public.stream_positions
WHERE stream = $1

-- name: read_positions
-- The rows of the stream shards $2.
:stored_positions AND stream_shard_id = ANY($2::pg_catalog.text[]);

-- name: read_positions_of_all_stream_shards
:stored_positions ORDER BY stream_shard_id;

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

-- name: fence_known_position
-- Leave the token $3 in the row if this reader wrote or read the row last: its token is one of $4. The row stays
-- locked, so that the reader's knowledge of the row holds until the commit.
UPDATE public.stream_positions
SET token = $3::pg_catalog.uuid
WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($4::pg_catalog.text[]::pg_catalog.uuid[]);

-- name: fence_position
-- Leave the token $3 in the row, or make a row without progress. Rows of other stream shards that the same
-- transaction has read survive a failover if the token does.
INSERT INTO public.stream_positions (stream, stream_shard_id, owed_from, parents_done, token)
VALUES ($1, $2, 'TRIM_HORIZON', false, $3::pg_catalog.uuid)
ON CONFLICT (stream, stream_shard_id) DO UPDATE SET token = excluded.token;

-- name: update_position
-- Set the position if this reader wrote or read the row last: its token is one of $8; otherwise no row is returned.
-- The row stays locked until the batch has committed: of two readers one waits for the other and then finds another
-- token.
UPDATE public.stream_positions
SET
    owed_from = $3, owed_since = $4, read_to = $5, held = $6::pg_catalog.text[], parents_done = $7,
    token = $9::pg_catalog.uuid
WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($8::pg_catalog.text[]::pg_catalog.uuid[])
RETURNING stream, stream_shard_id;

-- name: insert_position
-- Make the row unless another reader has made it. Not if a tenant was moved here since the reader found no row: $9 is
-- the `move_token` that `read_tenant_arrivals` returned then, or null if a move does not matter.
INSERT INTO public.stream_positions (stream, stream_shard_id, owed_from, owed_since, read_to, held, parents_done, token)
SELECT $1, $2, $3, $4::pg_catalog.timestamptz, $5, $6::pg_catalog.text[], $7::boolean, $8::pg_catalog.uuid
FROM (
    SELECT :move_token
    FROM public.tenants
) AS came
WHERE $9::pg_catalog.text IS NULL OR came.move_token = $9
ON CONFLICT (stream, stream_shard_id) DO NOTHING;

-- name: forget_positions
-- Delete the rows of stream shards without any record within its retention.
DELETE FROM public.stream_positions WHERE stream = $1 AND stream_shard_id = ANY($2::pg_catalog.text[]);

-- name: skip_disk_wait
-- For transactions that write positions alone: lost ones are written again.
SET LOCAL synchronous_commit = off;
