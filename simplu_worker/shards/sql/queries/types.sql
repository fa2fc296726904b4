-- Business types on a shard: read, written with their views, and removed.

-- name: read_types
-- The types of this shard, each with its tenants in any state in which they need it.
SELECT
    business_types.name, business_types.definition, business_types.digest, business_types.is_applied,
    coalesce(used.tenant_count, 0) AS tenant_count
FROM public.business_types
LEFT JOIN (
    SELECT tenants.business_type, pg_catalog.count(*) AS tenant_count
    FROM public.tenants
    WHERE tenants.state NOT IN ('moved', 'destroyed')
    GROUP BY tenants.business_type
) AS used ON used.business_type = business_types.name
ORDER BY business_types.name;

-- name: list_type_names
-- The names of the types of this shard.
SELECT business_types.name FROM public.business_types;

-- name: read_relations
-- The relations of the schema $1 with the names $2: what each is, and its columns with their types, in order.
SELECT
    pg_class.relname::pg_catalog.text AS name,
    pg_class.relkind::pg_catalog.text AS kind,
    array(
        SELECT pg_attribute.attname::pg_catalog.text
        FROM pg_catalog.pg_attribute
        WHERE pg_attribute.attrelid = pg_class.oid AND pg_attribute.attnum > 0::pg_catalog.int2
        ORDER BY pg_attribute.attnum
    ) AS columns,
    array(
        SELECT pg_catalog.format_type(pg_attribute.atttypid, pg_attribute.atttypmod)
        FROM pg_catalog.pg_attribute
        WHERE pg_attribute.attrelid = pg_class.oid AND pg_attribute.attnum > 0::pg_catalog.int2
        ORDER BY pg_attribute.attnum
    ) AS types
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_namespace.nspname = $1::pg_catalog.name AND pg_class.relname::pg_catalog.text = ANY($2::pg_catalog.text[]);

-- name: read_list_indexes
-- The indexes of the schema $1 whose names begin with $2, but for those that are half built.
SELECT pg_class.relname::pg_catalog.text AS name
FROM pg_catalog.pg_class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
JOIN pg_catalog.pg_index ON pg_index.indexrelid = pg_class.oid
WHERE
    pg_namespace.nspname = $1::pg_catalog.name AND pg_index.indisvalid
    AND pg_catalog.starts_with(pg_class.relname::pg_catalog.text, $2::pg_catalog.text);

-- name: lock_tenants_table
-- Before a type is removed: no tenant of it comes meanwhile. Workers read tenants on, and lock their rows for batches.
LOCK TABLE public.tenants IN SHARE MODE;

-- name: write_business_type
-- Write the row of a type. An upgrade ($7 is false) overwrites none that `types apply` wrote. Idempotent; locks the row.
INSERT INTO public.business_types AS known (
    name, default_settings, staff_resource_type, stored_names, definition, digest, is_applied
)
VALUES ($1, $2::pg_catalog.text::pg_catalog.jsonb, $3, $4::pg_catalog.text::pg_catalog.jsonb, $5, $6, $7)
ON CONFLICT (name) DO UPDATE
SET
    default_settings = excluded.default_settings, staff_resource_type = excluded.staff_resource_type,
    stored_names = excluded.stored_names,
    definition = excluded.definition, digest = excluded.digest, is_applied = excluded.is_applied
WHERE excluded.is_applied OR NOT known.is_applied;

-- name: keep_history
-- Have the history of the resource type $2 of the business type $1 keep $3 days, if it has begun.
UPDATE public.history_types SET keep_days = $3 WHERE business_type = $1 AND resource_type = $2;

-- name: make_history_triggers
-- Unless they are there. Nothing writes resources from here to the end of the transaction.
SELECT public.simplu_make_history_triggers();

-- name: begin_history
-- With a mark (b) for each tenant whose rows were here before: what it was then is not known. One that is made later has
-- none, and one that comes by a move brings its own.
WITH name AS (
    INSERT INTO public.history_names AS known (name)
    SELECT pg_catalog.unnest(ARRAY[$2::pg_catalog.text, 'types apply'])
    ON CONFLICT (name) DO UPDATE SET name = known.name
    RETURNING number, name
), type AS (
    INSERT INTO public.history_types (business_type, resource_type, type_no, members, keep_days)
    SELECT $1, $2, name.number, $3::pg_catalog.text[], $4::integer
    FROM name
    WHERE name.name = $2
    RETURNING business_type, resource_type, type_no
)
INSERT INTO public.resource_versions (
    applied_at, tenant_no, version, type_no, source_no, kind, digest, resource
)
SELECT
    moment.now, tenants.number, 0, type.type_no, (SELECT name.number FROM name WHERE name.name = 'types apply'), 'b',
    public.simplu_version_digest(
        NULL, 0, moment.now, '', NULL,
        pg_catalog.concat_ws(e'\x1f', tenants.id, type.resource_type, 'b', 'types apply'), NULL
    ),
    ''
FROM type
JOIN public.tenants ON tenants.business_type = type.business_type AND tenants.state IN ('active', 'fenced', 'destroying')
CROSS JOIN (SELECT pg_catalog.clock_timestamp() AS now OFFSET 0) AS moment;

