-- A look at a shard's server.

-- name: is_read_only
-- Whether a write would be refused: a standby, a former primary.
SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean;

-- name: probe_server
-- What the server is, and what its clock says.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::integer AS version_number,
    pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS is_read_only,
    clock_timestamp() AS clock;
