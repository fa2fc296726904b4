-- Hotels: guests, rooms, reservations.

INSERT INTO business_types (name, default_settings, staff_resource_type)
VALUES ('hotel', '{"locale": "en", "timezone": "UTC", "checkInTime": "15:00", "checkOutTime": "11:00"}', 'staff');

-- Serves the views by day of creation. `date` never changes, so updates stay heap-only.
CREATE INDEX resources_hotel ON resources (id, "resourceName", date) WHERE "businessType" = 'hotel';

CREATE VIEW hotel_guests AS
SELECT id, "resourceId", data ->> 'name' AS name, data ->> 'email' AS email, data ->> 'phone' AS phone,
    data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('guest', 'guests');

CREATE VIEW hotel_rooms AS
SELECT id, "resourceId", data ->> 'number' AS number, data ->> 'type' AS type, data ->> 'status' AS status,
    data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('room', 'rooms');

CREATE VIEW hotel_reservations AS
SELECT id, "resourceId", data ->> 'guestId' AS guest_id, data ->> 'roomId' AS room_id,
    data ->> 'checkIn' AS check_in, data ->> 'checkOut' AS check_out, data ->> 'status' AS status,
    data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'hotel' AND "resourceName" IN ('reservation', 'reservations');
