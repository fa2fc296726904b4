-- The rows of an old table with one column for business and location.

CREATE VIEW simplu_adoption_log.rows_with_source AS
SELECT
    nullif(business_location_id::pg_catalog.text, '') COLLATE "C" AS source,
    NULL::pg_catalog.text AS business_id, NULL::pg_catalog.text AS location_id,
    id, resource_type, resource_id, data, created_at, updated_at
FROM public.resources;
