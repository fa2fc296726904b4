-- The views of the packaged business types as they were before they were made from files: the server's own text of both
-- is compared (test_business_types.py).

CREATE VIEW pg_temp.dental_patients AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'email'::pg_catalog.text AS email,
    data ->> 'phone'::pg_catalog.text AS phone,
    public.simplu_timestamptz(data -> 'birthDate'::pg_catalog.text) AS birth_date,
    public.simplu_boolean(data -> 'active'::pg_catalog.text) AS active
FROM public.resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('patient', 'patients');

CREATE VIEW pg_temp.dental_appointments AS
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

CREATE VIEW pg_temp.dental_treatments AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'patientId'::pg_catalog.text AS patient_id,
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'status'::pg_catalog.text AS status,
    public.simplu_numeric(data -> 'price'::pg_catalog.text) AS price,
    public.simplu_integer(data -> 'durationMinutes'::pg_catalog.text) AS duration_minutes
FROM public.resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('treatment', 'treatments');

CREATE VIEW pg_temp.gym_members AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'email'::pg_catalog.text AS email,
    data ->> 'phone'::pg_catalog.text AS phone,
    public.simplu_timestamptz(data -> 'joinedAt'::pg_catalog.text) AS joined_at,
    public.simplu_boolean(data -> 'active'::pg_catalog.text) AS active
FROM public.resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('member', 'members');

CREATE VIEW pg_temp.gym_memberships AS
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

CREATE VIEW pg_temp.gym_classes AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'trainerName'::pg_catalog.text AS trainer_name,
    public.simplu_timestamptz(data -> 'startsAt'::pg_catalog.text) AS starts_at,
    public.simplu_integer(data -> 'durationMinutes'::pg_catalog.text) AS duration_minutes,
    public.simplu_integer(data -> 'capacity'::pg_catalog.text) AS capacity
FROM public.resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('class', 'classes');

CREATE VIEW pg_temp.hotel_guests AS
SELECT
    id, "resourceId", data, date, "lastUpdated",
    data ->> 'name'::pg_catalog.text AS name,
    data ->> 'email'::pg_catalog.text AS email,
    data ->> 'phone'::pg_catalog.text AS phone,
    public.simplu_timestamptz(data -> 'birthDate'::pg_catalog.text) AS birth_date,
    public.simplu_boolean(data -> 'active'::pg_catalog.text) AS active
FROM public.resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('guest', 'guests');

CREATE VIEW pg_temp.hotel_rooms AS
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

CREATE VIEW pg_temp.hotel_reservations AS
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
