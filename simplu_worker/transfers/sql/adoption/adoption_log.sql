-- The tables of an adoption, in a namespace that is kept after the swap. Our other tables are made in a second one,
-- which is dropped after they have moved. Run once, in the transaction that begins an adoption.

CREATE SCHEMA simplu_adoption_log;
CREATE SCHEMA simplu_adoption;

-- The sources of the old table's rows, and the tenant of each source; one with a problem has no tenant.
CREATE TABLE simplu_adoption_log.sources (
    key text COLLATE "C" PRIMARY KEY, -- `source` of the view `old_rows`
    tenant_id text COLLATE "C" UNIQUE DEFERRABLE INITIALLY DEFERRED,
    business_id text,
    location_id text,
    business_type text,
    problem text,
    CHECK ((tenant_id IS NULL) = (problem IS NOT NULL))
);

-- Each old row that is copied, and its resource; several old rows may be one resource, the newest of which counts.
CREATE TABLE simplu_adoption_log.taken (
    old_id bigint PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL,
    resource_type text COLLATE "C" NOT NULL,
    resource_id text COLLATE "C" NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE INDEX taken_by_resource ON simplu_adoption_log.taken (tenant_id, resource_type, resource_id);

-- The ids of old rows to copy again. Only ids, as a copy always makes our row as the old one is now.
CREATE TABLE simplu_adoption_log.changes (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    old_id bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp() -- -infinity: not changed by the other program
);

-- SECURITY DEFINER: the other program's role needs no rights in this namespace.
CREATE FUNCTION simplu_adoption_log.note_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO simplu_adoption_log.changes (old_id) SELECT old_id FROM simplu_adoption_log.taken;
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO simplu_adoption_log.changes (old_id) VALUES (OLD.id);
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND NEW.id <> OLD.id) THEN
        INSERT INTO simplu_adoption_log.changes (old_id) VALUES (NEW.id);
    END IF;
    RETURN NULL;
END
$$;

-- The document of an old row; null if the value is none, or cannot be stored. One function for each type of column.
CREATE FUNCTION simplu_adoption_log.document_of(data jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS 'SELECT data';

CREATE FUNCTION simplu_adoption_log.document_of(data text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN data::pg_catalog.jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN NULL;
END
$$;

-- The reason why an old row cannot be a resource (docs/sending.md); null if it can.
CREATE FUNCTION simplu_adoption_log.fault_of(
    source text, resource_type text, resource_id text, document jsonb, written_at timestamptz
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN source IS NULL THEN 'it names no tenant'
        WHEN coalesce(pg_catalog.length(resource_type), 0) NOT BETWEEN 1 AND 128
        THEN 'its resource_type has not 1 to 128 characters'
        WHEN coalesce(pg_catalog.length(resource_id), 0) NOT BETWEEN 1 AND 256
        THEN 'its resource_id has not 1 to 256 characters'
        WHEN pg_catalog.jsonb_typeof(document) IS DISTINCT FROM 'object'
        THEN 'its data is no JSON object that can be stored'
        WHEN written_at IS NULL THEN 'it has neither created_at nor updated_at'
    END
$$;
