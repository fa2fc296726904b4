-- The old table with our names and types, for either layout. `fault` is why a row cannot be a resource, or null.

CREATE VIEW simplu_adoption_log.old_rows AS
SELECT
    id, source, business_id, location_id,
    resource_type::pg_catalog.text COLLATE "C" AS resource_type,
    resource_id::pg_catalog.text COLLATE "C" AS resource_id,
    simplu_adoption_log.document_of(data) AS data,
    coalesce(created_at, updated_at)::pg_catalog.timestamptz AS created_at,
    coalesce(updated_at, created_at)::pg_catalog.timestamptz AS updated_at,
    simplu_adoption_log.fault_of(
        source, resource_type, resource_id, simplu_adoption_log.document_of(data), coalesce(created_at, updated_at)
    ) AS fault
FROM simplu_adoption_log.rows_with_source;
