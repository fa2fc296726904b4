-- The positions that a shard stores of each stream shard (architecture, idea 8). All writes are idempotent: the
-- writer names the fencing tokens that it knows of the row, and leaves a new one.

-- fragment: move_token
-- A text that changes with each tenant that is moved to this shard: a move leaves a higher epoch; other changes may
-- too.
concat_ws(
    ' ', sum(epoch) FILTER (WHERE epoch > 1), extract(epoch FROM max(state_changed_at) FILTER (WHERE epoch > 1))
) AS move_token

-- name: read_positions
-- The rows of the stream shards $2 of the stream $1.
SELECT stream_shard_id, owed_from, owed_since, read_to, held, parents_done, token::text AS token
FROM stream_positions
WHERE stream = $1 AND stream_shard_id = ANY($2::text[]);

-- name: read_tenant_arrivals
-- When the first of this shard's tenants was made: no operation was ever applied here that arrived long before. And
-- at most how many seconds ago the last tenant was moved here.
SELECT
    min(created_at) AS first_at,
    extract(epoch FROM clock_timestamp() - max(state_changed_at) FILTER (WHERE epoch > 1))::float8 AS last_move_age_s,
    :move_token
FROM tenants;

-- name: fence_known_position
-- Leave the token $3 in the row if this reader wrote or read the row last: its token is one of $4. The row stays
-- locked, so that the reader's knowledge of the row holds until the commit.
UPDATE stream_positions SET token = $3::uuid WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($4::uuid[]);

-- name: fence_position
-- Leave the token $3 in the row, or make a row without progress. Rows of other stream shards that the same
-- transaction has read survive a failover if the token does.
INSERT INTO stream_positions (stream, stream_shard_id, owed_from, parents_done, token)
VALUES ($1, $2, 'TRIM_HORIZON', false, $3::uuid)
ON CONFLICT (stream, stream_shard_id) DO UPDATE SET token = excluded.token;

-- name: update_position
-- Set the position if this reader wrote or read the row last: its token is one of $8; otherwise no row is returned.
-- The row stays locked until the batch has committed: of two readers one waits for the other and then finds another
-- token.
UPDATE stream_positions
SET owed_from = $3, owed_since = $4, read_to = $5, held = $6::text[], parents_done = $7, token = $9::uuid
WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($8::uuid[])
RETURNING stream, stream_shard_id;

-- name: insert_position
-- Make the row unless another reader has made it. Not if a tenant was moved here since the reader found no row: $9 is
-- the `move_token` that `read_tenant_arrivals` returned then, or null if a move does not matter.
INSERT INTO stream_positions (stream, stream_shard_id, owed_from, owed_since, read_to, held, parents_done, token)
SELECT $1, $2, $3, $4::timestamptz, $5, $6::text[], $7::boolean, $8::uuid
FROM (
    SELECT :move_token
    FROM tenants
) AS came
WHERE $9::text IS NULL OR came.move_token = $9
ON CONFLICT (stream, stream_shard_id) DO NOTHING;

-- name: forget_positions
-- Delete the rows of stream shards without any record within its retention.
DELETE FROM stream_positions WHERE stream = $1 AND stream_shard_id = ANY($2::text[]);

-- name: skip_disk_wait
-- For transactions that write positions alone: lost ones are written again.
SET LOCAL synchronous_commit = off;
