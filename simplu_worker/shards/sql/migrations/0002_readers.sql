-- works-from: 1
--
-- Readers' roles see the tenant that they name, a patch takes less time, and a business is found by its id.
-- A worker of version 1 goes on as before: it owns the tables, or may write them, and no policy is about it.

-- A role that may write a table sees and writes all of it, the worker's above all, whether it owns the table or not.
-- All others see the rows of the tenant that their setting `simplu.tenant` names, and without one none. Further
-- policies of a shard's owner are his own: permissive ones let a role see more, restrictive ones less
-- (docs/reading.md). The tables in the order in which a batch takes them, so that this waits for batches and never they
-- for it in turn.
DROP POLICY IF EXISTS simplu_writer ON stream_positions;
CREATE POLICY simplu_writer ON stream_positions
    USING ((SELECT has_table_privilege('stream_positions'::regclass, 'INSERT')));
ALTER TABLE stream_positions ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS simplu_writer ON tenants;
CREATE POLICY simplu_writer ON tenants USING ((SELECT has_table_privilege('tenants'::regclass, 'INSERT')));
DROP POLICY IF EXISTS simplu_reader ON tenants;
CREATE POLICY simplu_reader ON tenants FOR SELECT USING (id = current_setting('simplu.tenant', true));
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS simplu_writer ON operations;
CREATE POLICY simplu_writer ON operations USING ((SELECT has_table_privilege('operations'::regclass, 'INSERT')));
DROP POLICY IF EXISTS simplu_reader ON operations;
CREATE POLICY simplu_reader ON operations FOR SELECT USING (tenant_id = current_setting('simplu.tenant', true));
ALTER TABLE operations ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS simplu_writer ON resources;
CREATE POLICY simplu_writer ON resources USING ((SELECT has_table_privilege('resources'::regclass, 'INSERT')));
DROP POLICY IF EXISTS simplu_reader ON resources;
CREATE POLICY simplu_reader ON resources FOR SELECT USING (id = current_setting('simplu.tenant', true));
ALTER TABLE resources ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS simplu_writer ON moves;
CREATE POLICY simplu_writer ON moves USING ((SELECT has_table_privilege('moves'::regclass, 'INSERT')));
ALTER TABLE moves ENABLE ROW LEVEL SECURITY;

-- RFC 7396 for patches that go deeper than one object within another: as `simplu_merge_patch` was in version 1.
CREATE OR REPLACE FUNCTION simplu_merge_patch_deeply(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN jsonb_typeof(patch) <> 'object' THEN patch ELSE (
        SELECT (base.members - coalesce(array_agg(key) FILTER (WHERE kind = 'null'), '{}'))
            || coalesce(
                jsonb_object_agg(
                    key,
                    CASE kind WHEN 'object' THEN simplu_merge_patch_deeply(base.members -> key, value) ELSE value END
                ) FILTER (WHERE kind <> 'null'),
                '{}'
            )
        FROM (SELECT CASE WHEN jsonb_typeof(target) = 'object' THEN target ELSE '{}' END AS members) AS base
        LEFT JOIN (SELECT key, value, jsonb_typeof(value) AS kind FROM jsonb_each(patch)) AS patched ON true
        GROUP BY base.members
    ) END
$$;

-- RFC 7396, the usual patches first: where no member is null or an object, `||` does all of it. What is null or an
-- object is taken out of the patch before that, and once. Stored data is read from its pages at one place only, the
-- first `||`.
CREATE OR REPLACE FUNCTION simplu_merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
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
            key,
            CASE
                WHEN jsonb_path_exists(value, 'strict $.* ? (@.type() == "null" || @.type() == "object")')
                THEN simplu_merge_patch_deeply(merged -> key, value)
                WHEN jsonb_typeof(merged -> key) = 'object' THEN (merged -> key) || value
                ELSE value
            END
        ),
        '{}'
    )
    INTO nested
    FROM jsonb_each(nested);
    RETURN (merged - special) || nested;
END
$$;

-- Its inner transaction could not begin in a parallel query before PostgreSQL 17.
ALTER FUNCTION simplu_is_storable(text) PARALLEL UNSAFE;

-- For the destruction of all locations of a business.
CREATE INDEX CONCURRENTLY IF NOT EXISTS tenants_business_id ON tenants (business_id);
