-- Dental practices: patients, appointments, treatments.
--
-- Applied to every shard that does not have it as it is here, again and again: whatever it says can be said twice. The
-- columns of a view stay what they are, and a new one comes last: Postgres replaces a view in no other way, and those
-- who may read it still may.

INSERT INTO public.business_types (name, default_settings, staff_resource_type)
VALUES ('dental', '{"locale": "en", "timezone": "UTC", "appointmentMinutes": 30}', 'medic')
ON CONFLICT (name) DO UPDATE
SET default_settings = excluded.default_settings, staff_resource_type = excluded.staff_resource_type;

CREATE OR REPLACE VIEW public.dental_patients AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'email'::pg_catalog.text AS email,
    data ->> 'phone'::pg_catalog.text AS phone,
    public.simplu_timestamptz(data -> 'birthDate'::pg_catalog.text) AS birth_date,
    public.simplu_boolean(data -> 'active'::pg_catalog.text) AS active
FROM public.resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('patient', 'patients');

CREATE OR REPLACE VIEW public.dental_appointments AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'patientId'::pg_catalog.text AS patient_id,
    data ->> 'patientName'::pg_catalog.text AS patient_name,
    data ->> 'medicName'::pg_catalog.text AS medic_name,
    coalesce(
        public.simplu_timestamptz(data -> 'appointmentTime'::pg_catalog.text),
        public.simplu_timestamptz(data -> 'appointmentDate'::pg_catalog.text)
    ) AS appointment_time,
    public.simplu_integer(data -> 'durationMinutes'::pg_catalog.text) AS duration_minutes,
    data ->> 'service'::pg_catalog.text AS service,
    data ->> 'status'::pg_catalog.text AS status,
    public.simplu_boolean(data -> 'confirmed'::pg_catalog.text) AS confirmed
FROM public.resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('appointment', 'appointments');

CREATE OR REPLACE VIEW public.dental_treatments AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'patientId'::pg_catalog.text AS patient_id,
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'status'::pg_catalog.text AS status,
    public.simplu_numeric(data -> 'price'::pg_catalog.text) AS price,
    public.simplu_integer(data -> 'durationMinutes'::pg_catalog.text) AS duration_minutes
FROM public.resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('treatment', 'treatments');

-- Who reads a view sees of it what the policies of `resources` let that role see. Before PostgreSQL 15 views cannot do
-- so.
DO $$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW public.dental_patients SET (security_invoker = true);
        ALTER VIEW public.dental_appointments SET (security_invoker = true);
        ALTER VIEW public.dental_treatments SET (security_invoker = true);
    END IF;
END
$$;
