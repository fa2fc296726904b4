-- What a new connection is asked before anybody may use it.

-- name: inspect_server
-- Whose database it leads to, whether it takes writes, and which backend answers: behind a pooler it is not the one
-- that the connection was told.
SELECT
    (SELECT shard_id FROM shard_meta) AS shard_id,
    pg_backend_pid() AS pid,
    pg_is_in_recovery() AS is_standby,
    pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS is_read_only;

-- name: inspect_server_without_schema
-- The same where there is no schema, and so no identity, yet.
SELECT
    pg_backend_pid() AS pid,
    pg_is_in_recovery() AS is_standby,
    pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS is_read_only;
