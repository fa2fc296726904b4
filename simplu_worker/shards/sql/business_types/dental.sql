-- Dental practices: patients, appointments, treatments.

INSERT INTO business_types (name, default_settings, staff_resource_type)
VALUES ('dental', '{"locale": "en", "timezone": "UTC", "appointmentMinutes": 30}', 'medic');

-- Serves the views by day of creation. `date` never changes, so updates stay heap-only.
CREATE INDEX resources_dental ON resources (id, "resourceName", date) WHERE "businessType" = 'dental';

CREATE VIEW dental_patients AS
SELECT id, "resourceId", data ->> 'name' AS name, data ->> 'email' AS email, data ->> 'phone' AS phone,
    data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('patient', 'patients');

CREATE VIEW dental_appointments AS
SELECT id, "resourceId", data ->> 'patientId' AS patient_id, data ->> 'patientName' AS patient_name,
    data ->> 'appointmentTime' AS appointment_time, data ->> 'service' AS service, data ->> 'status' AS status,
    data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('appointment', 'appointments');

CREATE VIEW dental_treatments AS
SELECT id, "resourceId", data ->> 'patientId' AS patient_id, data ->> 'name' AS name, data ->> 'price' AS price,
    data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'dental' AND "resourceName" IN ('treatment', 'treatments');
