-- Gyms: members, memberships, classes.
--
-- Applied to every shard that does not have it as it is here, again and again: whatever it says can be said twice. The
-- columns of a view stay what they are, and a new one comes last: Postgres replaces a view in no other way, and those
-- who may read it still may.

INSERT INTO public.business_types (name, default_settings, staff_resource_type)
VALUES ('gym', '{"locale": "en", "timezone": "UTC", "classMinutes": 60}', 'trainer')
ON CONFLICT (name) DO UPDATE
SET default_settings = excluded.default_settings, staff_resource_type = excluded.staff_resource_type;

CREATE OR REPLACE VIEW public.gym_members AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'email'::pg_catalog.text AS email,
    data ->> 'phone'::pg_catalog.text AS phone,
    public.simplu_timestamptz(data -> 'joinedAt'::pg_catalog.text) AS joined_at,
    public.simplu_boolean(data -> 'active'::pg_catalog.text) AS active
FROM public.resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('member', 'members');

CREATE OR REPLACE VIEW public.gym_memberships AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'memberId'::pg_catalog.text AS member_id,
    data ->> 'plan'::pg_catalog.text AS plan,
    data ->> 'status'::pg_catalog.text AS status,
    public.simplu_numeric(data -> 'price'::pg_catalog.text) AS price,
    public.simplu_timestamptz(data -> 'startsAt'::pg_catalog.text) AS starts_at,
    public.simplu_timestamptz(data -> 'expiresAt'::pg_catalog.text) AS expires_at,
    public.simplu_boolean(data -> 'autoRenew'::pg_catalog.text) AS auto_renew
FROM public.resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('membership', 'memberships');

CREATE OR REPLACE VIEW public.gym_classes AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'trainerName'::pg_catalog.text AS trainer_name,
    public.simplu_timestamptz(data -> 'startsAt'::pg_catalog.text) AS starts_at,
    public.simplu_integer(data -> 'durationMinutes'::pg_catalog.text) AS duration_minutes,
    public.simplu_integer(data -> 'capacity'::pg_catalog.text) AS capacity
FROM public.resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('class', 'classes');

-- Who reads a view sees of it what the policies of `resources` let that role see. Before PostgreSQL 15 views cannot do
-- so.
DO $$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW public.gym_members SET (security_invoker = true);
        ALTER VIEW public.gym_memberships SET (security_invoker = true);
        ALTER VIEW public.gym_classes SET (security_invoker = true);
    END IF;
END
$$;
