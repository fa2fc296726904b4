-- The tables of a shard, with their policies, functions and triggers. Made on an empty shard only, in one transaction,
-- under an advisory lock. From 1.0 on this file never changes, and the next one is `0002_….sql` (CONTRIBUTING.md, "A
-- migration").
--
-- Names are looked up in no search path: what another role makes in a schema of it is run by nobody else. Ids collate
-- "C": byte order, the same on every shard and in Python, and no library upgrade can corrupt an index.
--
-- Policies: a role that may write a table, such as the worker's, sees and writes all of it, whether it owns the table
-- or not. All others see the rows of the tenant that their setting `simplu.tenant` names, and without one none. The
-- owner of a shard may add policies: permissive ones let a role see more, restrictive ones less (docs/reading.md).

CREATE TABLE public.schema_migrations (
    version integer PRIMARY KEY,
    name pg_catalog.text NOT NULL,
    works_from integer, -- the oldest worker's schema version that works with the shard from here on; null: its own only
    applied_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- The shard's own identity: a connection string that leads to another shard's database is refused by it.
CREATE TABLE public.shard_meta (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    shard_id pg_catalog.text NOT NULL,
    created_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    -- From the number of a transaction to that of its batch in the log: raised when the database has come to a server
    -- with lower numbers (`shards raise-numbers`).
    batch_offset bigint NOT NULL DEFAULT 0,
    drained_at pg_catalog.timestamptz -- by `shards drain`: no tenant is made or planned here until its `--undo`
);

-- What a tenant of each type starts with, and the resource type of those who work there; one row a file, of the package
-- or of `types apply`.
CREATE TABLE public.business_types (
    name pg_catalog.text PRIMARY KEY,
    default_settings pg_catalog.jsonb NOT NULL
        CHECK (pg_catalog.jsonb_typeof(default_settings) = 'object'::pg_catalog.text),
    staff_resource_type pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    -- The names under which resources are stored that are sent under another one, by that one.
    stored_names pg_catalog.jsonb NOT NULL DEFAULT '{}',
    definition pg_catalog.text, -- the type's file, JSON (operations/business_types.py)
    digest pg_catalog.text, -- SHA-256 of the file as applied
    is_applied boolean NOT NULL DEFAULT false -- by `types apply`: no upgrade overwrites it
);

CREATE TABLE public.tenants (
    id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    number integer GENERATED ALWAYS AS IDENTITY UNIQUE, -- in the log, in place of the id; of this shard alone
    business_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    location_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    business_type pg_catalog.text NOT NULL,
    state pg_catalog.text NOT NULL
        CHECK (state IN ('incoming', 'ready', 'active', 'fenced', 'moved', 'destroying', 'destroyed')),
    epoch bigint NOT NULL DEFAULT 1,
    moved_to pg_catalog.text,
    control_at pg_catalog.timestamptz NOT NULL, -- the newest applied timestamp of a control message
    created_at pg_catalog.timestamptz NOT NULL, -- the clock of the registering transaction; moves with the tenant
    state_changed_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    -- While `destroying`: its rows are going, and nothing brings the tenant back as it was.
    deletion_began_at pg_catalog.timestamptz,
    -- A number that only grows: who wrote last of the movers of the tenant, and of the workers that end a fence.
    move_token bigint NOT NULL DEFAULT 0,
    -- While `fenced`: from then on any worker may make the tenant active again, with the next token. Null while the
    -- tenant's rows are replaced by those of a backup: only the restore ends that fence.
    fenced_until pg_catalog.timestamptz,
    -- Set by people for the tenant, and moved with it. Until then its operations wait in the sources.
    paused_until pg_catalog.timestamptz,
    -- Of its share of the shard's time, where tenants wait for each other.
    weight pg_catalog.float8 NOT NULL DEFAULT 1
        CHECK (weight BETWEEN 0.1::pg_catalog.float8 AND 10::pg_catalog.float8),
    operations_per_s pg_catalog.float8 CHECK (operations_per_s >= 0.001::pg_catalog.float8), -- what is beyond waits; null: none
    bytes_per_s pg_catalog.float8 CHECK (bytes_per_s >= 0.001::pg_catalog.float8) -- of records; null: none
);
-- For the destruction of all locations of a business.
CREATE INDEX tenants_business_id ON public.tenants (business_id);
CREATE POLICY simplu_reader ON public.tenants
    FOR SELECT USING (id = pg_catalog.current_setting('simplu.tenant', true));

-- What people have set for all locations of a business, as of a tenant, beside what its locations have. On each shard
-- with locations, and with what was set last where one comes from another shard.
CREATE TABLE public.business_controls (
    business_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    paused_until pg_catalog.timestamptz,
    weight pg_catalog.float8 NOT NULL DEFAULT 1
        CHECK (weight BETWEEN 0.1::pg_catalog.float8 AND 10::pg_catalog.float8),
    operations_per_s pg_catalog.float8 CHECK (operations_per_s >= 0.001::pg_catalog.float8),
    bytes_per_s pg_catalog.float8 CHECK (bytes_per_s >= 0.001::pg_catalog.float8),
    set_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp() -- by a person
);

-- What tenants (`t/number`) and businesses (`b/id`) with a limit have used of it: both times grow by what an operation
-- takes of a second, and nothing is applied before them. `held_until`: when what was held last may come again. Written
-- in the transaction of the operations.
CREATE TABLE public.limit_buckets (
    target pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    operations_at pg_catalog.timestamptz NOT NULL,
    bytes_at pg_catalog.timestamptz NOT NULL,
    held_until pg_catalog.timestamptz
) WITH (fillfactor = 50);

-- fillfactor 90 leaves room for the new version of a row on its own page: with no index on a column that changes,
-- every update is a heap-only one. By the cost limit's default of 200 the table grew to 1.28 times at full speed, with
-- 600 to 1.17 on some machines; with 2000 the passes kept other work waiting.
CREATE TABLE public.resources (
    id pg_catalog.text COLLATE pg_catalog."C" NOT NULL, -- the tenant's id
    "businessType" pg_catalog.text NOT NULL,
    "resourceName" pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    "resourceId" pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    data pg_catalog.jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(data) = 'object'::pg_catalog.text),
    date pg_catalog.timestamptz NOT NULL,
    "lastUpdated" pg_catalog.timestamptz NOT NULL,
    PRIMARY KEY (id, "resourceName", "resourceId")
) WITH (
    fillfactor = 90,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_limit = 1000,
    autovacuum_analyze_scale_factor = 0.05
);
-- For `list` and the views by day. `date` never changes, so updates stay heap-only; an index on `data`, or a part of
-- it, or on "lastUpdated" would end that. The name comes last, since a view has two of them. A row always has a date;
-- but by the condition nothing can use the index that does not ask for days. Without it the planner took it for single
-- resources where its statistics were from before a tenant grew, and each of them was looked for among all rows of the
-- tenant.
CREATE INDEX resources_by_day ON public.resources (id, date, "resourceName") WHERE date IS NOT NULL;
CREATE POLICY simplu_reader ON public.resources
    FOR SELECT USING (id = pg_catalog.current_setting('simplu.tenant', true));

-- The operation log: de-duplication, status, audit trail, and the list of what changed (docs/adr/0009-the-log.md). Its
-- rows are only inserted: for what becomes of an operation there is `log_outcomes`. Readers have the view `operations`.

-- A row for each transaction. What rows of the log share is here, once: it is of several tenants, and no reader's.
CREATE TABLE public.log_batches (
    -- The number of the transaction and `shard_meta.batch_offset`. A batch that was copied from another database has a
    -- number below zero, that of its copying transaction times -2^20 less a count: it is never fresh.
    batch_id bigint PRIMARY KEY,
    completed_at pg_catalog.timestamptz NOT NULL, -- when its transaction had locked the tenants' rows
    row_count integer NOT NULL, -- it has no more rows
    -- o: operations, or what a control message changed; c: copied. Without rows: r: resources were copied here by a move
    -- or a restore; i: by an import; d: those of a destroyed tenant were deleted; l: the tenant left the shard for
    -- `epoch`, behind its last batch here; a: it arrived with that, before its first one.
    kind pg_catalog."char" NOT NULL,
    token pg_catalog.uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    tenants integer[] NOT NULL,
    types pg_catalog.text[] COLLATE pg_catalog."C" NOT NULL, -- resource types, by `type_at`
    -- By `origin_at`: a source, `source/stream shard`, or `source/stream shard or nothing/name`, where an operation was
    -- sent under another name of its resource type than the one in `types`, under which the resource is stored. Of a
    -- batch without rows: of a the shard that the tenant left.
    origins pg_catalog.text[] COLLATE pg_catalog."C" NOT NULL,
    epoch bigint -- of l and a alone: that of the tenant's row on its new home
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05
);
-- For lists, the changes of a moving tenant, and the deletion of old batches.
CREATE INDEX log_batches_completed_at ON public.log_batches (completed_at);
-- For the feed, which asks whether a tenant's departure is passed, and for the deletion of what a move has copied.
CREATE INDEX log_batches_moves ON public.log_batches ((tenants[1]), epoch)
    WHERE epoch IS NOT NULL OR batch_id < 0::bigint;

-- A row for each operation, and for each change by a control message. The order of the columns leaves no gaps. Keys
-- begin with a byte that says what follows: 1: the 16 bytes of a UUID; 2: a text; 3: the key of an operation that
-- another one took the place of, with its time and position, so that it is kept and the id is free again; 4: no
-- operation. The retention deletes as many rows as are written: by the defaults autovacuum waits for a fifth of the
-- log, and rests so often that a pass takes minutes, in which the log grows.
CREATE TABLE public.log_rows (
    batch_id bigint NOT NULL,
    requested_at pg_catalog.timestamptz NOT NULL,
    received_at pg_catalog.timestamptz NOT NULL,
    tenant_no integer NOT NULL,
    size_bytes integer NOT NULL DEFAULT 0, -- of the record, for `usage`; of a row that was copied it is not known
    position smallint NOT NULL, -- in its batch
    type_at smallint NOT NULL, -- from 1
    origin_at smallint NOT NULL, -- from 1
    -- c, u, p, d, r, l: create, update, patch, delete, read, list; in capitals, of a row whose place another one took;
    -- m: a change by a control message.
    kind pg_catalog."char" NOT NULL,
    digest pg_catalog.bytea NOT NULL,
    request pg_catalog.bytea NOT NULL,
    resource pg_catalog.bytea,
    PRIMARY KEY (tenant_no, request)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);
CREATE INDEX log_rows_batch ON public.log_rows (batch_id);

-- What became of an operation that has not succeeded, or has a result.
CREATE TABLE public.log_outcomes (
    batch_id bigint NOT NULL,
    position smallint NOT NULL,
    tenant_no integer NOT NULL,
    error pg_catalog.text, -- null: it has succeeded
    sequence_number pg_catalog.text, -- of an operation that was given up: a replay comes later
    result pg_catalog.jsonb,
    PRIMARY KEY (batch_id, position)
);
-- With lz4 in place of pglz for its result a list takes two fifths less of the server's time. Not every server is built
-- with it; and what the server's own settings choose stays.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_settings
        WHERE name = 'default_toast_compression' AND source = 'default' AND 'lz4' = ANY(enumvals)
    ) THEN
        ALTER TABLE public.log_outcomes ALTER COLUMN result SET COMPRESSION lz4;
    END IF;
