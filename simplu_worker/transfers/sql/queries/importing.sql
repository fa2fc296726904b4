-- The import of tenants from another database. A tenant is `incoming` while its rows are written, so that its
-- operations are held. Only the run with the token of the journal's row writes: each transaction begins with
-- `lock_import`.

-- name: find_imports
-- The rows of the tenants $1, each with its import; not with that of a tenant that was destroyed and made again.
SELECT
    tenants.id AS tenant_id, tenants.business_id, tenants.location_id, tenants.state,
    transfers.place AS source, transfers.step, transfers.detail::pg_catalog.text AS detail
FROM public.tenants
LEFT JOIN public.transfers ON
    transfers.tenant_id = tenants.id AND transfers.kind = 'import' AND transfers.updated_at >= tenants.created_at
WHERE tenants.id = ANY($1::pg_catalog.text[]);

-- name: make_incoming_tenants
-- Insert tenants as `incoming`, unless they exist; return those made. Idempotent. Rolled back after
-- `is_registration_in_time` if it took too long.
INSERT INTO public.tenants (
    id, business_id, location_id, business_type, state, control_at, created_at, state_changed_at
)
SELECT
    id, business_id, location_id, business_type, 'incoming', pg_catalog.to_timestamp(0),
    pg_catalog.now(), pg_catalog.now()
FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[])
    AS sent (id, business_id, location_id, business_type)
WHERE
    NOT EXISTS (SELECT FROM public.tenants WHERE tenants.id = sent.id)
    AND EXISTS (SELECT FROM public.business_types WHERE business_types.name = sent.business_type)
ORDER BY id
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: lock_import
-- Begins each transaction of an import: no other run has come, or comes before the commit. Waits for activations.
SELECT tenants.business_type
FROM public.transfers
JOIN public.tenants ON tenants.id = transfers.tenant_id
WHERE transfers.tenant_id = $1 AND transfers.kind = 'import' AND transfers.token = $2 AND tenants.state = 'incoming'
FOR UPDATE;

-- name: write_imported
-- Rows of the tenant $1 of the type $2.
:into_resources
SELECT
    $1::pg_catalog.text, $2::pg_catalog.text, sent.resource_type, sent.resource_id, sent.data::pg_catalog.jsonb,
    sent.created::pg_catalog.timestamptz, sent.changed::pg_catalog.timestamptz
FROM unnest(
    $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[], $6::pg_catalog.text[], $7::pg_catalog.text[]
) AS sent (resource_type, resource_id, data, created, changed)
:or_replaced;

-- name: activate_incoming
-- Needs no confirmation: the tenant's other homes were looked for.
UPDATE public.tenants
SET
    state = 'active',
    state_changed_at = greatest(pg_catalog.clock_timestamp(), created_at + interval '1 microsecond')
WHERE id = $1 AND state = 'incoming';

-- name: find_open_imports
-- The tenants that an import has not activated, of the source $1 if given.
SELECT tenants.id, tenants.business_id, tenants.location_id, tenants.business_type, transfers.place
FROM public.tenants
JOIN public.transfers ON transfers.tenant_id = tenants.id AND transfers.kind = 'import'
WHERE
    tenants.state = 'incoming' AND transfers.step <> 'done'
    AND ($1::pg_catalog.text IS NULL OR transfers.place = $1)
ORDER BY tenants.id;
