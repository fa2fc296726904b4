-- works-from: 2
--
-- What another role makes in a schema of the search path is run by nobody else: policies name functions of pg_catalog,
-- and functions have a search path of their own, so that they call no other function of ours.
-- A worker of version 2 goes on as before: it calls functions of the same names.
--
-- And of what a worker of version 2 knows nothing: columns for the gap of a shard that was restored from a backup older
-- than the stream, and tables: how often a message of a queue has failed, which records were rejected, which tenants
-- were imported from another database or restored from a backup, and what a move of a tenant to another shard needs
-- (docs/adr/0007-moving-tenants.md).

-- In the order in which a batch takes its tables.
DROP POLICY IF EXISTS simplu_writer ON public.stream_positions;
CREATE POLICY simplu_writer ON public.stream_positions
    USING ((SELECT pg_catalog.has_table_privilege('public.stream_positions'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.stream_positions
    -- The `owed_from` to which the stream was found not to reach back; void once the row has another one.
    ADD COLUMN IF NOT EXISTS gap_from pg_catalog.text COLLATE pg_catalog."C",
    ADD COLUMN IF NOT EXISTS gap_found_at pg_catalog.timestamptz,
    -- When a person accepted that; without it, a reader holds the shard.
    ADD COLUMN IF NOT EXISTS gap_accepted_at pg_catalog.timestamptz;

DROP POLICY IF EXISTS simplu_writer ON public.tenants;
CREATE POLICY simplu_writer ON public.tenants
    USING ((SELECT pg_catalog.has_table_privilege('public.tenants'::pg_catalog.regclass, 'INSERT')));
DROP POLICY IF EXISTS simplu_reader ON public.tenants;
CREATE POLICY simplu_reader ON public.tenants
    FOR SELECT USING (id = pg_catalog.current_setting('simplu.tenant', true));

-- A number that only grows: who wrote last of the movers of the tenant, and of the workers that end a fence.
ALTER TABLE public.tenants ADD COLUMN IF NOT EXISTS move_token pg_catalog.int8 NOT NULL DEFAULT 0;
-- While `fenced`: from then on any worker may make the tenant active again, with the next token. Null while the
-- tenant's rows are replaced by those of a backup: only the restore ends that fence.
ALTER TABLE public.tenants ADD COLUMN IF NOT EXISTS fenced_until pg_catalog.timestamptz;

DROP POLICY IF EXISTS simplu_writer ON public.operations;
CREATE POLICY simplu_writer ON public.operations
    USING ((SELECT pg_catalog.has_table_privilege('public.operations'::pg_catalog.regclass, 'INSERT')));
DROP POLICY IF EXISTS simplu_reader ON public.operations;
CREATE POLICY simplu_reader ON public.operations
    FOR SELECT USING (tenant_id = pg_catalog.current_setting('simplu.tenant', true));
-- The retention deletes as many rows as are written. By the defaults autovacuum waits for a fifth of the log, and rests so
-- often that a pass takes minutes, in which the log grows.
ALTER TABLE public.operations SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_limit = 2000
);
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

DROP POLICY IF EXISTS simplu_writer ON public.resources;
CREATE POLICY simplu_writer ON public.resources
    USING ((SELECT pg_catalog.has_table_privilege('public.resources'::pg_catalog.regclass, 'INSERT')));
DROP POLICY IF EXISTS simplu_reader ON public.resources;
CREATE POLICY simplu_reader ON public.resources
    FOR SELECT USING (id = pg_catalog.current_setting('simplu.tenant', true));
-- By the default of 200 the table grew to 1.28 times at full speed, with 600 to 1.17 on some machines; with 2000 the passes
-- kept other work waiting.
ALTER TABLE public.resources SET (autovacuum_vacuum_cost_limit = 1000);

DROP POLICY IF EXISTS simplu_writer ON public.moves;
CREATE POLICY simplu_writer ON public.moves
    USING ((SELECT pg_catalog.has_table_privilege('public.moves'::pg_catalog.regclass, 'INSERT')));

-- How often the operation of each message of a queue has failed. A row is made by the first failure, and
-- deleted with the message's dead letter, with its tenant, or when no queue can still have the message.
CREATE TABLE IF NOT EXISTS public.message_failures (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    message_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    failure_count integer NOT NULL,
    failed_at pg_catalog.timestamptz NOT NULL, -- the last time
    PRIMARY KEY (tenant_id, message_id)
);
-- What became of records that are no operations, for `GET /operations/{requestId}`. Apart from the log, so that no row
-- here hides an operation, or makes a record that was corrected a duplicate. Deleted with the log's rows of its time.
CREATE TABLE IF NOT EXISTS public.rejections (
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
CREATE INDEX IF NOT EXISTS rejections_rejected_at ON public.rejections (rejected_at);
-- Journal of imports, on the shard of the tenant. While it is `copying` or `following` the tenant is `incoming`, and only
-- the run with the token writes its rows. Afterwards the row is the certificate.
CREATE TABLE IF NOT EXISTS public.imports (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    source pg_catalog.text NOT NULL, -- the name of the database, and the identity of its server
    step pg_catalog.text NOT NULL CHECK (step IN ('copying', 'following', 'activated')),
    token pg_catalog.uuid NOT NULL,
    detail pg_catalog.jsonb NOT NULL DEFAULT '{}',
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
-- Every replica lists the moves that have not ended, and the last ones that have, with each probe.
CREATE INDEX IF NOT EXISTS moves_updated_at ON public.moves (updated_at);
CREATE INDEX IF NOT EXISTS moves_unfinished ON public.moves (updated_at)
WHERE step IN ('open', 'committed', 'undoing', 'cleaning');
-- Journal of moves, on the target. Of no tenant any more once the rows on the source are deleted.
CREATE TABLE IF NOT EXISTS public.arrivals (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    source_shard_id pg_catalog.text NOT NULL,
    move_token pg_catalog.int8 NOT NULL, -- of the mover that wrote last
    progress pg_catalog.jsonb NOT NULL, -- of the copy; written with the rows that it counts
    ready_at pg_catalog.timestamptz, -- when all rows were here: everything since then was written here
    ready_snapshot pg_catalog.pg_snapshot, -- the transactions before that one, which is the last that wrote this row
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
-- Resources that have changed and that the log of operations does not name, while the tenant moves, or could go back.
CREATE TABLE IF NOT EXISTS public.move_changes (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    resource_type pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    resource_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    changed_at pg_catalog.timestamptz NOT NULL, -- the last time
    PRIMARY KEY (tenant_id, resource_type, resource_id)
);
-- Journal of restores of single tenants, on the shard of the tenant (docs/adr/0008-restoring-one-tenant.md).
CREATE TABLE IF NOT EXISTS public.restores (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    run pg_catalog.uuid NOT NULL, -- which restorer writes: `move_token` alone comes twice on a shard that lost commits
    move_token pg_catalog.int8 NOT NULL, -- that of the tenant's row while it is fenced for this restore
    mode pg_catalog.text NOT NULL,
    step pg_catalog.text NOT NULL CHECK (step IN ('exporting', 'replacing', 'copied', 'done')),
    writes pg_catalog.int8 NOT NULL DEFAULT 0, -- one more with each transaction of the restorer
    detail pg_catalog.jsonb NOT NULL DEFAULT '{}',
    started_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
-- How rows of `stream_positions` got their tokens when tenants came, for readers that knew the tokens before.
CREATE TABLE IF NOT EXISTS public.position_merges (
    stream pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    stream_shard_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    token pg_catalog.uuid NOT NULL, -- that the row got
    former_token pg_catalog.uuid NOT NULL, -- that it had
    source_shard_id pg_catalog.text NOT NULL,
    carried_token pg_catalog.uuid NOT NULL, -- of the row on the source, as of the fence
    merged_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (stream, stream_shard_id, token)
);
-- A table of one of these names that another role has made, with triggers of its own, is not taken for ours.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_class AS made
        JOIN pg_catalog.pg_class AS tenants ON tenants.oid = 'public.tenants'::pg_catalog.regclass::pg_catalog.oid
        WHERE
            made.oid IN (
                'public.message_failures'::pg_catalog.regclass::pg_catalog.oid,
                'public.rejections'::pg_catalog.regclass::pg_catalog.oid,
                'public.imports'::pg_catalog.regclass::pg_catalog.oid,
                'public.arrivals'::pg_catalog.regclass::pg_catalog.oid,
                'public.move_changes'::pg_catalog.regclass::pg_catalog.oid,
                'public.restores'::pg_catalog.regclass::pg_catalog.oid,
                'public.position_merges'::pg_catalog.regclass::pg_catalog.oid
            )
            AND made.relowner <> tenants.relowner
            AND pg_catalog.pg_get_userbyid(made.relowner) <> current_user
    ) THEN
        RAISE EXCEPTION
            'expected no table message_failures, rejections, imports, arrivals, move_changes, restores or '
            'position_merges of another role, got one; drop it'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;
DROP POLICY IF EXISTS simplu_writer ON public.message_failures;
CREATE POLICY simplu_writer ON public.message_failures
    USING ((SELECT pg_catalog.has_table_privilege('public.message_failures'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.message_failures ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS simplu_writer ON public.rejections;
CREATE POLICY simplu_writer ON public.rejections
    USING ((SELECT pg_catalog.has_table_privilege('public.rejections'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.rejections ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS simplu_writer ON public.imports;
CREATE POLICY simplu_writer ON public.imports
    USING ((SELECT pg_catalog.has_table_privilege('public.imports'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.imports ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS simplu_writer ON public.arrivals;
CREATE POLICY simplu_writer ON public.arrivals
    USING ((SELECT pg_catalog.has_table_privilege('public.arrivals'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.arrivals ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS simplu_writer ON public.move_changes;
CREATE POLICY simplu_writer ON public.move_changes
    USING ((SELECT pg_catalog.has_table_privilege('public.move_changes'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.move_changes ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS simplu_writer ON public.restores;
CREATE POLICY simplu_writer ON public.restores
    USING ((SELECT pg_catalog.has_table_privilege('public.restores'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.restores ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS simplu_writer ON public.position_merges;
CREATE POLICY simplu_writer ON public.position_merges
    USING ((SELECT pg_catalog.has_table_privilege('public.position_merges'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.position_merges ENABLE ROW LEVEL SECURITY;

-- What the log does not name, or not any more: a renamed resource by both ids, a resource whose control message writes its
-- id again, and the resource of an operation whose row of the log another operation replaces. As the owner of the tables,
-- so that a worker's role that may write nothing but the older tables works as before; and nobody else can make a trigger
-- of it. The tables are those beside the one of the trigger: an adoption makes all of them in another schema first.
CREATE OR REPLACE FUNCTION public.simplu_note_change() RETURNS trigger
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
CREATE OR REPLACE TRIGGER simplu_note_change
AFTER UPDATE OF digest ON public.operations
FOR EACH ROW WHEN (
    OLD.resource_id IS NOT NULL
    AND (OLD.resource_type <> NEW.resource_type OR OLD.resource_id IS DISTINCT FROM NEW.resource_id)
)
EXECUTE FUNCTION public.simplu_note_change();
CREATE OR REPLACE TRIGGER simplu_note_change
AFTER UPDATE OF "resourceId" ON public.resources
FOR EACH ROW EXECUTE FUNCTION public.simplu_note_change();

-- RFC 7396, for workers of version 2: as before, but for patches that go deeper than one object within another. Those
-- are merged as later workers do in their own statement (queries/applying.sql), without a function that calls itself.
CREATE OR REPLACE FUNCTION public.simplu_merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    special text[];
    nested jsonb;
    merged jsonb;
BEGIN
    IF jsonb_typeof(patch) <> 'object' THEN
        RETURN patch;
    END IF;
    IF jsonb_path_exists(patch, 'strict $.* ? (@.type() == "null" || @.type() == "object")') THEN
        SELECT
            array_agg(key), coalesce(jsonb_object_agg(key, value) FILTER (WHERE jsonb_typeof(value) = 'object'), '{}')
        INTO special, nested
        FROM jsonb_each(patch)
        WHERE jsonb_typeof(value) IN ('null', 'object');
        patch := patch - special;
    END IF;
    merged := target || coalesce(patch, '{}');
    IF jsonb_typeof(merged) IS DISTINCT FROM 'object' THEN -- the target was none
        merged := coalesce(patch, '{}');
    END IF;
    IF special IS NULL THEN
        RETURN merged;
    END IF;
    SELECT coalesce(
        jsonb_object_agg(
            top.key,
            CASE
                WHEN jsonb_path_exists(top.value, 'strict $.* ? (@.type() == "null" || @.type() == "object")')
                THEN (
                    WITH RECURSIVE node AS (
                        SELECT
                            0 AS level, ''::text AS place, ''::text AS parent, ''::text AS key,
                            merged -> top.key AS document, top.value AS change
                        UNION ALL
                        SELECT
                            node.level + 1, node.place || '/' || member.number::text, node.place, member.key,
                            node.document -> member.key, member.value
                        FROM node
                        CROSS JOIN LATERAL jsonb_each(node.change) WITH ORDINALITY AS member (key, value, number)
                        WHERE jsonb_typeof(member.value) = 'object' AND node.level <= 1024
                    ), flat AS (
                        SELECT
                            node.level, node.place, node.parent, node.key,
                            CASE
                                WHEN jsonb_typeof(node.document) = 'object' THEN node.document - names.keys
                                ELSE '{}'
                            END || (node.change - names.keys) AS members
                        FROM node
                        CROSS JOIN LATERAL (
                            SELECT ARRAY(
                                SELECT member.key
                                FROM jsonb_each(node.change) AS member
                                WHERE jsonb_typeof(member.value) IN ('null', 'object')
                            ) AS keys
                        ) AS names
                    ), risen AS (
                        SELECT
                            max(flat.level) AS level,
                            CASE
                                WHEN max(flat.level) <= 1024 THEN '{}'::jsonb
                                ELSE ('levels: ' || max(flat.level)::text)::jsonb
                            END AS below
                        FROM flat
                        UNION ALL
                        SELECT
                            risen.level - 1,
                            (
                                SELECT jsonb_object_agg(siblings.parent, siblings.members)
                                FROM (
                                    SELECT
                                        flat.parent,
                                        jsonb_object_agg(
                                            flat.key, flat.members || coalesce(risen.below -> flat.place, '{}')
                                        ) AS members
                                    FROM flat
                                    WHERE flat.level = risen.level
                                    GROUP BY flat.parent
                                ) AS siblings
                            )
                        FROM risen
                        WHERE risen.level >= 0
                    )
                    SELECT risen.below -> '' -> '' FROM risen WHERE risen.level < 0
                )
                WHEN jsonb_typeof(merged -> top.key) = 'object' THEN (merged -> top.key) || top.value
                ELSE top.value
            END
        ),
        '{}'
    )
    INTO nested
    FROM jsonb_each(nested) AS top;
    RETURN (merged - special) || nested;
END
$$;

DROP FUNCTION IF EXISTS public.simplu_merge_patch_deeply(jsonb, jsonb);

-- As before, but for their search path; and the one in SQL is in PL/pgSQL, which is faster where it is not inlined.
ALTER FUNCTION public.simplu_is_storable(text) SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION public.simplu_timestamptz(jsonb) SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION public.simplu_numeric(jsonb) SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION public.simplu_integer(jsonb) SET search_path = pg_catalog, pg_temp;
CREATE OR REPLACE FUNCTION public.simplu_boolean(value jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE value #>> '{}' WHEN 'true' THEN true WHEN 'false' THEN false END;
END
$$;