END
$$;

-- An id as a key of the log, and back (shards/log.py has the same). Not STRICT: then the planner puts it in line.
CREATE FUNCTION public.simplu_key(id pg_catalog.text) RETURNS pg_catalog.bytea
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' AND pg_catalog.octet_length(id) = 36
    THEN pg_catalog.decode('01' || pg_catalog.replace(id, '-', ''), 'hex')
    ELSE '\x02'::pg_catalog.bytea || pg_catalog.convert_to(id, 'UTF8')
END;
CREATE FUNCTION public.simplu_id(key pg_catalog.bytea) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE pg_catalog.get_byte(key, 0)
    WHEN 1 THEN pg_catalog.encode(pg_catalog.substr(key, 2), 'hex')::pg_catalog.uuid::pg_catalog.text
    WHEN 2 THEN pg_catalog.convert_from(pg_catalog.substr(key, 2), 'UTF8')
    WHEN 3 THEN CASE pg_catalog.get_byte(key, 1)
        WHEN 1 THEN pg_catalog.encode(pg_catalog.substr(key, 3, 16), 'hex')::pg_catalog.uuid::pg_catalog.text
        ELSE pg_catalog.convert_from(pg_catalog.substr(key, 3, pg_catalog.octet_length(key) - 12), 'UTF8')
    END
