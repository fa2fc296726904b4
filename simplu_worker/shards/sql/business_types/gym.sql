-- Gyms: members, memberships, classes.

INSERT INTO business_types (name, default_settings, staff_resource_type)
VALUES ('gym', '{"locale": "en", "timezone": "UTC", "classMinutes": 60}', 'trainer');

-- Serves the views by day of creation. `date` never changes, so updates stay heap-only.
CREATE INDEX resources_gym ON resources (id, "resourceName", date) WHERE "businessType" = 'gym';

CREATE VIEW gym_members AS
SELECT id, "resourceId", data ->> 'name' AS name, data ->> 'email' AS email, data ->> 'phone' AS phone,
    data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('member', 'members');

CREATE VIEW gym_memberships AS
SELECT id, "resourceId", data ->> 'memberId' AS member_id, data ->> 'plan' AS plan, data ->> 'status' AS status,
    data ->> 'expiresAt' AS expires_at, data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('membership', 'memberships');

CREATE VIEW gym_classes AS
SELECT id, "resourceId", data ->> 'name' AS name, data ->> 'trainerName' AS trainer_name,
    data ->> 'startsAt' AS starts_at, data, date, "lastUpdated"
FROM resources
WHERE "businessType" = 'gym' AND "resourceName" IN ('class', 'classes');
