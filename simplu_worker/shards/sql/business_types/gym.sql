-- Gyms: members, memberships, classes.
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
VALUES ('gym', '{"locale": "en", "timezone": "UTC", "classMinutes": 60}', 'trainer')
ON CONFLICT (name) DO UPDATE
SET default_settings = excluded.default_settings, staff_resource_type = excluded.staff_resource_type;

CREATE OR REPLACE VIEW gym_members AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name' AS name,
    data ->> 'email' AS email,
    data ->> 'phone' AS phone,
    simplu_timestamptz(data -> 'joinedAt') AS joined_at,
    simplu_boolean(data -> 'active') AS active
FROM resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('member', 'members');

CREATE OR REPLACE VIEW gym_memberships AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'memberId' AS member_id,
    data ->> 'plan' AS plan,
    data ->> 'status' AS status,
    simplu_numeric(data -> 'price') AS price,
    simplu_timestamptz(data -> 'startsAt') AS starts_at,
    simplu_timestamptz(data -> 'expiresAt') AS expires_at,
    simplu_boolean(data -> 'autoRenew') AS auto_renew
FROM resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('membership', 'memberships');

CREATE OR REPLACE VIEW gym_classes AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name' AS name,
    data ->> 'trainerName' AS trainer_name,
    simplu_timestamptz(data -> 'startsAt') AS starts_at,
    simplu_integer(data -> 'durationMinutes') AS duration_minutes,
    simplu_integer(data -> 'capacity') AS capacity
FROM resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('class', 'classes');

-- Who reads a view sees of it what the policies of `resources` let that role see. Before PostgreSQL 15 views cannot do
-- so.
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW gym_members SET (security_invoker = true);
        ALTER VIEW gym_memberships SET (security_invoker = true);
        ALTER VIEW gym_classes SET (security_invoker = true);
    END IF;
END
$$;
