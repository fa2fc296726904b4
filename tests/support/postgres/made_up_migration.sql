-- works-from: 1
--
-- A made-up second migration, for the tests of upgrades: columns of tables that a batch uses, a table, a function and an
-- index, of which workers of version 1 know nothing.

-- In the order in which a batch takes its tables.
ALTER TABLE public.tenants ADD COLUMN IF NOT EXISTS note pg_catalog.text;
ALTER TABLE public.transfers ADD COLUMN IF NOT EXISTS note pg_catalog.text;

CREATE TABLE IF NOT EXISTS public.notes (
    tenant_id pg_catalog.text COLLATE pg_catalog."C" PRIMARY KEY,
    note pg_catalog.text NOT NULL
);
DROP POLICY IF EXISTS simplu_writer ON public.notes;
CREATE POLICY simplu_writer ON public.notes
    USING ((SELECT pg_catalog.has_table_privilege('public.notes'::pg_catalog.regclass, 'INSERT')));
ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY;

CREATE OR REPLACE FUNCTION public.simplu_noted(note pg_catalog.text) RETURNS pg_catalog.text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN 'noted: ' || note;
END
$$;

-- step
CREATE INDEX CONCURRENTLY IF NOT EXISTS tenants_age ON public.tenants (created_at);
-- step
COMMENT ON INDEX public.tenants_age IS 'made';
