-- The check of a new connection, before its first use.

-- name: inspect_server
-- The identity of the database, whether the server takes writes, and which backend answers: behind a pooler another
-- one than at the start of the connection.
SELECT
    (SELECT shard_id FROM shard_meta) AS shard_id,
    pg_backend_pid() AS pid,
    pg_is_in_recovery() AS is_standby,
    :refuses_writes AS is_read_only;

-- name: inspect_server_without_schema
-- The same for a database without our schema, and so without an identity, yet.
SELECT
    pg_backend_pid() AS pid,
    pg_is_in_recovery() AS is_standby,
    :refuses_writes AS is_read_only;