-- name: remove_business_type
-- In a transaction that has found it without tenants since `lock_tenants_table`.
DELETE FROM public.business_types WHERE name = $1;

-- name: name_types
-- The types of this shard, the first $1 of them.
SELECT name, stored_names::pg_catalog.text AS stored_names FROM public.business_types ORDER BY name LIMIT $1;

-- name: count_unknown_names
-- The resources of the tenants of the type $1 whose names are not among $2, by name, the most first. By the primary key:
-- it steps from name to name of each tenant, and counts the unknown ones alone. A plain join would let the planner read and
-- sort all resources of the shard, also where none is unknown.
SELECT named.name, pg_catalog.sum(own.row_count)::pg_catalog.int8 AS row_count, pg_catalog.count(*) AS tenant_count
FROM (
    WITH RECURSIVE steps AS (
        SELECT tenants.id, (
            SELECT resources."resourceName" FROM public.resources
            WHERE resources.id = tenants.id ORDER BY resources."resourceName" LIMIT 1
        ) AS name
        FROM public.tenants
        WHERE tenants.business_type = $1 AND tenants.state NOT IN ('moved', 'destroyed')
        UNION ALL
        SELECT steps.id, (
            SELECT resources."resourceName" FROM public.resources
            WHERE resources.id = steps.id AND resources."resourceName" > steps.name
            ORDER BY resources."resourceName" LIMIT 1
        )
        FROM steps
        WHERE steps.name IS NOT NULL
    )
    SELECT steps.id, steps.name FROM steps WHERE steps.name <> ALL($2::pg_catalog.text[])
) AS named
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS row_count FROM public.resources
    WHERE resources.id = named.id AND resources."resourceName" = named.name
) AS own
GROUP BY named.name
ORDER BY row_count DESC, named.name
LIMIT 50;

-- name: find_other_names
-- The resources of each tenant of the types $1 with the names $2, which are stored as $3 now: how many, and how many of
-- their ids are there under both names. By the primary key, tenant by tenant.
SELECT
    tenants.id AS tenant_id, wanted.business_type, wanted.name, wanted.stored_as, counted.resource_count,
    counted.both_count
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[])
    AS wanted (business_type, name, stored_as)
JOIN public.tenants
    ON
        tenants.business_type = wanted.business_type
        AND tenants.state NOT IN ('moved', 'destroying', 'destroyed')
CROSS JOIN LATERAL (
    SELECT pg_catalog.count(*) AS resource_count, pg_catalog.count(own."resourceId") AS both_count
    FROM public.resources AS other
    LEFT JOIN public.resources AS own
        ON
            own.id = tenants.id AND own."resourceName" = wanted.stored_as
            AND own."resourceId" = other."resourceId"
    WHERE other.id = tenants.id AND other."resourceName" = wanted.name
    OFFSET 0
) AS counted
WHERE counted.resource_count > 0::bigint
ORDER BY wanted.business_type, wanted.name, tenants.id;

-- name: store_under_name
-- Give the next resources of the tenant $1 with the name $2, after the id $4 and at most $5, the name $3, but for those
-- whose id is there under that one too. With the tenant's row locked, so that none of them comes meanwhile.
WITH page AS MATERIALIZED (
    SELECT other."resourceId" AS resource_id
    FROM public.resources AS other
    WHERE
        other.id = $1 AND other."resourceName" = $2 AND other."resourceId" > $4
        AND NOT EXISTS (
            SELECT FROM public.resources AS own
            WHERE own.id = $1 AND own."resourceName" = $3 AND own."resourceId" = other."resourceId"
        )
    ORDER BY other."resourceId"
    LIMIT $5
)
UPDATE public.resources
SET "resourceName" = $3
FROM page
WHERE resources.id = $1 AND resources."resourceName" = $2 AND resources."resourceId" = page.resource_id
RETURNING resources."resourceId" AS resource_id;

-- name: list_tenants_of_type
-- The tenants of the type $1 that are here, in order.
SELECT tenants.id FROM public.tenants
WHERE tenants.business_type = $1 AND tenants.state NOT IN ('moved', 'destroyed')
ORDER BY tenants.id;

-- name: read_documents
-- The next documents of the tenant $1 with the name $2, after the one with the id $3: at most $4, which begin within $5
-- bytes as they are stored, of the `found_count` that there are up to $4. Of one name: up to PostgreSQL 16 a search for
-- several would read all that come after them.
SELECT page.resource_id, page.data::pg_catalog.text AS data, page.found_count
FROM (
    SELECT
        found.*,
        pg_catalog.count(*) OVER () AS found_count,
        pg_catalog.sum(found.bytes) OVER (ORDER BY found.resource_id) - found.bytes AS bytes_before
    FROM (
        SELECT resources."resourceId" AS resource_id, resources.data, pg_catalog.pg_column_size(resources.data) AS bytes
        FROM public.resources
        WHERE resources.id = $1 AND resources."resourceName" = $2 AND resources."resourceId" > $3
        ORDER BY resources."resourceId"
        LIMIT $4
    ) AS found
) AS page
WHERE page.bytes_before < $5
ORDER BY page.resource_id;
