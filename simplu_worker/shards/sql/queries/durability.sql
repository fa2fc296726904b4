-- How safe the commits on a shard are. Positions are bytes of the write-ahead log; they compare within one run of a
-- server on one timeline, identified by timeline and started_at. All of these queries fail on a standby. Aurora
-- refuses to report positions (55000), and its storage, not standbys, keeps the commits: there the positions are left
-- out.

-- fragment: server_run
-- The timeline and the start of the server: with another one, positions do not compare.
CASE
    WHEN pg_catalog.to_regproc('pg_catalog.aurora_version') IS NULL
    THEN pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
    ELSE ''
END AS timeline,
pg_catalog.pg_postmaster_start_time() AS started_at

-- fragment: replication_facts
-- What decides how safe a commit is that the answer shows. The statement's snapshot is taken before it reads `position`, and
-- a commit is visible only after its record is in the write-ahead log: `position` is behind all that it shows. A slot's
-- restart_lsn is the position that its standby has flushed, and every role may see it; pg_stat_replication shows more only
-- to a member of pg_read_all_stats. Logical subscribers and programs that copy the log cannot take the server's place, and
-- are left out.
:server_run,
CASE
    WHEN pg_catalog.to_regproc('pg_catalog.aurora_version') IS NULL
    THEN (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_catalog.pg_lsn)::bigint
    ELSE 0
END AS position,
pg_catalog.current_setting('synchronous_commit') AS synchronous_commit,
CASE
    WHEN pg_catalog.current_setting('max_wal_senders')::integer > 0
    THEN pg_catalog.current_setting('synchronous_standby_names')
    ELSE ''
END AS synchronous_standby_names,
pg_catalog.current_setting('fsync')::boolean AS fsync,
(
    SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
        'name', pg_catalog.concat_ws(
            ' ', coalesce(slot.slot_name, sender.application_name), pg_catalog.host(sender.client_addr)
        ),
        'state', sender.state,
        'flushed', (coalesce(sender.flush_lsn, slot.restart_lsn) - '0/0'::pg_catalog.pg_lsn)::bigint
    )), '[]')::pg_catalog.text
    FROM pg_catalog.pg_stat_replication AS sender
    LEFT JOIN pg_catalog.pg_replication_slots AS slot ON slot.active_pid = sender.pid
    WHERE slot.slot_type IS DISTINCT FROM 'logical'
        AND sender.state IS DISTINCT FROM 'backup'
        AND coalesce(sender.application_name, '') NOT IN ('pg_basebackup', 'pg_receivewal')
) AS standbys

-- fragment: unlogged
-- The indexes of the operations that are not in the log; $1 are their tenants, $2 the keys of their requests.
ARRAY(
    SELECT (sent.number - 1)::pg_catalog.text
    FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) WITH ORDINALITY AS sent (tenant_id, request, number)
    WHERE (
        SELECT true
        FROM public.tenants
        JOIN public.log_rows ON log_rows.tenant_no = tenants.number
        WHERE tenants.id = sent.tenant_id AND log_rows.request = pg_catalog.decode(sent.request, 'hex')
    ) IS NULL
) AS unlogged

-- name: read_replication
-- How safe commits are, and the operations that are not in the log. One statement, so that one server answers, with any
-- pooler in front.
SELECT :replication_facts, :unlogged;

-- name: write_marker
-- Write a message into the write-ahead log, to no table, and commit it once it is on disk here and, if the server
-- names standbys, confirmed by them. All earlier commits are then as safe, such as those of the operations found in
-- the log. A wait for standbys that is cancelled ends with a warning, and otherwise looks like one that was not.
SELECT
    pg_catalog.set_config('synchronous_commit', 'on', true),
    pg_catalog.pg_logical_emit_message(true, 'simplu-worker', ''),
    :server_run,
    :unlogged;

-- fragment: committing_server
-- The server that a transaction commits on. The commit waits for the disk, also if none does by default, so that a crash
-- of this run of the server cannot undo it.
:server_run,
pg_catalog.set_config(
    'synchronous_commit',
    CASE pg_catalog.current_setting('synchronous_commit')
        WHEN 'off' THEN 'local'
        ELSE pg_catalog.current_setting('synchronous_commit')
    END,
    true
)

-- name: note_server
SELECT :committing_server;
