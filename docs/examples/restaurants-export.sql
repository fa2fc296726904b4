-- What `tenants export` writes to the tables of restaurants.sql, behind its queries in one file: for each resource type a
-- statement for those in `changed` that are there, and one for those that are gone. Users' documents have no password.

-- upsert: restaurant
INSERT INTO restaurants
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::restaurants, data || jsonb_build_object('id', resource_id)
) AS made
ON CONFLICT (id) DO UPDATE SET
    (name, address, opened, created_at, updated_at, deleted_at)
        = ROW(excluded.name, excluded.address, excluded.opened, excluded.created_at, excluded.updated_at,
        excluded.deleted_at);
-- delete: restaurant
DELETE FROM restaurants USING changed WHERE restaurants.id = changed.resource_id::integer;

-- upsert: user
INSERT INTO users
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::users, data || jsonb_build_object('id', resource_id, 'restaurant_id', business_id, 'password_hash', '')
) AS made
ON CONFLICT (id) DO UPDATE SET
    (email, created_at, updated_at, deleted_at)
    = ROW(excluded.email, excluded.created_at, excluded.updated_at, excluded.deleted_at);
-- delete: user
DELETE FROM users USING changed WHERE users.id = changed.resource_id::uuid;

-- upsert: category
INSERT INTO categories
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::categories, data || jsonb_build_object('id', resource_id, 'restaurant_id', business_id)
) AS made
ON CONFLICT (id) DO UPDATE SET
    (name, position, created_at, updated_at, deleted_at)
    = ROW(excluded.name, excluded.position, excluded.created_at, excluded.updated_at, excluded.deleted_at);
-- delete: category
DELETE FROM categories USING changed WHERE categories.id = changed.resource_id::bigint;

-- upsert: product
INSERT INTO products
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::products, data || jsonb_build_object('id', resource_id, 'restaurant_id', business_id)
) AS made
ON CONFLICT (id) DO UPDATE SET
    (category_id, name, price, tags, photo, weight, created_at, updated_at, deleted_at)
        = ROW(excluded.category_id, excluded.name, excluded.price, excluded.tags, excluded.photo, excluded.weight,
        excluded.created_at, excluded.updated_at, excluded.deleted_at);
-- delete: product
DELETE FROM products USING changed WHERE products.id = changed.resource_id::bigint;

-- upsert: order
INSERT INTO orders
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::orders, data || jsonb_build_object('id', resource_id, 'restaurant_id', business_id)
) AS made
ON CONFLICT (id) DO UPDATE SET
    (status, total, note, details, created_at, updated_at, deleted_at)
        = ROW(excluded.status, excluded.total, excluded.note, excluded.details, excluded.created_at,
        excluded.updated_at, excluded.deleted_at);
-- delete: order
DELETE FROM orders USING changed WHERE orders.id = changed.resource_id::bigint;

-- upsert: order_item
INSERT INTO order_items
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::order_items, data || jsonb_build_object('line', split_part(resource_id, ':', 2), 'restaurant_id', business_id)
) AS made
ON CONFLICT (order_id, line) DO UPDATE SET
    (product_id, quantity, price, created_at, updated_at, deleted_at)
    = ROW(excluded.product_id, excluded.quantity, excluded.price, excluded.created_at, excluded.updated_at,
        excluded.deleted_at);
-- delete: order_item
DELETE FROM order_items USING changed WHERE concat(order_id, ':', line) = changed.resource_id;

-- upsert: theme
INSERT INTO themes
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::themes, data || jsonb_build_object('id', resource_id, 'restaurant_id', business_id)
) AS made
ON CONFLICT (id) DO UPDATE SET
    (settings, dark, created_at, updated_at, deleted_at)
    = ROW(excluded.settings, excluded.dark, excluded.created_at, excluded.updated_at, excluded.deleted_at);
-- delete: theme
DELETE FROM themes USING changed WHERE themes.id = changed.resource_id::integer;

-- upsert: analytics_event
INSERT INTO analytics_events
SELECT made.* FROM changed, jsonb_populate_record(
    NULL::analytics_events, data || jsonb_build_object('id', resource_id, 'restaurant_id', business_id)
) AS made
ON CONFLICT (id) DO UPDATE SET
    (type, payload, duration, created_at, deleted_at)
    = ROW(excluded.type, excluded.payload, excluded.duration, excluded.created_at, excluded.deleted_at);
-- delete: analytics_event
DELETE FROM analytics_events USING changed WHERE analytics_events.id = changed.resource_id::bigint;
