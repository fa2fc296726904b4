-- What all statements have in common that make, copy or show whole rows of `resources` (CONTRIBUTING.md, "A column, a
-- verb").

-- fragment: made_columns
-- Those without a default, which whoever makes a row gives.
id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated"

-- fragment: resource_columns
-- All of them, in their order: copies have these.
:made_columns

-- fragment: into_resources
INSERT INTO public.resources (:made_columns)

-- fragment: or_replaced
ON CONFLICT (id, "resourceName", "resourceId") DO UPDATE SET (:resource_columns) = (SELECT excluded.*)

-- fragment: utc_format
-- Of times in results (docs/sending.md), for times at UTC.
'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'

-- fragment: shown_resource
-- The text of a resource in results: functions of jsonb would copy each document for the item, for the items and for the
-- page, which takes longer.
'{"data": '::pg_catalog.text || resources.data::pg_catalog.text
|| ', "date": "'::pg_catalog.text || pg_catalog.to_char(resources.date AT TIME ZONE 'UTC', :utc_format)
|| '", "resourceId": '::pg_catalog.text || pg_catalog.to_json(resources."resourceId")::pg_catalog.text
|| ', "lastUpdated": "'::pg_catalog.text
|| pg_catalog.to_char(resources."lastUpdated" AT TIME ZONE 'UTC', :utc_format) || '"}'::pg_catalog.text
