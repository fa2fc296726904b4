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
-- Since when it is known what resources were, null of a type without a history; and the members that are kept, if not all.
(
    SELECT began.known_from
    FROM public.resource_histories AS began
    WHERE began.tenant_id = tenants.id AND began.resource_type = kept.resource_type
) AS known_from,
kept.members

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

-- name: audit_versions
-- At most $4 versions of $1, of the resource type $2 or of all where it is empty, behind the place $3, and what is wrong
-- with each: its digest is over itself and over the digest before it. `erased`: its document is gone, and cannot be checked.
-- `missing`: versions before it are; of a history with days the oldest may be. `changed`: the version, or the resource
-- after the last one. A row without a version where there is none.
SELECT
    pg_catalog.concat_ws('/', own.type_no, pg_catalog.encode(own.resource, 'hex'), own.version) AS place,
    own.resource_type, own.version, CASE WHEN own.version > 0 THEN public.simplu_id(own.resource) END AS resource_id,
    CASE
        WHEN own.version > 1 AND prior.digest IS NULL AND (own.keep_days IS NULL OR older.is_there) THEN 'missing'
        WHEN own.version > 0 AND later.version IS NULL AND (own.kind = 'd') = now.is_there THEN 'changed'
        WHEN latter.document IS NULL AND own.kind NOT IN ('d', 'b') THEN 'erased'
        WHEN own.version > 1 AND prior.digest IS NULL THEN NULL
        WHEN
            own.digest <> public.simplu_version_digest(
                prior.digest, own.version, own.applied_at, own.resource, own.request,
                pg_catalog.concat_ws(
                    e'\x1f', tenants.id, own.resource_type, own.kind,
                    (SELECT history_names.name FROM public.history_names WHERE history_names.number = own.source_no)
                ),
                latter.document
            )
        THEN 'changed'
    END AS finding
FROM public.tenants
LEFT JOIN LATERAL (
    SELECT versions.*, kept.resource_type, kept.members, kept.keep_days
    FROM public.history_types AS kept
    JOIN public.resource_versions AS versions ON versions.type_no = kept.type_no
    WHERE
        kept.business_type = tenants.business_type AND versions.tenant_no = tenants.number
        AND kept.resource_type = coalesce(nullif($2, ''), kept.resource_type)
        AND (versions.type_no, versions.resource, versions.version) > (
            pg_catalog.split_part($3, '/', 1)::smallint, pg_catalog.decode(pg_catalog.split_part($3, '/', 2), 'hex'),
            pg_catalog.split_part($3, '/', 3)::integer
        )
    ORDER BY versions.type_no, versions.resource, versions.version
    LIMIT $4
) AS own ON true
LEFT JOIN public.resource_versions AS prior
    ON
        prior.tenant_no = tenants.number AND prior.type_no = own.type_no AND prior.resource = own.resource
        AND prior.version = own.version - 1
LEFT JOIN public.resource_versions AS later
    ON
        later.tenant_no = tenants.number AND later.type_no = own.type_no AND later.resource = own.resource
        AND later.version = own.version + 1
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT
        FROM public.resource_versions AS versions
        WHERE
            versions.tenant_no = tenants.number AND versions.type_no = own.type_no
            AND versions.resource = own.resource AND versions.version < own.version
    ) AS is_there
    OFFSET 0
) AS older
CROSS JOIN LATERAL (
    SELECT
        pg_catalog.count(*) > 0 AS is_there,
        public.simplu_kept((pg_catalog.array_agg(resources.data))[1], own.members) AS document
    FROM public.resources
    WHERE
        later.version IS NULL AND resources.id = tenants.id AND resources."resourceName" = own.resource_type
        AND resources."resourceId" = public.simplu_id(nullif(own.resource, ''))
) AS now
CROSS JOIN LATERAL (
    SELECT
        CASE
            WHEN own.kind IN ('d', 'b') THEN NULL WHEN later.version IS NULL THEN now.document ELSE later.former
        END AS document
) AS latter
WHERE tenants.id = $1 AND :lives_here
ORDER BY own.type_no, own.resource, own.version;

-- name: forget_versions
-- Of the next $5 versions behind the place $1 to $4, delete those that were replaced before the days of their history, or
-- have deleted their resource; and from those that stay the document that they replaced before that. Each in the order of
-- its numbers, so that what is left has no gaps. Only of tenants that live here: moves compare what is kept another day.
-- Return the last place, and how many were deleted; no row behind the last version, or where no history has days.
WITH page AS MATERIALIZED (
    SELECT
        versions.ctid AS place, versions.tenant_no, versions.type_no, versions.resource, versions.version,
        versions.applied_at, versions.kind
    FROM public.resource_versions AS versions
    WHERE
        (versions.tenant_no, versions.type_no, versions.resource, versions.version)
        > ($1, $2, pg_catalog.decode($3, 'hex'), $4)
        AND EXISTS (SELECT FROM public.history_types WHERE keep_days IS NOT NULL)
    ORDER BY versions.tenant_no, versions.type_no, versions.resource, versions.version
    LIMIT $5
), old AS MATERIALIZED (
    SELECT
        page.place,
        page.kind = 'd' OR EXISTS (
            SELECT
            FROM public.resource_versions AS later
            WHERE
                later.tenant_no = page.tenant_no AND later.type_no = page.type_no AND later.resource = page.resource
                AND later.version = page.version + 1 AND later.applied_at <= due.until
        ) AS is_over
    FROM page
    JOIN public.tenants ON tenants.number = page.tenant_no AND tenants.state = 'active'
    JOIN public.history_types AS kept
        ON kept.business_type = tenants.business_type AND kept.type_no = page.type_no
    CROSS JOIN LATERAL (
        SELECT pg_catalog.now() - pg_catalog.make_interval(days => kept.keep_days) AS until OFFSET 0
    ) AS due
    WHERE page.version > 0 AND page.applied_at <= due.until
), deleted AS (
    DELETE FROM public.resource_versions
    WHERE
        ctid = ANY(ARRAY(
            SELECT versions.ctid
            FROM public.resource_versions AS versions
            WHERE versions.ctid = ANY(ARRAY(SELECT old.place FROM old WHERE old.is_over))
            FOR UPDATE SKIP LOCKED
        ))
    RETURNING 1
), emptied AS (
    UPDATE public.resource_versions
    SET former = NULL
    WHERE
        ctid = ANY(ARRAY(
            SELECT versions.ctid
            FROM public.resource_versions AS versions
            WHERE
                versions.ctid = ANY(ARRAY(SELECT old.place FROM old WHERE NOT old.is_over))
                AND versions.former IS NOT NULL
            FOR UPDATE SKIP LOCKED
        ))
)
SELECT
    page.tenant_no, page.type_no, pg_catalog.encode(page.resource, 'hex') AS resource, page.version,
    (SELECT pg_catalog.count(*) FROM deleted) AS row_count
FROM page
ORDER BY page.tenant_no DESC, page.type_no DESC, page.resource DESC, page.version DESC
LIMIT 1;
