-- The old table in our words, where one column names business and location.

CREATE VIEW simplu_adoption_log.old_rows AS
SELECT
    id,
    nullif(business_location_id, '')::text COLLATE "C" AS source,
    NULL::text AS business_id,
    NULL::text AS location_id,
    resource_type::text COLLATE "C" AS resource_type,
    resource_id::text COLLATE "C" AS resource_id,
    simplu_adoption_log.document_of(data) AS data,
    coalesce(created_at, updated_at)::timestamptz AS created_at,
    coalesce(updated_at, created_at)::timestamptz AS updated_at,
    simplu_adoption_log.fault_of(
        nullif(business_location_id, ''), resource_type, resource_id, simplu_adoption_log.document_of(data),
        coalesce(created_at, updated_at)
    ) AS fault
FROM resources;
