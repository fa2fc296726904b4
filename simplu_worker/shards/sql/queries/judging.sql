-- The schemas by which documents are judged.

-- name: read_definitions
-- The definitions of business types with their digests. A definition that has the digest in $2 for its name in $1 is
-- known, and NULL here.
SELECT
    stored.name, stored.digest,
    CASE WHEN known.digest IS NULL OR known.digest <> stored.digest THEN stored.definition END AS definition
FROM (
    SELECT
        business_types.name, business_types.definition,
        pg_catalog.encode(
            pg_catalog.sha256(pg_catalog.convert_to(business_types.definition, 'UTF8')), 'hex'
        ) AS digest
    FROM public.business_types
    WHERE business_types.definition IS NOT NULL
) AS stored
LEFT JOIN unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS known (name, digest) ON known.name = stored.name;

-- name: read_definition
-- The definition of the business type of the tenant $1; NULL where it has none.
SELECT business_types.definition
FROM public.tenants
JOIN public.business_types ON business_types.name = tenants.business_type
WHERE tenants.id = $1;
