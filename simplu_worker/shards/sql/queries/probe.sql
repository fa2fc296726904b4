-- A probe of a shard's server: its state, as far as this role may see it.

-- fragment: refuses_writes
-- Whether the server would refuse a write: a standby, a former primary.
pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::boolean

-- name: is_read_only
SELECT :refuses_writes;

-- name: take_transaction_id
-- Take a transaction id, as the first write of a transaction does. A server with none left refuses that (54000).
SELECT pg_catalog.pg_current_xact_id();

-- name: probe_server
-- The kind of server, and its clock.
SELECT
    pg_catalog.current_setting('server_version') AS version,
    pg_catalog.current_setting('server_version_num')::integer AS version_number,
    pg_catalog.pg_is_in_recovery() AS is_standby,
    :refuses_writes AS is_read_only,
    pg_catalog.clock_timestamp() AS clock;

-- name: probe_connections
-- The connections in use, and the most that there may be: the server's less those reserved for superusers. A role with
-- few rights sees no backend_type, but every backend.
SELECT
    pg_catalog.count(*) AS connections_used,
    pg_catalog.current_setting('max_connections')::integer
    - pg_catalog.current_setting('superuser_reserved_connections')::integer
    - coalesce(pg_catalog.current_setting('reserved_connections', true)::integer, 0) AS connections_max
FROM pg_catalog.pg_stat_activity
WHERE backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL);

-- name: probe_upgrade
-- Whether a session holds the lock under which the schema is made and upgraded (`schema_lock`). Every role may see it.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_locks
    JOIN pg_catalog.pg_database ON pg_database.oid = pg_locks.database
    WHERE
        pg_database.datname = pg_catalog.current_database()
        AND pg_locks.locktype = 'advisory' AND pg_locks.granted AND pg_locks.objsubid = 1::pg_catalog.int2
        AND (pg_locks.classid::pg_catalog.int8 << 32) | pg_locks.objid::pg_catalog.int8 = :schema_lock
) AS is_upgrading;

-- name: probe_standby
-- How far a standby is behind the log that it received; if it receives nothing, behind the time of its last commit.
SELECT
    CASE
        WHEN
            pg_catalog.pg_last_wal_receive_lsn() = pg_catalog.pg_last_wal_replay_lsn()
            AND EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver)
        THEN 0.0
        ELSE extract(EPOCH FROM pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp())
    END::pg_catalog.float8 AS lag_s,
    0::bigint AS standby_count;

-- name: probe_primary
-- How far the slowest standby is behind; null if there is none, or this role may not see it. With how safe commits are.
SELECT
    extract(EPOCH FROM pg_catalog.max(replay_lag))::pg_catalog.float8 AS lag_s,
    pg_catalog.count(*) AS standby_count,
    :replication_facts
FROM pg_catalog.pg_stat_replication
WHERE state IS DISTINCT FROM 'backup';
