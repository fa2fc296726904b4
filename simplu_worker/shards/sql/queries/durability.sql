-- How safe the commits on a shard are. Positions are bytes of the write-ahead log; they compare within one run of a
-- server on one timeline, which timeline and started_at name. All of it fails on a standby. Aurora refuses to tell
-- positions (55000), and has its storage, not standbys, to keep commits: there they are left out.

-- name: read_replication
-- What decides how safe a commit is; and which of the operations in the arrays, by place, are not in the log.
-- One statement, so that it is one server's answer, whatever pooler is in front. Its snapshot is taken before `position`
-- is read, and a commit can be seen only after its record is in the write-ahead log: position is behind the commit of
-- every operation that is found. A slot's restart_lsn is what its standby has flushed, and may be seen by everybody;
-- pg_stat_replication says more only to a member of pg_read_all_stats. Logical subscribers and programs that copy the
-- log cannot take the server's place.
SELECT
    CASE
        WHEN to_regproc('aurora_version') IS NULL THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        ELSE ''
    END AS timeline,
    pg_postmaster_start_time() AS started_at,
    CASE
        WHEN to_regproc('aurora_version') IS NULL THEN (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint
        ELSE 0
    END AS position,
    current_setting('synchronous_commit') AS synchronous_commit,
    CASE
        WHEN current_setting('max_wal_senders')::integer > 0 THEN current_setting('synchronous_standby_names')
        ELSE ''
    END AS synchronous_standby_names,
    current_setting('fsync')::boolean AS fsync,
    (
        SELECT coalesce(json_agg(json_build_object(
            'name', concat_ws(' ', coalesce(slot.slot_name, sender.application_name), host(sender.client_addr)),
            'state', sender.state,
            'flushed', (coalesce(sender.flush_lsn, slot.restart_lsn) - '0/0'::pg_lsn)::bigint
        )), '[]')::text
        FROM pg_stat_replication AS sender
        LEFT JOIN pg_replication_slots AS slot ON slot.active_pid = sender.pid
        WHERE slot.slot_type IS DISTINCT FROM 'logical'
            AND sender.state IS DISTINCT FROM 'backup'
            AND coalesce(sender.application_name, '') NOT IN ('pg_basebackup', 'pg_receivewal')
    ) AS standbys,
    ARRAY(
        SELECT sent.number - 1
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (tenant_id, request_id, number)
        WHERE (
            SELECT true
            FROM operations
            WHERE operations.tenant_id = sent.tenant_id AND operations.request_id = sent.request_id
        ) IS NULL
    ) AS missing;

-- name: write_marker
-- Write a mark into the write-ahead log, to no table, and commit it once it is on disk here and, where the server names
-- standbys, confirmed by them; with it is all that comes before it, such as the operations that are found. A wait that
-- is cancelled ends with a warning and looks like one that was not.
SELECT
    set_config('synchronous_commit', 'on', true),
    pg_logical_emit_message(true, 'simplu-worker', ''),
    CASE
        WHEN to_regproc('aurora_version') IS NULL THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        ELSE ''
    END AS timeline,
    pg_postmaster_start_time() AS started_at,
    ARRAY(
        SELECT sent.number - 1
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (tenant_id, request_id, number)
        WHERE (
            SELECT true
            FROM operations
            WHERE operations.tenant_id = sent.tenant_id AND operations.request_id = sent.request_id
        ) IS NULL
    ) AS missing;

-- name: note_server
-- The server that this transaction will be committed on; the commit waits for the disk, also where none does by default,
-- so that no crash of this run of the server can take it back.
SELECT
    CASE
        WHEN to_regproc('aurora_version') IS NULL THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        ELSE ''
    END AS timeline,
    pg_postmaster_start_time() AS started_at,
    set_config(
        'synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'off' THEN 'local' ELSE current_setting('synchronous_commit') END,
        true
    );