END;

-- The log as readers see it: an operation a row, by the request ids that count now. With the rights of the owner of the
-- tables, so that what a batch shares stays unseen, and with the condition of the other tables' policies.
CREATE VIEW public.operations WITH (security_barrier) AS
SELECT
    tenants.id AS tenant_id,
    public.simplu_id(log_rows.request) COLLATE pg_catalog."C" AS request_id,
    CASE log_rows.kind
        WHEN 'c' THEN 'create'
        WHEN 'u' THEN 'update'
        WHEN 'p' THEN 'patch'
        WHEN 'd' THEN 'delete'
        WHEN 'r' THEN 'read'
        WHEN 'l' THEN 'list'
    END AS operation,
    coalesce( -- as it was sent
        nullif(pg_catalog.split_part(log_batches.origins[log_rows.origin_at], '/', 3), ''::pg_catalog.text),
        log_batches.types[log_rows.type_at]
    ) AS resource_type,
    public.simplu_id(log_rows.resource) COLLATE pg_catalog."C" AS resource_id,
    CASE WHEN log_outcomes.error IS NULL THEN 'succeeded' ELSE 'failed' END AS status,
    log_outcomes.error,
    log_outcomes.result,
    log_rows.digest,
    pg_catalog.split_part(log_batches.origins[log_rows.origin_at], '/', 1) AS source,
    nullif(
        pg_catalog.split_part(log_batches.origins[log_rows.origin_at], '/', 2), ''::pg_catalog.text
    ) AS stream_shard_id,
    log_outcomes.sequence_number,
    CASE -- by subqueries, which cost nothing where the column is not asked for
        WHEN log_rows.batch_id > (SELECT shard_meta.batch_offset FROM public.shard_meta)
        THEN (log_rows.batch_id - (SELECT shard_meta.batch_offset FROM public.shard_meta))
            ::pg_catalog.text::pg_catalog.xid8
    END AS xid,
    log_rows.requested_at,
    log_rows.received_at,
    log_batches.completed_at,
    log_rows.request AS request_key,
    log_rows.batch_id,
    log_rows.position
FROM public.tenants
JOIN public.log_rows ON log_rows.tenant_no = tenants.number
JOIN public.log_batches ON log_batches.batch_id = log_rows.batch_id
LEFT JOIN public.log_outcomes
    ON log_outcomes.batch_id = log_rows.batch_id AND log_outcomes.position = log_rows.position
WHERE
    log_rows.kind IN ('c', 'u', 'p', 'd', 'r', 'l')
    AND (
        (SELECT pg_catalog.has_table_privilege('public.log_rows'::pg_catalog.regclass, 'INSERT'))
        OR tenants.id = (SELECT pg_catalog.current_setting('simplu.tenant', true))
    );

-- One operation, by the key of the log: for people, and readers that know a request id. OFFSET 0: one at a time, as a
-- join with the view would read all of it.
CREATE FUNCTION public.simplu_operation(tenant pg_catalog.text, request pg_catalog.text)
RETURNS SETOF public.operations
LANGUAGE sql STABLE ROWS 1
BEGIN ATOMIC
    SELECT operations.*
    FROM public.operations
    WHERE operations.tenant_id = tenant AND operations.request_key = public.simplu_key(request)
    OFFSET 0;
END;

-- What resources were (docs/adr/0019-history.md). A row for each change of a resource whose type has a history, written by
-- the triggers that `types apply` makes. It has the document before the change: the one after it is in the next row, or in
-- `resources`, so that nothing is stored twice, and what was before the history is its version 0. The order of the columns
-- leaves no gaps. Readers have the view `resource_history`.
CREATE TABLE public.resource_versions (
    applied_at pg_catalog.timestamptz NOT NULL, -- as `log_batches.completed_at`; later than that of the version before
    tenant_no integer NOT NULL,
    version integer NOT NULL, -- 1, 2, … of the resource
    type_no smallint NOT NULL, -- of `history_names`, as the next one
    source_no smallint NOT NULL,
    -- c, u, p, d: as in the log, or the effect of what is no operation; b, version 0 of no resource: here the history of
    -- the type began for a tenant that was there.
    kind pg_catalog."char" NOT NULL,
    digest pg_catalog.bytea NOT NULL, -- of this version and of the digest before it: the first 8 bytes
    resource pg_catalog.bytea NOT NULL, -- keys as in the log; empty of b
    request pg_catalog.bytea,
    former pg_catalog.jsonb,
    PRIMARY KEY (tenant_no, type_no, resource, version)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);
