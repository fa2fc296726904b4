-- The eight tables of the references' restaurants (seed-002), for `tenants import`: see docs/importing.md.

-- name: restaurant
SELECT id AS business_id, 'main' AS location_id, id AS resource_id,
    to_jsonb(r) - 'id' AS data, created_at AS date, updated_at AS updated
FROM restaurants AS r;

-- name: product
SELECT restaurant_id AS business_id, 'main' AS location_id, id AS resource_id,
    to_jsonb(p) - '{id,restaurant_id}'::text[] AS data, created_at AS date, updated_at AS updated
FROM products AS p;

-- name: category
SELECT restaurant_id AS business_id, 'main' AS location_id, id AS resource_id,
    to_jsonb(c) - '{id,restaurant_id}'::text[] AS data, created_at AS date, updated_at AS updated
FROM categories AS c;

-- name: order
SELECT restaurant_id AS business_id, 'main' AS location_id, id AS resource_id,
    to_jsonb(o) - '{id,restaurant_id}'::text[] AS data, created_at AS date, updated_at AS updated
FROM orders AS o;

-- name: order_item
SELECT restaurant_id AS business_id, 'main' AS location_id, concat(order_id, ':', line) AS resource_id,
    to_jsonb(i) - '{line,restaurant_id}'::text[] AS data, created_at AS date, updated_at AS updated
FROM order_items AS i;

-- name: theme
SELECT restaurant_id AS business_id, 'main' AS location_id, id AS resource_id,
    to_jsonb(t) - '{id,restaurant_id}'::text[] AS data, created_at AS date, updated_at AS updated
FROM themes AS t;

-- name: user
SELECT restaurant_id AS business_id, 'main' AS location_id, id AS resource_id,
    to_jsonb(u) - '{id,restaurant_id,password_hash}'::text[] AS data, created_at AS date, updated_at AS updated
FROM users AS u;

-- name: analytics_event
SELECT restaurant_id AS business_id, 'main' AS location_id, id AS resource_id,
    to_jsonb(e) - '{id,restaurant_id}'::text[] AS data, created_at AS date, created_at AS updated
FROM analytics_events AS e;
