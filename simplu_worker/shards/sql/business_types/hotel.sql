-- Hotels: guests, rooms, reservations.
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
VALUES ('hotel', '{"locale": "en", "timezone": "UTC", "checkInTime": "15:00", "checkOutTime": "11:00"}', 'staff')
ON CONFLICT (name) DO UPDATE
SET default_settings = excluded.default_settings, staff_resource_type = excluded.staff_resource_type;

CREATE OR REPLACE VIEW hotel_guests AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name' AS name,
    data ->> 'email' AS email,
    data ->> 'phone' AS phone,
    simplu_timestamptz(data -> 'birthDate') AS birth_date,
    simplu_boolean(data -> 'active') AS active
FROM resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('guest', 'guests');

CREATE OR REPLACE VIEW hotel_rooms AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'number' AS number,
    data ->> 'type' AS type,
    data ->> 'status' AS status,
    simplu_integer(data -> 'floor') AS floor,
    simplu_integer(data -> 'capacity') AS capacity,
    simplu_numeric(data -> 'price') AS price
FROM resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('room', 'rooms');

CREATE OR REPLACE VIEW hotel_reservations AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'guestId' AS guest_id,
    data ->> 'roomId' AS room_id,
    simplu_timestamptz(data -> 'checkIn') AS check_in,
    simplu_timestamptz(data -> 'checkOut') AS check_out,
    simplu_integer(data -> 'guests') AS guest_count,
    simplu_numeric(data -> 'total') AS total,
    data ->> 'status' AS status,
    simplu_boolean(data -> 'paid') AS paid
FROM resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('reservation', 'reservations');

-- Who reads a view sees of it what the policies of `resources` let that role see. Before PostgreSQL 15 views cannot do
-- so.
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW hotel_guests SET (security_invoker = true);
        ALTER VIEW hotel_rooms SET (security_invoker = true);
        ALTER VIEW hotel_reservations SET (security_invoker = true);
    END IF;
END
$$;
