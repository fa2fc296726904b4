-- The check of a new connection, before its first use.
--
-- All queries are qualified: a role that may create functions, operators or tables in a schema of the search path must
-- not have the worker run them. `public` stands for the schema of the shard's tables, which may be another one
-- (shards/postgres/queries.py). An operator has no schema where both types are exactly those of one in pg_catalog: no
-- other is preferred to that one. An `unnest` of several arrays in FROM is always that of pg_catalog.

-- name: find_home
-- The schema of the search path with our tables; in a database without them, the first, to make them in. NULL if no
-- schema of the path may be used.
SELECT (
    SELECT home.nspname::pg_catalog.text
    FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS path (name, place)
    JOIN pg_catalog.pg_namespace AS home ON home.nspname = path.name
    LEFT JOIN pg_catalog.pg_class AS meta
        ON meta.relnamespace = home.oid AND meta.relname = 'shard_meta' AND meta.relkind = 'r'
    ORDER BY meta.oid IS NULL, path.place
    LIMIT 1
) AS home;

-- fragment: server_columns
-- Whether the server takes writes, the encoding of the database, and which backend answers: behind a pooler another one
-- than at the start of the connection.
pg_catalog.pg_backend_pid() AS pid,
pg_catalog.pg_is_in_recovery() AS is_standby,
:refuses_writes AS is_read_only,
pg_catalog.current_setting('server_encoding') AS encoding

-- name: inspect_server
-- The same, with the identity of the database.
SELECT (SELECT shard_id FROM public.shard_meta) AS shard_id, :server_columns;

-- name: inspect_server_without_schema
-- The same for a database without our schema, and so without an identity, yet.
SELECT :server_columns;


-- name: read_clock
-- The time by the clock of the shard.
SELECT pg_catalog.clock_timestamp();

-- name: transaction_age
SELECT pg_catalog.clock_timestamp() - pg_catalog.now();
