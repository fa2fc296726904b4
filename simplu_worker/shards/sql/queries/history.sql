-- Histories of resources (docs/adr/0019-history.md).

-- fragment: with_history
-- The tenant $1, if it lives here, and the history of its resources of the type $2, by any name of the type.
public.tenants
LEFT JOIN public.business_types ON business_types.name = tenants.business_type
LEFT JOIN public.history_types AS kept
    ON
        kept.business_type = tenants.business_type
        AND kept.resource_type = coalesce(business_types.stored_names ->> $2::pg_catalog.text, $2)

-- fragment: known_from
-- Since when it is known what resources were: null of a type without a history.
CASE
    WHEN kept.resource_type IS NOT NULL
    THEN coalesce(
        (
            SELECT began.applied_at
            FROM public.resource_versions AS began
            WHERE
                began.tenant_no = tenants.number AND began.type_no = kept.type_no AND began.resource = ''
                AND began.version = 0
        ),
        tenants.created_at
    )
END AS known_from

-- fragment: version_columns
shown.resource_id, shown.version, shown.change, shown.request_id, shown.source, shown.applied_at,
CASE
    WHEN pg_catalog.octet_length(shown.document::pg_catalog.text) <= $4::pg_catalog.int4
    THEN shown.document::pg_catalog.text
END AS document,
shown.document IS NOT NULL AS has_document

-- name: list_versions
-- At most $5 versions of the resource $3, newest first: those before the version $6 and applied by $7, if given. A row
-- without a version where there is none. Documents of more than $4 bytes are null.
SELECT :known_from, :version_columns
FROM :with_history
LEFT JOIN LATERAL (
    SELECT *
    FROM public.resource_history AS history
    WHERE
        history.tenant_id = tenants.id AND history.resource_type = kept.resource_type
        AND history.resource_key = public.simplu_key($3)
        AND history.version < coalesce($6::integer, 2147483647)
        AND coalesce(history.applied_at <= $7::pg_catalog.timestamptz, true)
    ORDER BY history.version DESC
    LIMIT $5
) AS shown ON true
WHERE tenants.id = $1 AND :lives_here;

-- name: list_changed_at
-- The next $5 resources with versions behind the key $3 as they were at $6: without a version where there was none.
SELECT :known_from, pg_catalog.encode(keys.resource, 'hex') AS key, :version_columns
FROM :with_history
LEFT JOIN LATERAL (
    SELECT DISTINCT versions.resource
    FROM public.resource_versions AS versions
    WHERE
        versions.tenant_no = tenants.number AND versions.type_no = kept.type_no
        AND versions.resource > pg_catalog.decode($3, 'hex')
    ORDER BY versions.resource
    LIMIT $5
) AS keys ON true
LEFT JOIN LATERAL (
    SELECT *
    FROM public.resource_history AS history
    WHERE
        history.tenant_id = tenants.id AND history.resource_type = kept.resource_type
        AND history.resource_key = keys.resource
        AND coalesce(history.applied_at <= $6::pg_catalog.timestamptz, true)
    ORDER BY history.version DESC
    LIMIT 1
) AS shown ON true
WHERE tenants.id = $1 AND :lives_here
ORDER BY keys.resource;

-- name: list_unchanged
-- The next $5 resources behind the id $3 that have no versions.
SELECT :known_from, shown.resource_id AS key, :version_columns
FROM :with_history
LEFT JOIN LATERAL (
    SELECT
        resources."resourceId" AS resource_id, 0 AS version, NULL::pg_catalog.text AS change,
        NULL::pg_catalog.text AS request_id, NULL::pg_catalog.text AS source, NULL::pg_catalog.timestamptz AS applied_at,
        public.simplu_kept(resources.data, kept.members) AS document
    FROM public.resources
    WHERE
        resources.id = tenants.id AND resources."resourceName" = kept.resource_type
        AND resources."resourceId" > $3
        AND NOT EXISTS (
            SELECT
            FROM public.resource_versions AS versions
            WHERE
                versions.tenant_no = tenants.number AND versions.type_no = kept.type_no
                AND versions.resource = public.simplu_key(resources."resourceId")
        )
    ORDER BY resources."resourceId"
    LIMIT $5
) AS shown ON true
WHERE tenants.id = $1 AND :lives_here
ORDER BY shown.resource_id;