-- Numbers of this shard alone for resource types and sources.
CREATE TABLE public.history_names (
    number smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name pg_catalog.text COLLATE pg_catalog."C" NOT NULL UNIQUE
);
-- Which resources have a history, by the files of business types.
CREATE TABLE public.history_types (
    business_type pg_catalog.text NOT NULL,
    resource_type pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    type_no smallint NOT NULL,
    members pg_catalog.text[], -- of documents that are kept; null: all
    keep_days integer, -- of versions that were replaced; null: forever
    PRIMARY KEY (business_type, resource_type)
);

-- What a history keeps of a document.
CREATE FUNCTION public.simplu_kept(data pg_catalog.jsonb, members pg_catalog.text[]) RETURNS pg_catalog.jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN members IS NULL OR data IS NULL THEN data
    ELSE (
        SELECT coalesce(pg_catalog.jsonb_object_agg(member.key, member.value), '{}')
        FROM pg_catalog.jsonb_each(data) AS member
        WHERE member.key = ANY(members)
    )
END;

-- The digest of a version: the same on every shard. STABLE, as `concat` is: else the planner does not put it in line.
CREATE FUNCTION public.simplu_version_digest(
    before pg_catalog.bytea, version integer, applied_at pg_catalog.timestamptz, resource pg_catalog.bytea,
    request pg_catalog.bytea, names pg_catalog.text, document pg_catalog.jsonb
) RETURNS pg_catalog.bytea
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pg_catalog.substr(
    pg_catalog.sha256(
        coalesce(before, '') || pg_catalog.int4send(version) || pg_catalog.timestamptz_send(applied_at)
        || pg_catalog.int4send(pg_catalog.octet_length(resource)) || resource
        || pg_catalog.int4send(pg_catalog.octet_length(coalesce(request, ''))) || coalesce(request, '')
        || pg_catalog.convert_to(pg_catalog.concat(names, e'\x1f', document::pg_catalog.text), 'UTF8')
    ),
    1, 8
);

-- The functions of the three triggers, which differ in where the changed rows are. A change of a key is the end of one
-- resource and the beginning of another. Nothing is written while a tenant's rows come or go: a move brings its versions. The
-- operation of a change is in the log before it: of several in a batch for one resource the first one that has not
-- failed, and has no version yet. With the rights of the owner, so that whoever may change resources may do so here.
DO $made$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT *
        FROM (
            VALUES
                (
                    'inserted', 'new_rows',
                    'SELECT id, "resourceName", "resourceId", NULL::pg_catalog.jsonb AS former, data AS latter
                    FROM new_rows'
                ),
                (
                    'updated', 'new_rows',
                    'SELECT
                        coalesce(new_rows.id, old_rows.id) AS id,
                        coalesce(new_rows."resourceName", old_rows."resourceName") AS "resourceName",
                        coalesce(new_rows."resourceId", old_rows."resourceId") AS "resourceId",
                        old_rows.data AS former, new_rows.data AS latter
                    FROM old_rows
                    FULL JOIN new_rows
                        ON new_rows.id = old_rows.id AND new_rows."resourceName" = old_rows."resourceName"
                        AND new_rows."resourceId" = old_rows."resourceId"'
                ),
                (
                    'deleted', 'old_rows',
                    'SELECT id, "resourceName", "resourceId", data AS former, NULL::pg_catalog.jsonb AS latter
                    FROM old_rows'
                )
        ) AS functions (event, rows, changes)
    LOOP
        EXECUTE pg_catalog.format($text$
CREATE FUNCTION public.simplu_keep_%1$I() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    own record;
    reason text := coalesce(nullif(current_setting('simplu.change', true), ''), 'administrator');
BEGIN
    IF NOT EXISTS (SELECT FROM %2$s JOIN public.history_types ON resource_type = "resourceName") THEN
        RETURN NULL;
    END IF;
    SELECT batch_id, completed_at, row_count, types, origins INTO own
    FROM public.log_batches
    WHERE kind = 'o' AND batch_id = pg_current_xact_id()::text::bigint + (SELECT batch_offset FROM public.shard_meta);
    INSERT INTO public.history_names (name)
    SELECT DISTINCT split_part(origin, '/', 1)
    FROM unnest(own.origins || reason) AS origin
    WHERE NOT EXISTS (SELECT FROM public.history_names WHERE name = split_part(origin, '/', 1))
    ON CONFLICT DO NOTHING;

    WITH sent AS MATERIALIZED (
        SELECT DISTINCT ON (tenant_no, type_at, resource)
            tenant_no, own.types[type_at] AS resource_type, resource, kind, request,
            split_part(own.origins[origin_at], '/', 1) AS source
        FROM (
            SELECT log_rows.*, count(*) OVER (PARTITION BY tenant_no, type_at, resource) > 1 AS is_repeated
            FROM public.log_rows
            WHERE batch_id = own.batch_id AND kind IN ('c', 'u', 'p', 'd')
        ) AS logged
        WHERE
            NOT EXISTS (
                SELECT
                FROM public.log_outcomes
                WHERE
                    log_outcomes.batch_id = logged.batch_id AND log_outcomes.position = logged.position
                    AND error IS NOT NULL
            )
            AND NOT (
                is_repeated
                AND request = ANY(ARRAY(
                    SELECT versions.request
                    FROM public.resource_versions AS versions
                    WHERE
                        versions.tenant_no = logged.tenant_no AND versions.resource = logged.resource
                        AND versions.type_no = (
                            SELECT number FROM public.history_names WHERE name = own.types[logged.type_at]
                        )
                        AND versions.applied_at >= own.completed_at -- one of before a restore has the request too
                    ORDER BY versions.version DESC
                    LIMIT own.row_count
                ))
            )
        ORDER BY tenant_no, type_at, resource, logged.position
    )
    INSERT INTO public.resource_versions (
        applied_at, tenant_no, version, type_no, source_no, kind, digest, resource, request, former
    )
    SELECT
        made.applied_at, changed.tenant_no, made.version, changed.type_no,
        (SELECT number FROM public.history_names WHERE name = made.source),
        made.kind,
        public.simplu_version_digest(
            last.digest, made.version, made.applied_at, changed.resource, sent.request,
            concat_ws(e'\x1f', changed.tenant_id, changed.resource_type, made.kind, made.source), changed.latter
        ),
        changed.resource, sent.request, changed.former
    FROM (
        SELECT
            tenants.number AS tenant_no, tenants.id AS tenant_id, kept.type_no, kept.resource_type,
            public.simplu_key(changes."resourceId") AS resource,
            CASE -- the function is no part of the plan, and would cost each document a call
                WHEN kept.members IS NULL THEN changes.former ELSE public.simplu_kept(changes.former, kept.members)
            END AS former,
            CASE
                WHEN kept.members IS NULL THEN changes.latter ELSE public.simplu_kept(changes.latter, kept.members)
            END AS latter
        FROM (
            %3$s
        ) AS changes
        JOIN public.tenants ON tenants.id = changes.id AND tenants.state IN ('active', 'fenced')
        JOIN public.history_types AS kept
            ON kept.business_type = tenants.business_type AND kept.resource_type = changes."resourceName"
    ) AS changed
    FULL JOIN sent -- by hash: the planner expects few rows, for which it would take nested loops
        ON sent.tenant_no = changed.tenant_no AND sent.resource_type = changed.resource_type
        AND sent.resource = changed.resource
    LEFT JOIN LATERAL (
        SELECT version, applied_at, digest
        FROM public.resource_versions
        WHERE tenant_no = changed.tenant_no AND type_no = changed.type_no AND resource = changed.resource
        ORDER BY version DESC
        LIMIT 1
    ) AS last ON true
    CROSS JOIN LATERAL (
        SELECT
            coalesce(last.version, 0) + 1 AS version,
            greatest(
                coalesce(own.completed_at, clock_timestamp()), last.applied_at + interval '1 microsecond'
            ) AS applied_at,
            coalesce(sent.source, reason) AS source,
            coalesce(
                sent.kind,
                CASE WHEN changed.former IS NULL THEN 'c' WHEN changed.latter IS NULL THEN 'd' ELSE 'u' END::"char"
            ) AS kind
        OFFSET 0
    ) AS made
    WHERE coalesce(changed.tenant_no, 0) <> 0;
    RETURN NULL;
END
$body$$text$, made.event, made.rows, made.changes);
    END LOOP;
