-- The tables of contract §10. Made on an empty shard only, in one transaction, under an advisory lock.
--
-- Ids collate "C": byte order, the same on every shard and in Python, and no library upgrade can corrupt an index.

CREATE TABLE schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    works_from integer, -- the oldest worker's schema version that works with the shard from here on; null: its own only
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The shard's own identity: a connection string that leads to another shard's database is refused by it.
CREATE TABLE shard_meta (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    shard_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE tenants (
    id text COLLATE "C" PRIMARY KEY,
    business_id text COLLATE "C" NOT NULL,
    location_id text COLLATE "C" NOT NULL,
    business_type text NOT NULL,
    state text NOT NULL
        CHECK (state IN ('incoming', 'ready', 'active', 'fenced', 'moved', 'destroying', 'destroyed')),
    epoch bigint NOT NULL DEFAULT 1,
    moved_to text,
    control_at timestamptz NOT NULL, -- the newest applied timestamp of a control message
    created_at timestamptz NOT NULL, -- the clock of the registering transaction; moves with the tenant
    state_changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    deletion_began_at timestamptz -- while `destroying`: its rows are going, and nothing brings the tenant back as it was
);

-- fillfactor 90 leaves room for the new version of a row on its own page: with no index on a column that changes,
-- every update is a heap-only one.
CREATE TABLE resources (
    id text COLLATE "C" NOT NULL, -- the tenant's id
    "businessType" text NOT NULL,
    "resourceName" text COLLATE "C" NOT NULL,
    "resourceId" text COLLATE "C" NOT NULL,
    data jsonb NOT NULL CHECK (jsonb_typeof(data) = 'object'),
    date timestamptz NOT NULL,
    "lastUpdated" timestamptz NOT NULL,
    PRIMARY KEY (id, "resourceName", "resourceId")
) WITH (
    fillfactor = 90,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);

-- The operation log: de-duplication, status, audit trail, and the list of what changed while a tenant moves.
CREATE TABLE operations (
    tenant_id text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    operation text NOT NULL,
    resource_type text COLLATE "C" NOT NULL,
    resource_id text COLLATE "C",
    status text NOT NULL CHECK (status IN ('succeeded', 'failed')),
    error text,
    result jsonb,
    digest bytea NOT NULL,
    source text NOT NULL,
    stream_shard_id text,
    sequence_number text,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    requested_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    completed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, request_id)
);

-- For the deletion of old rows. Not BRIN: its ranges only ever widen, and once new rows fill the pages of deleted ones
-- every look would read the whole table.
CREATE INDEX operations_completed_at ON operations (completed_at);

-- How far each stream shard got, as this shard knows it (architecture, idea 8). Positions are written `number/sub-number`,
-- or TRIM_HORIZON, or SHARD_END. In the same write-ahead log as the effects: what survives of a row never claims more than
-- what survives of them. A row is rewritten with every batch, so there is room for it on its page.
CREATE TABLE stream_positions (
    stream text COLLATE "C" NOT NULL,
    stream_shard_id text COLLATE "C" NOT NULL,
    owed_from text NOT NULL, -- behind it something of the whole stream shard may be owed, to any tenant on any shard
    owed_since timestamptz, -- about when that arrived; null while nothing was read
    read_to text, -- where this is given, up to here to tenants of `held` only
    held text[],
    read_up_to timestamptz, -- nothing that arrived before is owed, but to tenants of `held`; null: not known
    parents_done boolean NOT NULL, -- all that the parents of the stream shard owed this shard was there before
    token uuid NOT NULL, -- another one with every write, at random
    PRIMARY KEY (stream, stream_shard_id)
) WITH (fillfactor = 50);

-- Journal of moves, on the source.
CREATE TABLE moves (
    tenant_id text COLLATE "C" PRIMARY KEY,
    target_shard_id text NOT NULL,
    move_token bigint NOT NULL,
    step text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What a tenant of each type starts with, and the resource type of those who work there; one row a file in
-- sql/business_types.
CREATE TABLE business_types (
    name text PRIMARY KEY,
    default_settings jsonb NOT NULL CHECK (jsonb_typeof(default_settings) = 'object'),
    staff_resource_type text COLLATE "C" NOT NULL,
    digest text -- SHA-256 of the file as applied
);

-- RFC 7396: members of the patch replace those of the target, a null removes, objects are merged member by member.
CREATE FUNCTION simplu_merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN jsonb_typeof(patch) <> 'object' THEN patch ELSE (
        SELECT (base.members - coalesce(array_agg(key) FILTER (WHERE kind = 'null'), '{}'))
            || coalesce(
                jsonb_object_agg(
                    key,
                    CASE kind WHEN 'object' THEN simplu_merge_patch(base.members -> key, value) ELSE value END
                ) FILTER (WHERE kind <> 'null'),
                '{}'
            )
        FROM (SELECT CASE WHEN jsonb_typeof(target) = 'object' THEN target ELSE '{}' END AS members) AS base
        LEFT JOIN (SELECT key, value, jsonb_typeof(value) AS kind FROM jsonb_each(patch)) AS patched ON true
        GROUP BY base.members
    ) END
$$;

-- Whether a JSON text can be stored: no U+0000, no number beyond numeric, not nested beyond the server's stack.
CREATE FUNCTION simplu_is_storable(document text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
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
CREATE FUNCTION simplu_timestamptz(value jsonb) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
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
CREATE FUNCTION simplu_numeric(value jsonb) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
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
CREATE FUNCTION simplu_integer(value jsonb) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
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

-- True or false, or a text that is one.
CREATE FUNCTION simplu_boolean(value jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE value #>> '{}' WHEN 'true' THEN true WHEN 'false' THEN false END
$$;
