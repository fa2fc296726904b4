-- Dental practices: patients, appointments, treatments.
--
-- Applied to every shard that does not have it as it is here, again and again: whatever it says can be said twice. The
-- columns of a view stay what they are, and a new one comes last: Postgres replaces a view in no other way, and those
-- who may read it still may.

-- For `list` and the views by day, of all types: each type's file has it, and the first one makes it. `date` never
-- changes, so updates stay heap-only; an index on `data`, or a part of it, or on "lastUpdated" would end that. The name
-- comes last, since a view has two of them. A row always has a date; but by the condition nothing can use the index that
-- does not ask for days. Without it, as in `resources_by_date` before, the planner took it for single resources where
-- its statistics were from before a tenant grew, and each of them was looked for among all rows of the tenant.
CREATE INDEX CONCURRENTLY IF NOT EXISTS resources_by_day ON resources (id, date, "resourceName")
WHERE date IS NOT NULL;

DROP INDEX CONCURRENTLY IF EXISTS public.resources_by_date;

INSERT INTO business_types (name, default_settings, staff_resource_type)
VALUES ('dental', '{"locale": "en", "timezone": "UTC", "appointmentMinutes": 30}', 'medic')
ON CONFLICT (name) DO UPDATE
SET default_settings = excluded.default_settings, staff_resource_type = excluded.staff_resource_type;

CREATE OR REPLACE VIEW dental_patients AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name' AS name,
    data ->> 'email' AS email,
    data ->> 'phone' AS phone,
    simplu_timestamptz(data -> 'birthDate') AS birth_date,
    simplu_boolean(data -> 'active') AS active
FROM resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('patient', 'patients');

CREATE OR REPLACE VIEW dental_appointments AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'patientId' AS patient_id,
    data ->> 'patientName' AS patient_name,
    data ->> 'medicName' AS medic_name,
    coalesce(
        simplu_timestamptz(data -> 'appointmentTime'), simplu_timestamptz(data -> 'appointmentDate')
    ) AS appointment_time,
    simplu_integer(data -> 'durationMinutes') AS duration_minutes,
    data ->> 'service' AS service,
    data ->> 'status' AS status,
    simplu_boolean(data -> 'confirmed') AS confirmed
FROM resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('appointment', 'appointments');

CREATE OR REPLACE VIEW dental_treatments AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'patientId' AS patient_id,
    data ->> 'name' AS name,
    data ->> 'status' AS status,
    simplu_numeric(data -> 'price') AS price,
    simplu_integer(data -> 'durationMinutes') AS duration_minutes
FROM resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('treatment', 'treatments');

-- Who reads a view sees of it what the policies of `resources` let that role see. Before PostgreSQL 15 views cannot do
-- so.
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW dental_patients SET (security_invoker = true);
        ALTER VIEW dental_appointments SET (security_invoker = true);
        ALTER VIEW dental_treatments SET (security_invoker = true);
    END IF;
END
$$;
