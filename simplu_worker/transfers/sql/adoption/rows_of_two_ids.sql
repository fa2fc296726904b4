-- The rows of an old table with a column each for business and location.

CREATE VIEW simplu_adoption_log.rows_with_source AS
SELECT
    CASE
        WHEN business_id::pg_catalog.text <> '' AND location_id::pg_catalog.text <> ''
        THEN pg_catalog.jsonb_build_array(business_id, location_id)::pg_catalog.text COLLATE "C"
    END AS source,
    business_id::pg_catalog.text AS business_id, location_id::pg_catalog.text AS location_id,
    id, resource_type, resource_id, data, created_at, updated_at
FROM public.resources;