END
$made$;

-- For `types apply`, before the first history of a shard begins.
CREATE FUNCTION public.simplu_make_history_triggers() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    LOCK TABLE public.resources IN SHARE ROW EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM public.history_types) THEN
        CREATE TRIGGER simplu_keep_inserted AFTER INSERT ON public.resources
        REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION public.simplu_keep_inserted();
        CREATE TRIGGER simplu_keep_updated AFTER UPDATE ON public.resources
        REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
        EXECUTE FUNCTION public.simplu_keep_updated();
        CREATE TRIGGER simplu_keep_deleted AFTER DELETE ON public.resources
        REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION public.simplu_keep_deleted();
    END IF;
END
$$;

-- All versions as readers see them. Of b there is none. `document` is that after the change. Version 0 is what was there
-- before the first change that the history has: its time is not known.
CREATE VIEW public.resource_history WITH (security_barrier) AS
SELECT
    tenants.id AS tenant_id, kept.resource_type, public.simplu_id(shown.resource) COLLATE pg_catalog."C" AS resource_id,
    shown.version,
    CASE shown.kind WHEN 'c' THEN 'create' WHEN 'u' THEN 'update' WHEN 'p' THEN 'patch' WHEN 'd' THEN 'delete' END AS change,
    public.simplu_id(shown.request) AS request_id,
    (SELECT history_names.name FROM public.history_names WHERE history_names.number = shown.source_no) AS source,
    shown.applied_at, shown.replaced_at, shown.document, shown.digest, shown.resource AS resource_key
FROM public.tenants
JOIN public.history_types AS kept ON kept.business_type = tenants.business_type
CROSS JOIN LATERAL (
    SELECT
        versions.resource, of_row.version, of_row.kind, of_row.request, of_row.source_no, of_row.applied_at,
        of_row.replaced_at, of_row.document, of_row.digest
    FROM public.resource_versions AS versions
    LEFT JOIN LATERAL (
        SELECT newer.applied_at, newer.former
        FROM public.resource_versions AS newer
        WHERE
            newer.tenant_no = versions.tenant_no AND newer.type_no = versions.type_no
            AND newer.resource = versions.resource AND newer.version = versions.version + 1
    ) AS next ON true
    CROSS JOIN LATERAL (
        SELECT
            versions.version, versions.kind, versions.request, versions.source_no, versions.applied_at,
            next.applied_at AS replaced_at,
            CASE
                WHEN versions.kind = 'd' THEN NULL
                WHEN next.applied_at IS NOT NULL THEN next.former
                ELSE (
                    SELECT public.simplu_kept(resources.data, kept.members)
                    FROM public.resources
                    WHERE
                        resources.id = tenants.id AND resources."resourceName" = kept.resource_type
                        AND resources."resourceId" = public.simplu_id(versions.resource)
                )
            END AS document,
            versions.digest
        UNION ALL
        SELECT 0, NULL, NULL, NULL, NULL, versions.applied_at, versions.former, NULL
        WHERE versions.version = 1 AND versions.kind <> 'c'
    ) AS of_row
    WHERE
        versions.tenant_no = tenants.number AND versions.type_no = kept.type_no AND versions.version > 0
    UNION ALL
    SELECT
        public.simplu_key(resources."resourceId"), 0, NULL, NULL, NULL, NULL, NULL,
        public.simplu_kept(resources.data, kept.members), NULL
    FROM public.resources
    WHERE
        resources.id = tenants.id AND resources."resourceName" = kept.resource_type
        AND NOT EXISTS (
            SELECT
            FROM public.resource_versions AS versions
            WHERE
                versions.tenant_no = tenants.number AND versions.type_no = kept.type_no
                AND versions.resource = public.simplu_key(resources."resourceId")
        )
) AS shown
WHERE
    (SELECT pg_catalog.has_table_privilege('public.resource_versions'::pg_catalog.regclass, 'INSERT'))
    OR tenants.id = (SELECT pg_catalog.current_setting('simplu.tenant', true));

