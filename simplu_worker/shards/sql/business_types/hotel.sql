-- Hotels: guests, rooms, reservations.
--
-- Applied to every shard that does not have it as it is here, again and again: whatever it says can be said twice. The
-- columns of a view stay what they are, and a new one comes last: Postgres replaces a view in no other way, and those
-- who may read it still may.

INSERT INTO public.business_types (name, default_settings, staff_resource_type)
VALUES ('hotel', '{"locale": "en", "timezone": "UTC", "checkInTime": "15:00", "checkOutTime": "11:00"}', 'staff')
ON CONFLICT (name) DO UPDATE
SET default_settings = excluded.default_settings, staff_resource_type = excluded.staff_resource_type;

CREATE OR REPLACE VIEW public.hotel_guests AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'email'::pg_catalog.text AS email,
    data ->> 'phone'::pg_catalog.text AS phone,
    public.simplu_timestamptz(data -> 'birthDate'::pg_catalog.text) AS birth_date,
    public.simplu_boolean(data -> 'active'::pg_catalog.text) AS active
FROM public.resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('guest', 'guests');

CREATE OR REPLACE VIEW public.hotel_rooms AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'number'::pg_catalog.text AS number,
    data ->> 'type'::pg_catalog.text AS type,
    data ->> 'status'::pg_catalog.text AS status,
    public.simplu_integer(data -> 'floor'::pg_catalog.text) AS floor,
    public.simplu_integer(data -> 'capacity'::pg_catalog.text) AS capacity,
    public.simplu_numeric(data -> 'price'::pg_catalog.text) AS price
FROM public.resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('room', 'rooms');

CREATE OR REPLACE VIEW public.hotel_reservations AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'guestId'::pg_catalog.text AS guest_id,
    data ->> 'roomId'::pg_catalog.text AS room_id,
    public.simplu_timestamptz(data -> 'checkIn'::pg_catalog.text) AS check_in,
    public.simplu_timestamptz(data -> 'checkOut'::pg_catalog.text) AS check_out,
    public.simplu_integer(data -> 'guests'::pg_catalog.text) AS guest_count,
    public.simplu_numeric(data -> 'total'::pg_catalog.text) AS total,
    data ->> 'status'::pg_catalog.text AS status,
    public.simplu_boolean(data -> 'paid'::pg_catalog.text) AS paid
FROM public.resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('reservation', 'reservations');

-- Who reads a view sees of it what the policies of `resources` let that role see. Before PostgreSQL 15 views cannot do
-- so.
DO $$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::integer >= 150000 THEN
        ALTER VIEW public.hotel_guests SET (security_invoker = true);
        ALTER VIEW public.hotel_rooms SET (security_invoker = true);
        ALTER VIEW public.hotel_reservations SET (security_invoker = true);
    END IF;
END
$$;
