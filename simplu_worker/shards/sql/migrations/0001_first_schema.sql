-- The tables of contract §10, with their policies, functions and triggers. Made on an empty shard only, in one
-- transaction, under an advisory lock. Until the first release this file is edited in place; afterwards it never
-- changes, and the next file is `0002_….sql` (CONTRIBUTING.md, "A migration").
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
    created_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- What a tenant of each type starts with, and the resource type of those who work there; one row a file in
-- sql/business_types.
CREATE TABLE public.business_types (
    name pg_catalog.text PRIMARY KEY,
    default_settings pg_catalog.jsonb NOT NULL
        CHECK (pg_catalog.jsonb_typeof(default_settings) = 'object'::pg_catalog.text),
    staff_resource_type pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    digest pg_catalog.text -- SHA-256 of the file as applied
);

CREATE TABLE public.tenants (
    id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
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
    fenced_until pg_catalog.timestamptz
);
-- For the destruction of all locations of a business.
CREATE INDEX tenants_business_id ON public.tenants (business_id);
CREATE POLICY simplu_writer ON public.tenants
    USING ((SELECT pg_catalog.has_table_privilege('public.tenants'::pg_catalog.regclass, 'INSERT')));
CREATE POLICY simplu_reader ON public.tenants
    FOR SELECT USING (id = pg_catalog.current_setting('simplu.tenant', true));
ALTER TABLE public.tenants ENABLE ROW LEVEL SECURITY;

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
CREATE POLICY simplu_writer ON public.resources
    USING ((SELECT pg_catalog.has_table_privilege('public.resources'::pg_catalog.regclass, 'INSERT')));
CREATE POLICY simplu_reader ON public.resources
    FOR SELECT USING (id = pg_catalog.current_setting('simplu.tenant', true));
ALTER TABLE public.resources ENABLE ROW LEVEL SECURITY;

-- The operation log: de-duplication, status, audit trail, and the list of what changed while a tenant moves. The
-- retention deletes as many rows as are written: by the defaults autovacuum waits for a fifth of the log, and rests so
-- often that a pass takes minutes, in which the log grows.
CREATE TABLE public.operations (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    request_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    operation pg_catalog.text NOT NULL,
    resource_type pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    resource_id pg_catalog.text COLLATE pg_catalog."C",
    status pg_catalog.text NOT NULL CHECK (status IN ('succeeded', 'failed')),
    error pg_catalog.text,
    result pg_catalog.jsonb,
    digest pg_catalog.bytea NOT NULL,
    source pg_catalog.text NOT NULL,
    stream_shard_id pg_catalog.text,
    sequence_number pg_catalog.text,
    xid pg_catalog.xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
    requested_at pg_catalog.timestamptz NOT NULL,
    received_at pg_catalog.timestamptz NOT NULL,
    completed_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (tenant_id, request_id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);
-- For the deletion of old rows. Not BRIN: its ranges only ever widen, and once new rows fill the pages of deleted ones
-- every look would read the whole table.
CREATE INDEX operations_completed_at ON public.operations (completed_at);
-- With lz4 in place of pglz for its result a list takes two fifths less of the server's time. Not every server is built
-- with it; and what the server's own settings choose stays.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_settings
        WHERE name = 'default_toast_compression' AND source = 'default' AND 'lz4' = ANY(enumvals)
    ) THEN
        ALTER TABLE public.operations ALTER COLUMN result SET COMPRESSION lz4;
    END IF;
END
$$;
CREATE POLICY simplu_writer ON public.operations
    USING ((SELECT pg_catalog.has_table_privilege('public.operations'::pg_catalog.regclass, 'INSERT')));
CREATE POLICY simplu_reader ON public.operations
    FOR SELECT USING (tenant_id = pg_catalog.current_setting('simplu.tenant', true));