-- Since when each history is known: before, nothing is told of it.
CREATE VIEW public.resource_histories WITH (security_barrier) AS
SELECT
    tenants.id AS tenant_id, kept.resource_type,
    greatest(
        coalesce(
            (
                SELECT began.applied_at
                FROM public.resource_versions AS began
                WHERE
                    began.tenant_no = tenants.number AND began.type_no = kept.type_no AND began.resource = ''
                    AND began.version = 0
            ),
            tenants.created_at
        ),
        pg_catalog.now() - pg_catalog.make_interval(days => kept.keep_days)
    ) AS known_from
FROM public.tenants
JOIN public.history_types AS kept ON kept.business_type = tenants.business_type
WHERE
    (SELECT pg_catalog.has_table_privilege('public.resource_versions'::pg_catalog.regclass, 'INSERT'))
    OR tenants.id = (SELECT pg_catalog.current_setting('simplu.tenant', true));

-- The resources of a type that a tenant had at a time, for readers. It fails where that is not known.
CREATE FUNCTION public.simplu_as_of(tenant pg_catalog.text, type pg_catalog.text, at pg_catalog.timestamptz)
RETURNS TABLE (
    resource_id pg_catalog.text, version integer, applied_at pg_catalog.timestamptz, document pg_catalog.jsonb
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    since timestamptz := (
        SELECT known_from FROM public.resource_histories WHERE tenant_id = tenant AND resource_type = type
    );
BEGIN
    IF since IS NULL THEN
        RAISE EXCEPTION '% of tenant % has no history here; set simplu.tenant to the tenant, on its home', type, tenant;
    ELSIF at < since OR at > clock_timestamp() THEN
        RAISE EXCEPTION 'expected a time from % until now, got %', since, at;
    END IF;
    RETURN QUERY
    SELECT past.resource_id, past.version, past.applied_at, past.document
    FROM (
        SELECT DISTINCT ON (history.resource_key) history.*
        FROM public.resource_history AS history
        WHERE
            history.tenant_id = tenant AND history.resource_type = type
            AND (history.applied_at <= at OR history.applied_at IS NULL)
        ORDER BY history.resource_key, history.version DESC
    ) AS past
    WHERE past.change IS DISTINCT FROM 'delete';
END
$$;

-- How far each stream shard got, as this shard knows it (architecture, idea 8). Positions are written
-- `number/sub-number`, or TRIM_HORIZON, or SHARD_END. In the same write-ahead log as the effects: what survives of a
-- row never claims more than what survives of them. A row is rewritten with every batch, so there is room for it on its
-- page.
CREATE TABLE public.stream_positions (
    stream pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    stream_shard_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    -- Behind it something of the whole stream shard may be pending, for any tenant on any shard.
    pending_from pg_catalog.text NOT NULL,
    pending_since pg_catalog.timestamptz, -- about when that arrived; null while nothing was read
    read_to pg_catalog.text, -- where this is given, up to here to tenants of `held` only
    held pg_catalog.text[],
    read_up_to pg_catalog.timestamptz, -- nothing that arrived before is pending, but for tenants of `held`; null: not known
    parents_done boolean NOT NULL, -- all that the parents of the stream shard had pending for this shard was there before
    token pg_catalog.uuid NOT NULL, -- another one with every write, at random
    -- The `pending_from` to which the stream was found not to reach back; void once the row has another one.
    gap_from pg_catalog.text COLLATE pg_catalog."C",
    gap_found_at pg_catalog.timestamptz,
    gap_accepted_at pg_catalog.timestamptz, -- when a person accepted that; without it, a reader holds the shard
    PRIMARY KEY (stream, stream_shard_id)
) WITH (fillfactor = 50);

-- How rows of `stream_positions` got their tokens when tenants came, for readers that knew the tokens before.
CREATE TABLE public.position_merges (
    stream pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    stream_shard_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    token pg_catalog.uuid NOT NULL, -- that the row got
    former_token pg_catalog.uuid NOT NULL, -- that it had
    source_shard_id pg_catalog.text NOT NULL,
    carried_token pg_catalog.uuid NOT NULL, -- of the row on the source, as of the fence
    merged_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (stream, stream_shard_id, token)
);

-- What became of records that are no operations, for `GET /operations/{requestId}`. Apart from the log, so that no row
-- here hides an operation, or makes a record that was corrected a duplicate. Deleted with the log's rows of its time.
CREATE TABLE public.rejections (
    -- '' of a record without a home for it: its tenant does not exist, another pair of ids has its id, or it names none. Such
    -- rows are on the first shards by name, of a bounded number, and move nowhere.
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    request_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    reason pg_catalog.text NOT NULL, -- of the dead letter
    error pg_catalog.text NOT NULL,
    dead_letter_queue pg_catalog.text NOT NULL,
    source pg_catalog.text NOT NULL, -- the stream or the queue of the record
    sequence_number pg_catalog.text, -- of a record of a stream
    message_id pg_catalog.text, -- of a message of a queue
    rejected_at pg_catalog.timestamptz NOT NULL, -- the last time
    named_tenant_id pg_catalog.text COLLATE pg_catalog."C", -- without a home alone
    named_business_id pg_catalog.text COLLATE pg_catalog."C",
    PRIMARY KEY (tenant_id, request_id)
);
-- For the deletion of old rows: a producer may send bad records only, so there may be as many as operations.
CREATE INDEX rejections_rejected_at ON public.rejections (rejected_at);

-- The feed of changes to other systems (docs/adr/0017-the-feed.md). Its tables are empty where no feed is set.

-- Who publishes this shard, and what its events are part of.
CREATE TABLE public.feed_shards (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    publisher pg_catalog.text NOT NULL, -- the replica
    token pg_catalog.uuid NOT NULL, -- of the publisher; without it nothing of the feed is written
    expires_at pg_catalog.timestamptz NOT NULL, -- from then on another replica may take the row
    incarnation pg_catalog.text NOT NULL DEFAULT '', -- another one wherever the server may have lost commits
    server_run pg_catalog.text -- the run of the server in which the incarnation began
) WITH (fillfactor = 50);

-- How far each destination has the shard's log: written after the events were delivered.
CREATE TABLE public.feed_cursors (
    destination pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    batch_id bigint NOT NULL,
    position integer NOT NULL, -- in the batch
    incarnation pg_catalog.text NOT NULL DEFAULT '', -- of which the destination has had the reset
    waits_for pg_catalog.jsonb, -- a tenant that has arrived: what is behind that waits for the feed of its source
    stopped pg_catalog.text, -- why no event is sent any more: `refused` or `disabled`
    error pg_catalog.text,
    refused_event pg_catalog.text, -- the id of that at which it stopped; once it goes on, it is tried once more
    passed_event pg_catalog.text, -- the id of that which a person passes: tried once more, whatever the answer
    behind_since pg_catalog.timestamptz, -- the time of the oldest event that is not delivered; null: of none
    is_in_file boolean NOT NULL DEFAULT true, -- of the replica that publishes the shard, or that did so last
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) WITH (fillfactor = 50);

-- Events that a destination refused for good: the dead letters of the feed. Deleted with the log's rows of their time.
CREATE TABLE public.feed_refusals (
    destination pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    event_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    event pg_catalog.jsonb NOT NULL, -- without the data
    error pg_catalog.text NOT NULL,
    refused_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (destination, event_id)
);
CREATE INDEX feed_refusals_refused_at ON public.feed_refusals (refused_at);

-- Up to which batch the retention has deleted batches: a cursor before it has a gap.
CREATE TABLE public.log_forgotten (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    batch_id bigint NOT NULL,
    completed_at pg_catalog.timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What tenants used, for bills: by hour, from the log, and by the shard that applied it: a former home's rows are copied to
-- the tenant's home, before that shard may go. What no row here has yet is in the log, from `usage_progress` on.
CREATE TABLE public.usage (
    hour pg_catalog.timestamptz NOT NULL,
    business_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    location_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    resource_type pg_catalog.text COLLATE pg_catalog."C" NOT NULL, -- '' beside the time, which is measured by tenant
    shard_id pg_catalog.text NOT NULL, -- where it was counted, and may go on
    operation_count bigint NOT NULL DEFAULT 0,
    size_bytes bigint NOT NULL DEFAULT 0,
    took_ms pg_catalog.float8 NOT NULL DEFAULT 0,
    stored_rows bigint, -- as sampled in this hour
    stored_bytes bigint,
    PRIMARY KEY (hour, business_id, location_id, resource_type, shard_id)
) WITH (fillfactor = 70);
CREATE TABLE public.usage_progress (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    batch_id bigint NOT NULL DEFAULT 0, -- `usage` has all batches before it
    sampled_at pg_catalog.timestamptz -- when what is stored was last sampled
) WITH (fillfactor = 50);

-- The policy for writers of all tables above with rows of tenants.
DO $$
DECLARE
    named pg_catalog.text;
BEGIN
    FOREACH named IN ARRAY '{
        tenants,business_controls,limit_buckets,resources,log_batches,log_rows,log_outcomes,stream_positions,
        position_merges,rejections,feed_shards,feed_cursors,feed_refusals,log_forgotten,usage,usage_progress,
        resource_versions
    }'::pg_catalog.text[] LOOP
        EXECUTE pg_catalog.format(
            'CREATE POLICY simplu_writer ON public.%1$I '
            'USING ((SELECT pg_catalog.has_table_privilege(''public.%1$I''::pg_catalog.regclass, ''INSERT'')))', named
        );
        EXECUTE pg_catalog.format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', named);
    END LOOP;
END
$$;

-- The journal of transfers: of a move a row on its source (`departure`) and one on its target (`arrival`), of an import and
-- of a restore one on the shard of the tenant, of an adoption one with the id of the shard (docs/adr/0007-moving-tenants.md, 0008-restoring-one-tenant.md). Only the
-- command with the token writes the tenant's rows. The last row of each kind stays, in the end with the certificate.
CREATE TABLE public.transfers (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    kind pg_catalog.text COLLATE pg_catalog."C" NOT NULL
        CHECK (kind IN ('departure', 'arrival', 'import', 'restore', 'adopt')),
    place pg_catalog.text NOT NULL, -- the other shard of a move; the database that an import or a restore reads
    -- The `move_token` of the tenant's row. That alone comes twice on a shard that lost commits: of imports and restores a
    -- slash follows, and the id of a run.
    token pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    step pg_catalog.text NOT NULL,
    writes bigint NOT NULL DEFAULT 0, -- one more with each note of the command with the token
    detail pg_catalog.jsonb NOT NULL DEFAULT '{}', -- of an arrival how far the copy is, written with the rows that it counts
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (tenant_id, kind)
);
-- Every replica lists the moves that have not ended, and the last ones that have, with each probe.
CREATE INDEX transfers_departed ON public.transfers (updated_at) WHERE kind = 'departure';
CREATE INDEX transfers_unfinished ON public.transfers (updated_at)
WHERE kind = 'departure' AND step IN ('open', 'committed', 'undoing', 'cleaning');
CREATE POLICY simplu_writer ON public.transfers
    USING ((SELECT pg_catalog.has_table_privilege('public.transfers'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.transfers ENABLE ROW LEVEL SECURITY;

-- A member of `data` as a type, for the views of business types: null for what is no such value, so that one odd
-- document fails no query. They decide before they cast, and catch no error: that would take a transaction of its own
-- for every value, and no parallel query before PostgreSQL 17 may begin one.

-- An ISO 8601 time; without an offset it is UTC, a date alone is midnight. One at the ends of the years 1 to 9999 is
-- the nearest instant that is in these years in every time zone: drivers fail at others, and with them a query.
CREATE FUNCTION public.simplu_timestamptz(value pg_catalog.jsonb) RETURNS pg_catalog.timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moment text := value #>> '{}';
    instant timestamptz;
BEGIN
    IF moment IS NULL OR moment !~ (
        '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])'
        '([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)?)?$'
    ) OR moment < '0001' COLLATE "C" THEN
        RETURN NULL;
    ELSIF substr(moment, 9, 2) > '28' AND substr(moment, 9, 2)::integer > extract(
        DAY FROM make_date(substr(moment, 1, 4)::integer, substr(moment, 6, 2)::integer, 1) + interval '1 month - 1 day'
    ) THEN
        RETURN NULL;
    ELSIF length(moment) = 10 THEN
        instant := (moment || ' 00:00+00')::timestamptz;
    ELSIF moment ~ '(Z|[+-][0-9:]+)$' THEN
        instant := moment::timestamptz;
    ELSE
        instant := (moment || '+00')::timestamptz;
    END IF;
    RETURN least(greatest(instant, '0001-01-02 00:00+00'::timestamptz), '9999-12-31 00:00+00'::timestamptz);
END
$$;

-- When a day begins in a time zone; NULL where there is no such zone.
CREATE FUNCTION public.simplu_day(day pg_catalog.text, zone pg_catalog.text) RETURNS pg_catalog.timestamptz
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN day::date::timestamp AT TIME ZONE zone;
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN NULL;
END
$$;

-- The resources of a list, by the index of a business type (`filtered`, shards/schema/type_files.py), which a statement
-- finds only by the index's own expression: at most *bound*.
CREATE FUNCTION public.simplu_indexed(
    tenant pg_catalog.text, type pg_catalog.text, index pg_catalog.jsonb, first_moment pg_catalog.timestamptz,
    moment_behind pg_catalog.timestamptz, bound bigint
)
RETURNS SETOF public.resources
LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    value text := format('%L::text[]', ARRAY(SELECT jsonb_array_elements_text(index -> 'path')));
    own text := 'SELECT * FROM public.resources WHERE id = $1 AND "resourceName" = $2 AND ';
BEGIN
    IF (index -> 'isTime')::boolean THEN
        RETURN QUERY EXECUTE
            own || format('public.simplu_timestamptz(data #> %s) >= coalesce($3, ''-infinity'') - interval ''1 day'' AND '
            'public.simplu_timestamptz(data #> %1$s) <= coalesce($4, ''infinity'') + interval ''1 day'' LIMIT $5', value)
            USING tenant, type, first_moment, moment_behind, bound;
    ELSE
        RETURN QUERY EXECUTE
            own || format('left(data #>> %s, 200) COLLATE "C" >= $3 AND '
            '($4 IS NULL OR left(data #>> %1$s, 200) COLLATE "C" <= $4) LIMIT $5', value)
            USING tenant, type, coalesce(index ->> 'low', ''), index ->> 'high', bound;
    END IF;
END
$$;

-- A number, or a text that is one.
CREATE FUNCTION public.simplu_numeric(value pg_catalog.jsonb) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(value) = 'number' THEN
        RETURN value::numeric;
    ELSIF value #>> '{}' ~ '^[+-]?[0-9]{1,200}([.][0-9]{1,200})?([eE][+-]?[0-9]{1,3})?$' THEN
        RETURN (value #>> '{}')::numeric;
    END IF;
    RETURN NULL;
END
$$;

-- A whole number of 64 bits, or a text that is one.
CREATE FUNCTION public.simplu_integer(value pg_catalog.jsonb) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    number numeric;
BEGIN
    IF jsonb_typeof(value) = 'number' THEN
        number := value::numeric;
    ELSIF value #>> '{}' ~ '^[+-]?[0-9]{1,30}$' THEN
        number := (value #>> '{}')::numeric;
    END IF;
    IF number = trunc(number) AND number BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
        RETURN number::bigint;
    END IF;
    RETURN NULL;
END
$$;

-- True or false, or a text that is one. In PL/pgSQL, which is faster than SQL where that is not inlined.
CREATE FUNCTION public.simplu_boolean(value pg_catalog.jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE value #>> '{}' WHEN 'true' THEN true WHEN 'false' THEN false END;
END
$$;
