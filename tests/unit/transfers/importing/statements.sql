SELECT source."business"::pg_catalog.text AS tenant_0, source."place"::pg_catalog.text AS tenant_1, pg_catalog.count(*) AS row_count, pg_catalog.count(*) FILTER (WHERE source."gone" IS NULL) AS left_count, pg_catalog.array_agg(DISTINCT source."branch"::pg_catalog.text) AS business_types FROM "pos"."orders" AS source GROUP BY 1, 2 ORDER BY 1, 2

SELECT DISTINCT source."business"::pg_catalog.text AS tenant_0, source."place"::pg_catalog.text AS tenant_1 FROM "pos"."orders" AS source WHERE source."at"::pg_catalog.timestamptz >= $1::pg_catalog.text::pg_catalog.timestamptz
-- 2026-01-02T00:00:00+00:00

SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id FROM "pos"."orders" AS source WHERE (source."business" IS NULL OR source."place" IS NULL) AND source."gone" IS NULL

SELECT taken.resource_type, taken.resource_id, taken.created, taken.changed, pg_catalog.octet_length(taken.document) AS byte_count, CASE WHEN pg_catalog.octet_length(taken.document) <= $8::pg_catalog.text::pg_catalog.int4 THEN taken.document END AS document, ('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 1, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8 AS high, ('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 9, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8 AS low, taken.key_parts FROM (SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id, (pg_catalog.jsonb_build_object($2::pg_catalog.text, source."x"))::pg_catalog.text AS document, coalesce(source."made"::pg_catalog.timestamptz, source."at"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce(source."at"::pg_catalog.timestamptz, source."made"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."order"::pg_catalog.text, source."line"::pg_catalog.text] AS key_parts FROM "pos"."orders" AS source WHERE source."business" = $3::pg_catalog.text::text AND source."business"::pg_catalog.text = $3::pg_catalog.text AND source."place" = $4::pg_catalog.text::text AND source."place"::pg_catalog.text = $4::pg_catalog.text AND source."order" = $5::pg_catalog.text::text AND source."order"::pg_catalog.text = $5::pg_catalog.text AND source."line" = $6::pg_catalog.text::text AND source."line"::pg_catalog.text = $6::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $7::pg_catalog.text::pg_catalog.timestamptz) AND source."gone" IS NULL OFFSET 0) AS taken CROSS JOIN LATERAL (SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(pg_catalog.chr(31), taken.resource_type, taken.resource_id, taken.document, taken.created, taken.changed), 'UTF8')) AS bytes OFFSET 0) AS digest
-- 2026-01-02T00:00:00+00:00
-- X
-- it's
-- $1
-- k'
-- k'
-- 2026-01-02T00:00:00+00:00
-- 100

SELECT pg_catalog.count(*) AS row_count, coalesce(pg_catalog.sum(('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 1, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8), 0)::pg_catalog.text AS high, coalesce(pg_catalog.sum(('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 9, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8), 0)::pg_catalog.text AS low, coalesce(pg_catalog.sum(pg_catalog.octet_length(taken.document)), 0)::pg_catalog.text AS byte_count FROM ((SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id, (pg_catalog.jsonb_build_object($2::pg_catalog.text, source."x"))::pg_catalog.text AS document, coalesce(source."made"::pg_catalog.timestamptz, source."at"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce(source."at"::pg_catalog.timestamptz, source."made"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."order"::pg_catalog.text, source."line"::pg_catalog.text] AS key_parts FROM "pos"."orders" AS source WHERE source."business" = $3::pg_catalog.text::text AND source."business"::pg_catalog.text = $3::pg_catalog.text AND source."place" = $4::pg_catalog.text::text AND source."place"::pg_catalog.text = $4::pg_catalog.text AND source."order" = $5::pg_catalog.text::text AND source."order"::pg_catalog.text = $5::pg_catalog.text AND source."line" = $6::pg_catalog.text::text AND source."line"::pg_catalog.text = $6::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $7::pg_catalog.text::pg_catalog.timestamptz) AND source."gone" IS NULL OFFSET 0) UNION ALL (SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id, (pg_catalog.jsonb_build_object($9::pg_catalog.text, source."x"))::pg_catalog.text AS document, coalesce(source."made"::pg_catalog.timestamptz, source."at"::pg_catalog.timestamptz, $8::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce(source."at"::pg_catalog.timestamptz, source."made"::pg_catalog.timestamptz, $8::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."order"::pg_catalog.text, source."line"::pg_catalog.text] AS key_parts FROM "pos"."orders" AS source WHERE source."business" = $10::pg_catalog.text::text AND source."business"::pg_catalog.text = $10::pg_catalog.text AND source."place" = $11::pg_catalog.text::text AND source."place"::pg_catalog.text = $11::pg_catalog.text AND source."gone" IS NULL OFFSET 0)) AS taken CROSS JOIN LATERAL (SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(pg_catalog.chr(31), taken.resource_type, taken.resource_id, taken.document, taken.created, taken.changed), 'UTF8')) AS bytes OFFSET 0) AS digest
-- 2026-01-02T00:00:00+00:00
-- X
-- it's
-- $1
-- k'
-- k'
-- 2026-01-02T00:00:00+00:00
-- 2026-01-02T00:00:00+00:00
-- X
-- b
-- l

SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id, ARRAY[source."order"::pg_catalog.text, source."line"::pg_catalog.text] AS key_parts FROM "pos"."orders" AS source WHERE source."business" = $1::pg_catalog.text::text AND source."business"::pg_catalog.text = $1::pg_catalog.text AND source."place" = $2::pg_catalog.text::text AND source."place"::pg_catalog.text = $2::pg_catalog.text AND source."order" = $3::pg_catalog.text::text AND source."order"::pg_catalog.text = $3::pg_catalog.text AND source."line" = $4::pg_catalog.text::text AND source."line"::pg_catalog.text = $4::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $5::pg_catalog.text::pg_catalog.timestamptz) AND source."gone" IS NULL
-- it's
-- $1
-- k'
-- k'
-- 2026-01-02T00:00:00+00:00

SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id FROM "pos"."orders" AS source WHERE source."business" = $1::pg_catalog.text::text AND source."business"::pg_catalog.text = $1::pg_catalog.text AND source."place" = $2::pg_catalog.text::text AND source."place"::pg_catalog.text = $2::pg_catalog.text AND source."order" = $3::pg_catalog.text::text AND source."order"::pg_catalog.text = $3::pg_catalog.text AND source."line" = $4::pg_catalog.text::text AND source."line"::pg_catalog.text = $4::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $5::pg_catalog.text::pg_catalog.timestamptz) AND NOT (source."gone" IS NULL)
-- it's
-- $1
-- k'
-- k'
-- 2026-01-02T00:00:00+00:00

SELECT resource_type, resource_id FROM (SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id FROM "pos"."orders" AS source WHERE source."business" = $1::pg_catalog.text::text AND source."business"::pg_catalog.text = $1::pg_catalog.text AND source."place" = $2::pg_catalog.text::text AND source."place"::pg_catalog.text = $2::pg_catalog.text AND source."order" = $3::pg_catalog.text::text AND source."order"::pg_catalog.text = $3::pg_catalog.text AND source."line" = $4::pg_catalog.text::text AND source."line"::pg_catalog.text = $4::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $5::pg_catalog.text::pg_catalog.timestamptz) AND source."gone" IS NULL UNION ALL SELECT source."kind"::pg_catalog.text AS resource_type, source."order"::pg_catalog.text || ':' || source."line"::pg_catalog.text AS resource_id FROM "pos"."orders" AS source WHERE source."business" = $6::pg_catalog.text::text AND source."business"::pg_catalog.text = $6::pg_catalog.text AND source."place" = $7::pg_catalog.text::text AND source."place"::pg_catalog.text = $7::pg_catalog.text AND source."gone" IS NULL) AS taken WHERE resource_id IS NOT NULL GROUP BY 1, 2 HAVING pg_catalog.count(*) > 1 LIMIT 100001
-- it's
-- $1
-- k'
-- k'
-- 2026-01-02T00:00:00+00:00
-- b
-- l

SELECT source."b"::pg_catalog.text AS tenant_0, pg_catalog.count(*) AS row_count, pg_catalog.count(*) AS left_count, NULL::pg_catalog.text[] AS business_types FROM "public"."t" AS source GROUP BY 1 ORDER BY 1

SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE (source."b" IS NULL) AND true
-- r

