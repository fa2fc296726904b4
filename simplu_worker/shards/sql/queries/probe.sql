-- A look at a shard's server: reads what it says of itself, and what of that this role may see.

-- name: is_read_only
-- Whether a write would be refused: a standby, a former primary.
SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean;

-- name: probe_server
-- What the server is, and what its clock says.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::integer AS version_number,
    pg_is_in_recovery() AS is_standby,
    pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS is_read_only,
    clock_timestamp() AS clock;

-- name: probe_connections
-- The connections in use, and the most there may be, by whichever limit is nearest: the server's less what is kept for
-- superusers, the database's, the role's. Roles that may see little see no backend_type, but every backend.
WITH clients AS (
    SELECT datid, usesysid
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL)
),
limits AS (
    SELECT
        (SELECT count(*) FROM clients) AS used,
        current_setting('max_connections')::integer
        - current_setting('superuser_reserved_connections')::integer
        - coalesce(current_setting('reserved_connections', true)::integer, 0) AS room
    UNION ALL
    SELECT (SELECT count(*) FROM clients WHERE clients.datid = pg_database.oid), datconnlimit
    FROM pg_database
    WHERE datname = current_database() AND datconnlimit >= 0
    UNION ALL
    SELECT (SELECT count(*) FROM clients WHERE clients.usesysid = pg_roles.oid), rolconnlimit
    FROM pg_roles
    WHERE rolname = session_user AND rolconnlimit >= 0 AND NOT rolsuper
)
SELECT used, room FROM limits ORDER BY used::float / greatest(room, 1) DESC LIMIT 1;

-- name: probe_standby
-- How far a standby is behind what it received; behind its last commit's time when it receives nothing.
SELECT
    CASE
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0.0
        ELSE extract(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp())
    END::float AS lag_s,
    pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint AS lag_bytes,
    0::bigint AS standby_count;

-- name: probe_primary
-- How far the standby that is furthest behind is behind; null where there is none, or this role may not see it.
SELECT
    extract(EPOCH FROM max(replay_lag))::float AS lag_s,
    max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn))::bigint AS lag_bytes,
    count(*) AS standby_count
FROM pg_stat_replication
WHERE state IS DISTINCT FROM 'backup';
