-- How far each stream shard got, as a shard knows it (architecture, idea 8). All of it idempotent: who writes names the
-- token of the row that it saw, and leaves another one.

-- name: read_positions
-- What this shard knows of the stream shards $2 of the stream $1.
SELECT stream_shard_id, owed_from, owed_since, read_to, held, parents_done, token::text AS token
FROM stream_positions
WHERE stream = $1 AND stream_shard_id = ANY($2::text[]);

-- name: read_tenant_arrivals
-- When the first of this shard's tenants was made; no operation was ever applied here that arrived long before it. And
-- how long ago the last was moved here, at most: a move leaves a higher epoch, and other things may. `move_token` is another
-- then.
SELECT
    min(created_at) AS first_at,
    extract(epoch FROM clock_timestamp() - max(state_changed_at) FILTER (WHERE epoch > 1))::float8 AS last_move_age_s,
    concat_ws(
        ' ', sum(epoch) FILTER (WHERE epoch > 1), extract(epoch FROM max(state_changed_at) FILTER (WHERE epoch > 1))
    ) AS move_token
FROM tenants;

-- name: fence_known_position
-- Leave another token in the row, if it is still one that this reader wrote or read: its token is one of $4. The row stays
-- locked, so what the reader knows of it is true until the commit.
UPDATE stream_positions SET token = $3::uuid WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($4::uuid[]);

-- name: fence_position
-- Leave another token in the row, or make one that claims nothing. What its transaction has read here besides, of other
-- stream shards, survives wherever the token does.
INSERT INTO stream_positions (stream, stream_shard_id, owed_from, parents_done, token)
VALUES ($1, $2, 'TRIM_HORIZON', false, $3::uuid)
ON CONFLICT (stream, stream_shard_id) DO UPDATE SET token = excluded.token;

-- name: update_position
-- Set the position, if the row is still one that this reader wrote or read: its token is one of $8; if not, nothing is
-- returned. The row stays locked until the batch has committed, so of two readers one waits for the other and then finds another token.
UPDATE stream_positions
SET owed_from = $3, owed_since = $4, read_to = $5, held = $6::text[], parents_done = $7, token = $9::uuid
WHERE stream = $1 AND stream_shard_id = $2 AND token = ANY($8::uuid[])
RETURNING stream, stream_shard_id;

-- name: insert_position
-- Make the row where there was none; another reader may have been faster. Not where a tenant was moved here since that
-- was seen: $9 is what `read_tenant_arrivals` had as `move_token`, or null where that need not be looked at.
INSERT INTO stream_positions (stream, stream_shard_id, owed_from, owed_since, read_to, held, parents_done, token)
SELECT $1, $2, $3, $4::timestamptz, $5, $6::text[], $7::boolean, $8::uuid
FROM (
    SELECT
        concat_ws(
            ' ', sum(epoch) FILTER (WHERE epoch > 1), extract(epoch FROM max(state_changed_at) FILTER (WHERE epoch > 1))
        ) AS move_token
    FROM tenants
) AS came
WHERE $9::text IS NULL OR came.move_token = $9
ON CONFLICT (stream, stream_shard_id) DO NOTHING;

-- name: forget_positions
-- Delete what is known of stream shards whose records have all passed their retention.
DELETE FROM stream_positions WHERE stream = $1 AND stream_shard_id = ANY($2::text[]);

-- name: skip_disk_wait
-- For writes beside no effect: what is lost of them is written again.
SET LOCAL synchronous_commit = off;