SELECT taken.resource_type, taken.resource_id, taken.created, taken.changed, pg_catalog.octet_length(taken.document) AS byte_count, CASE WHEN pg_catalog.octet_length(taken.document) <= $5::pg_catalog.text::pg_catalog.int4 THEN taken.document END AS document, ('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 1, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8 AS high, ('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 9, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8 AS low, taken.key_parts FROM (SELECT $2::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, (source."doc"::pg_catalog.text::pg_catalog.jsonb)::pg_catalog.text AS document, coalesce($1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce($1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $3::pg_catalog.text::text AND source."b"::pg_catalog.text = $3::pg_catalog.text AND source."id" = $4::pg_catalog.text::integer AND source."id"::pg_catalog.text = $4::pg_catalog.text AND true OFFSET 0) AS taken CROSS JOIN LATERAL (SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(pg_catalog.chr(31), taken.resource_type, taken.resource_id, taken.document, taken.created, taken.changed), 'UTF8')) AS bytes OFFSET 0) AS digest
-- 2026-01-02T00:00:00+00:00
-- r
-- it's
-- k'
-- 100

SELECT pg_catalog.count(*) AS row_count, coalesce(pg_catalog.sum(('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 1, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8), 0)::pg_catalog.text AS high, coalesce(pg_catalog.sum(('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 9, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8), 0)::pg_catalog.text AS low, coalesce(pg_catalog.sum(pg_catalog.octet_length(taken.document)), 0)::pg_catalog.text AS byte_count FROM ((SELECT $2::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, (source."doc"::pg_catalog.text::pg_catalog.jsonb)::pg_catalog.text AS document, coalesce($1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce($1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $3::pg_catalog.text::text AND source."b"::pg_catalog.text = $3::pg_catalog.text AND source."id" = $4::pg_catalog.text::integer AND source."id"::pg_catalog.text = $4::pg_catalog.text AND true OFFSET 0) UNION ALL (SELECT $6::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, (source."doc"::pg_catalog.text::pg_catalog.jsonb)::pg_catalog.text AS document, coalesce($5::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce($5::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $7::pg_catalog.text::text AND source."b"::pg_catalog.text = $7::pg_catalog.text AND true OFFSET 0)) AS taken CROSS JOIN LATERAL (SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(pg_catalog.chr(31), taken.resource_type, taken.resource_id, taken.document, taken.created, taken.changed), 'UTF8')) AS bytes OFFSET 0) AS digest
-- 2026-01-02T00:00:00+00:00
-- r
-- it's
-- k'
-- 2026-01-02T00:00:00+00:00
-- r
-- b

SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $2::pg_catalog.text::text AND source."b"::pg_catalog.text = $2::pg_catalog.text AND source."id" = $3::pg_catalog.text::integer AND source."id"::pg_catalog.text = $3::pg_catalog.text AND true
-- r
-- it's
-- k'

SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE source."b" = $2::pg_catalog.text::text AND source."b"::pg_catalog.text = $2::pg_catalog.text AND source."id" = $3::pg_catalog.text::integer AND source."id"::pg_catalog.text = $3::pg_catalog.text AND NOT (true)
-- r
-- it's
-- k'

SELECT resource_type, resource_id FROM (SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE source."b" = $2::pg_catalog.text::text AND source."b"::pg_catalog.text = $2::pg_catalog.text AND source."id" = $3::pg_catalog.text::integer AND source."id"::pg_catalog.text = $3::pg_catalog.text AND true UNION ALL SELECT $4::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE source."b" = $5::pg_catalog.text::text AND source."b"::pg_catalog.text = $5::pg_catalog.text AND true) AS taken WHERE resource_id IS NOT NULL GROUP BY 1, 2 HAVING pg_catalog.count(*) > 1 LIMIT 100001
-- r
-- it's
-- k'
-- r
-- b

SELECT source."b"::pg_catalog.text AS tenant_0, pg_catalog.count(*) AS row_count, pg_catalog.count(*) AS left_count, NULL::pg_catalog.text[] AS business_types FROM "public"."t" AS source GROUP BY 1 ORDER BY 1

SELECT DISTINCT source."b"::pg_catalog.text AS tenant_0 FROM "public"."t" AS source WHERE source."at"::pg_catalog.timestamptz >= $1::pg_catalog.text::pg_catalog.timestamptz
-- 2026-01-02T00:00:00+00:00

SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE (source."b" IS NULL) AND true
-- r

SELECT taken.resource_type, taken.resource_id, taken.created, taken.changed, pg_catalog.octet_length(taken.document) AS byte_count, CASE WHEN pg_catalog.octet_length(taken.document) <= $6::pg_catalog.text::pg_catalog.int4 THEN taken.document END AS document, ('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 1, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8 AS high, ('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 9, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8 AS low, taken.key_parts FROM (SELECT $2::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, (source."doc")::pg_catalog.text AS document, coalesce(source."at"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce(source."at"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $3::pg_catalog.text::text AND source."b"::pg_catalog.text = $3::pg_catalog.text AND source."id" = $4::pg_catalog.text::integer AND source."id"::pg_catalog.text = $4::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $5::pg_catalog.text::pg_catalog.timestamptz) AND true OFFSET 0) AS taken CROSS JOIN LATERAL (SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(pg_catalog.chr(31), taken.resource_type, taken.resource_id, taken.document, taken.created, taken.changed), 'UTF8')) AS bytes OFFSET 0) AS digest
-- 2026-01-02T00:00:00+00:00
-- r
-- it's
-- k'
-- 2026-01-02T00:00:00+00:00
-- 100

SELECT pg_catalog.count(*) AS row_count, coalesce(pg_catalog.sum(('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 1, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8), 0)::pg_catalog.text AS high, coalesce(pg_catalog.sum(('x' || pg_catalog.encode(pg_catalog.substr(digest.bytes, 9, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8), 0)::pg_catalog.text AS low, coalesce(pg_catalog.sum(pg_catalog.octet_length(taken.document)), 0)::pg_catalog.text AS byte_count FROM ((SELECT $2::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, (source."doc")::pg_catalog.text AS document, coalesce(source."at"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce(source."at"::pg_catalog.timestamptz, $1::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $3::pg_catalog.text::text AND source."b"::pg_catalog.text = $3::pg_catalog.text AND source."id" = $4::pg_catalog.text::integer AND source."id"::pg_catalog.text = $4::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $5::pg_catalog.text::pg_catalog.timestamptz) AND true OFFSET 0) UNION ALL (SELECT $7::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, (source."doc")::pg_catalog.text AS document, coalesce(source."at"::pg_catalog.timestamptz, $6::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS created, coalesce(source."at"::pg_catalog.timestamptz, $6::pg_catalog.text::pg_catalog.timestamptz)::pg_catalog.text AS changed, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $8::pg_catalog.text::text AND source."b"::pg_catalog.text = $8::pg_catalog.text AND true OFFSET 0)) AS taken CROSS JOIN LATERAL (SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat_ws(pg_catalog.chr(31), taken.resource_type, taken.resource_id, taken.document, taken.created, taken.changed), 'UTF8')) AS bytes OFFSET 0) AS digest
-- 2026-01-02T00:00:00+00:00
-- r
-- it's
-- k'
-- 2026-01-02T00:00:00+00:00
-- 2026-01-02T00:00:00+00:00
-- r
-- b

SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id, ARRAY[source."id"::pg_catalog.text] AS key_parts FROM "public"."t" AS source WHERE source."b" = $2::pg_catalog.text::text AND source."b"::pg_catalog.text = $2::pg_catalog.text AND source."id" = $3::pg_catalog.text::integer AND source."id"::pg_catalog.text = $3::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $4::pg_catalog.text::pg_catalog.timestamptz) AND true
-- r
-- it's
-- k'
-- 2026-01-02T00:00:00+00:00

SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE source."b" = $2::pg_catalog.text::text AND source."b"::pg_catalog.text = $2::pg_catalog.text AND source."id" = $3::pg_catalog.text::integer AND source."id"::pg_catalog.text = $3::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $4::pg_catalog.text::pg_catalog.timestamptz) AND NOT (true)
-- r
-- it's
-- k'
-- 2026-01-02T00:00:00+00:00

SELECT resource_type, resource_id FROM (SELECT $1::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE source."b" = $2::pg_catalog.text::text AND source."b"::pg_catalog.text = $2::pg_catalog.text AND source."id" = $3::pg_catalog.text::integer AND source."id"::pg_catalog.text = $3::pg_catalog.text AND (source."at" IS NULL OR source."at"::pg_catalog.timestamptz >= $4::pg_catalog.text::pg_catalog.timestamptz) AND true UNION ALL SELECT $5::pg_catalog.text AS resource_type, source."id"::pg_catalog.text AS resource_id FROM "public"."t" AS source WHERE source."b" = $6::pg_catalog.text::text AND source."b"::pg_catalog.text = $6::pg_catalog.text AND true) AS taken WHERE resource_id IS NOT NULL GROUP BY 1, 2 HAVING pg_catalog.count(*) > 1 LIMIT 100001
-- r
-- it's
-- k'
-- 2026-01-02T00:00:00+00:00
-- r
-- b
