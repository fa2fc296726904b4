-- The old table in our words, where business and location have a column each.

CREATE VIEW simplu_adoption_log.old_rows AS
SELECT
    id,
    CASE
        WHEN business_id <> '' AND location_id <> '' THEN jsonb_build_array(business_id, location_id)::text COLLATE "C"
    END AS source,
    business_id::text AS business_id,
    location_id::text AS location_id,
    resource_type::text COLLATE "C" AS resource_type,
    resource_id::text COLLATE "C" AS resource_id,
    simplu_adoption_log.document_of(data) AS data,
    coalesce(created_at, updated_at)::timestamptz AS created_at,
    coalesce(updated_at, created_at)::timestamptz AS updated_at,
    simplu_adoption_log.fault_of(
        CASE WHEN business_id <> '' AND location_id <> '' THEN business_id END, resource_type, resource_id,
        simplu_adoption_log.document_of(data), coalesce(created_at, updated_at)
    ) AS fault
FROM resources;
