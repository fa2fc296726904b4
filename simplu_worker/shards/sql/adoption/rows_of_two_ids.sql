-- The rows of an old table with a column each for business and location, with the source that `old_rows` shows.

CREATE VIEW simplu_adoption_log.rows_with_source AS
SELECT
    id,
    CASE
        WHEN business_id <> '' AND location_id <> '' THEN jsonb_build_array(business_id, location_id)::text COLLATE "C"
    END AS source,
    business_id::text AS business_id,
    location_id::text AS location_id,
    resource_type,
    resource_id,
    data,
    created_at,
    updated_at
FROM resources;