ALTER TABLE public.operations ENABLE ROW LEVEL SECURITY;

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
CREATE POLICY simplu_writer ON public.stream_positions
    USING ((SELECT pg_catalog.has_table_privilege('public.stream_positions'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.stream_positions ENABLE ROW LEVEL SECURITY;

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
CREATE POLICY simplu_writer ON public.position_merges
    USING ((SELECT pg_catalog.has_table_privilege('public.position_merges'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.position_merges ENABLE ROW LEVEL SECURITY;

-- How often the operation of each message of a queue has failed. A row is made by the first failure, and
-- deleted with the message's dead letter, with its tenant, or when no queue can still have the message.
CREATE TABLE public.message_failures (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    message_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    failure_count integer NOT NULL,
    failed_at pg_catalog.timestamptz NOT NULL, -- the last time
    PRIMARY KEY (tenant_id, message_id)
);
CREATE POLICY simplu_writer ON public.message_failures
    USING ((SELECT pg_catalog.has_table_privilege('public.message_failures'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.message_failures ENABLE ROW LEVEL SECURITY;

-- What became of records that are no operations, for `GET /operations/{requestId}`. Apart from the log, so that no row
-- here hides an operation, or makes a record that was corrected a duplicate. Deleted with the log's rows of its time.
CREATE TABLE public.rejections (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    request_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    reason pg_catalog.text NOT NULL, -- of the dead letter
    error pg_catalog.text NOT NULL,
    dead_letter_queue pg_catalog.text NOT NULL,
    source pg_catalog.text NOT NULL, -- the stream or the queue of the record
    sequence_number pg_catalog.text, -- of a record of a stream
    message_id pg_catalog.text, -- of a message of a queue
    rejected_at pg_catalog.timestamptz NOT NULL, -- the last time
    PRIMARY KEY (tenant_id, request_id)
);
-- For the deletion of old rows: a producer may send bad records only, so there may be as many as operations.
CREATE INDEX rejections_rejected_at ON public.rejections (rejected_at);
CREATE POLICY simplu_writer ON public.rejections
    USING ((SELECT pg_catalog.has_table_privilege('public.rejections'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.rejections ENABLE ROW LEVEL SECURITY;

-- Journal of moves, on the source (docs/adr/0007-moving-tenants.md).
CREATE TABLE public.moves (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    target_shard_id pg_catalog.text NOT NULL,
    move_token bigint NOT NULL,
    step pg_catalog.text NOT NULL,
    detail pg_catalog.jsonb NOT NULL DEFAULT '{}',
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
-- Every replica lists the moves that have not ended, and the last ones that have, with each probe.
CREATE INDEX moves_updated_at ON public.moves (updated_at);
CREATE INDEX moves_unfinished ON public.moves (updated_at)
WHERE step IN ('open', 'committed', 'undoing', 'cleaning');
CREATE POLICY simplu_writer ON public.moves
    USING ((SELECT pg_catalog.has_table_privilege('public.moves'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.moves ENABLE ROW LEVEL SECURITY;

-- Journal of moves, on the target. Of no tenant any more once the rows on the source are deleted.
CREATE TABLE public.arrivals (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    source_shard_id pg_catalog.text NOT NULL,
    move_token bigint NOT NULL, -- of the mover that wrote last
    progress pg_catalog.jsonb NOT NULL, -- of the copy; written with the rows that it counts
    ready_at pg_catalog.timestamptz, -- when all rows were here: everything since then was written here
    ready_snapshot pg_catalog.pg_snapshot, -- the transactions before that one, which is the last that wrote this row
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE POLICY simplu_writer ON public.arrivals
    USING ((SELECT pg_catalog.has_table_privilege('public.arrivals'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.arrivals ENABLE ROW LEVEL SECURITY;

-- Resources that have changed and that the log of operations does not name, while the tenant moves, or could go back.
CREATE TABLE public.move_changes (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    resource_type pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    resource_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    changed_at pg_catalog.timestamptz NOT NULL, -- the last time
    PRIMARY KEY (tenant_id, resource_type, resource_id)
);
CREATE POLICY simplu_writer ON public.move_changes
    USING ((SELECT pg_catalog.has_table_privilege('public.move_changes'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.move_changes ENABLE ROW LEVEL SECURITY;

-- Journal of imports, on the shard of the tenant. While it is `copying` or `following` the tenant is `incoming`, and
-- only the run with the token writes its rows. Afterwards the row is the certificate.
CREATE TABLE public.imports (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    source pg_catalog.text NOT NULL, -- the name of the database, and the identity of its server
    step pg_catalog.text NOT NULL CHECK (step IN ('copying', 'following', 'activated')),
    token pg_catalog.uuid NOT NULL,
    detail pg_catalog.jsonb NOT NULL DEFAULT '{}',
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE POLICY simplu_writer ON public.imports
    USING ((SELECT pg_catalog.has_table_privilege('public.imports'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.imports ENABLE ROW LEVEL SECURITY;

-- Journal of restores of single tenants, on the shard of the tenant (docs/adr/0008-restoring-one-tenant.md).
CREATE TABLE public.restores (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    run pg_catalog.uuid NOT NULL, -- which restorer writes: `move_token` alone comes twice on a shard that lost commits
    move_token bigint NOT NULL, -- that of the tenant's row while it is fenced for this restore
    mode pg_catalog.text NOT NULL,
    step pg_catalog.text NOT NULL CHECK (step IN ('exporting', 'replacing', 'copied', 'done')),
    writes bigint NOT NULL DEFAULT 0, -- one more with each transaction of the restorer
    detail pg_catalog.jsonb NOT NULL DEFAULT '{}',
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE POLICY simplu_writer ON public.restores
    USING ((SELECT pg_catalog.has_table_privilege('public.restores'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.restores ENABLE ROW LEVEL SECURITY;

-- What the log does not name, or not any more: a renamed resource by both ids, a resource whose control message writes
-- its id again, and the resource of an operation whose row of the log another operation replaces. As the owner of the
-- tables: nobody else can make a trigger of it. The tables are those beside the one of the trigger: an adoption makes
-- all of them in another schema first.
CREATE FUNCTION public.simplu_note_change() RETURNS pg_catalog.trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tenant_id text;
    resource_type text;
    resource_ids text[];
BEGIN
    IF TG_TABLE_NAME = 'operations' THEN
        tenant_id := OLD.tenant_id;
        resource_type := OLD.resource_type;
        resource_ids := ARRAY[OLD.resource_id];
    ELSE
        tenant_id := NEW.id;
        resource_type := NEW."resourceName";
        resource_ids := ARRAY[OLD."resourceId", NEW."resourceId"];
    END IF;
    EXECUTE format(
        'INSERT INTO %1$I.move_changes (tenant_id, resource_type, resource_id, changed_at) '
        'SELECT $1, $2, changed.id, clock_timestamp() '
        'FROM (SELECT DISTINCT id FROM unnest($3) AS named (id)) AS changed '
        'WHERE EXISTS (SELECT FROM %1$I.moves WHERE tenant_id = $1 AND step IN (''open'', ''undoing'')) '
        'OR EXISTS (SELECT FROM %1$I.arrivals WHERE tenant_id = $1) '
        'ORDER BY changed.id '
        'ON CONFLICT (tenant_id, resource_type, resource_id) DO UPDATE SET changed_at = excluded.changed_at',
        TG_TABLE_SCHEMA
    )
    USING tenant_id, resource_type, resource_ids;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION public.simplu_note_change() FROM PUBLIC;
CREATE TRIGGER simplu_note_change
AFTER UPDATE OF digest ON public.operations
FOR EACH ROW WHEN (
    OLD.resource_id IS NOT NULL
    AND (OLD.resource_type <> NEW.resource_type OR OLD.resource_id IS DISTINCT FROM NEW.resource_id)
)
EXECUTE FUNCTION public.simplu_note_change();
CREATE TRIGGER simplu_note_change
AFTER UPDATE OF "resourceId" ON public.resources
FOR EACH ROW EXECUTE FUNCTION public.simplu_note_change();

-- Whether a JSON text can be stored: no U+0000, no number beyond numeric, not nested beyond the server's stack. Its
-- inner transaction cannot begin in a parallel query before PostgreSQL 17.
CREATE FUNCTION public.simplu_is_storable(document pg_catalog.text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM document::jsonb;
    RETURN true;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN false;
END
$$;

-- A member of `data` as a type, for the views of business types: null for what is no such value, so that one odd
-- document fails no query. They decide before they cast, and catch no error: that would take a transaction of its own
-- for every value, and no parallel query before PostgreSQL 17 may begin one.

-- An ISO 8601 time; without an offset it is UTC, a date alone is midnight.
CREATE FUNCTION public.simplu_timestamptz(value pg_catalog.jsonb) RETURNS pg_catalog.timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moment text := value #>> '{}';
BEGIN
    IF moment !~ (
        '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])'
        '([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)?)?$'
    ) OR moment < '0001' COLLATE "C" THEN
        RETURN NULL;
    ELSIF substr(moment, 9, 2) > '28' AND substr(moment, 9, 2)::integer > extract(
        DAY FROM make_date(substr(moment, 1, 4)::integer, substr(moment, 6, 2)::integer, 1) + interval '1 month - 1 day'
    ) THEN
        RETURN NULL;
    ELSIF length(moment) = 10 THEN
        RETURN (moment || ' 00:00+00')::timestamptz;
    ELSIF moment ~ '(Z|[+-][0-9:]+)$' THEN
        RETURN moment::timestamptz;
    END IF;
    RETURN (moment || '+00')::timestamptz;
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
