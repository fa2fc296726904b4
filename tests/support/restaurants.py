"""The reference's single database of restaurants, as a source of an import: its tables, its queries, and rows.

seed-002 names the tables, and that each has `restaurant_id` and `deleted_at`; the other columns are the usual ones of
such a system, of all kinds of types. The queries are those of docs/examples/restaurants.sql.
"""

from __future__ import annotations

from typing import Final

from support.postgres.databases import execute
from support.requires import ROOT

from simplu_local.postgres.server import PostgresServer

QUERIES: Final = ROOT / "docs" / "examples" / "restaurants.sql"
TABLES: Final = """
CREATE TYPE order_status AS ENUM ('open', 'paid', 'cancelled');
CREATE TABLE restaurants (
    id integer PRIMARY KEY, name text NOT NULL, address jsonb, opened date, created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL, deleted_at timestamptz
);
CREATE TABLE users (
    id uuid PRIMARY KEY, restaurant_id integer NOT NULL REFERENCES restaurants, email text NOT NULL,
    password_hash text NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    deleted_at timestamptz
);
CREATE TABLE categories (
    id bigint PRIMARY KEY, restaurant_id integer NOT NULL REFERENCES restaurants, name varchar(80) NOT NULL,
    position smallint, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, deleted_at timestamptz
);
CREATE TABLE products (
    id bigint PRIMARY KEY, restaurant_id integer NOT NULL REFERENCES restaurants, category_id bigint,
    name text NOT NULL, price numeric(10, 2) NOT NULL, tags text[], photo bytea, weight double precision,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, deleted_at timestamptz
);
CREATE TABLE orders (
    id bigint PRIMARY KEY, restaurant_id integer NOT NULL REFERENCES restaurants, status order_status NOT NULL,
    total numeric(12, 2) NOT NULL, note text, details json, created_at timestamp NOT NULL,
    updated_at timestamptz NOT NULL, deleted_at timestamptz
);
CREATE TABLE order_items (
    order_id bigint NOT NULL, line integer NOT NULL, restaurant_id integer NOT NULL REFERENCES restaurants,
    product_id bigint NOT NULL, quantity integer NOT NULL, price numeric(10, 2) NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, deleted_at timestamptz,
    PRIMARY KEY (order_id, line)
);
CREATE TABLE themes (
    id integer PRIMARY KEY, restaurant_id integer NOT NULL REFERENCES restaurants, settings jsonb NOT NULL,
    dark boolean, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, deleted_at timestamptz
);
CREATE TABLE analytics_events (
    id bigint PRIMARY KEY, restaurant_id integer NOT NULL REFERENCES restaurants, type text NOT NULL, payload jsonb,
    duration interval, created_at timestamptz NOT NULL, deleted_at timestamptz
);
CREATE INDEX ON users (restaurant_id);
CREATE INDEX ON categories (restaurant_id);
CREATE INDEX ON products (restaurant_id);
CREATE INDEX ON orders (restaurant_id);
CREATE INDEX ON order_items (restaurant_id);
CREATE INDEX ON themes (restaurant_id);
CREATE INDEX ON analytics_events (restaurant_id);
"""
# Rows of $1 restaurants, about $2 of each in all: most are orders with their items, as in such a database.
ROWS: Final = """
DO $fill$
DECLARE
    restaurants integer := {restaurants};
    orders_each integer := {orders};
BEGIN
    INSERT INTO restaurants
    SELECT r, 'Restaurant ' || r, jsonb_build_object('city', 'Köln', 'zip', 50000 + r), date '2020-01-01' + r,
        timestamptz '2020-01-01 10:00+00' + make_interval(days => r), timestamptz '2026-01-01 10:00:00.123456+00'
    FROM generate_series(1, restaurants) AS r;
    INSERT INTO users
    SELECT md5(r || '-' || u)::uuid, r, 'user' || u || '@restaurant' || r || '.example', md5('secret' || u),
        timestamptz '2021-05-01 08:00+02', timestamptz '2025-05-01 08:00+02'
    FROM generate_series(1, restaurants) AS r, generate_series(1, 5) AS u;
    INSERT INTO categories
    SELECT r * 1000 + c, r, 'Category "' || c || '"', c, '2021-06-01', '2025-06-01'
    FROM generate_series(1, restaurants) AS r, generate_series(1, 4) AS c;
    INSERT INTO products
    SELECT r * 100000::bigint + p, r, r * 1000 + p % 4 + 1, 'Dish ' || p || E' \\u00e9\\t', p * 1.10,
        ARRAY['hot', NULL, p::text], decode(md5(p::text), 'hex'), p / 7.0, '2021-07-01', '2025-07-01'
    FROM generate_series(1, restaurants) AS r, generate_series(1, 20) AS p;
    INSERT INTO orders
    SELECT r * 10000000::bigint + o, r, (ARRAY['open', 'paid', 'cancelled'])[o % 3 + 1]::order_status, o * 3.50,
        CASE WHEN o % 5 = 0 THEN 'no onions' END, json_build_object('table', o % 12, 'guests', ARRAY[1, 2]),
        timestamp '2022-01-01 12:00:00.5' + make_interval(mins => o), '2025-08-01'
    FROM generate_series(1, restaurants) AS r, generate_series(1, orders_each) AS o;
    INSERT INTO order_items
    SELECT r * 10000000::bigint + o, l, r, r * 100000::bigint + l, l, 9.99, '2025-08-01', '2025-08-01'
    FROM generate_series(1, restaurants) AS r, generate_series(1, orders_each) AS o, generate_series(1, 3) AS l;
    INSERT INTO themes SELECT r, r, '{{"colour": "red", "sizes": {{"a": 1e2}}}}', r % 2 = 0, '2025-09-01', '2025-09-01'
    FROM generate_series(1, restaurants) AS r;
    INSERT INTO analytics_events
    SELECT r * 1000000::bigint + e, r, 'visit', '{{"page": "/menu"}}', make_interval(secs => e), '2025-10-01'
    FROM generate_series(1, restaurants) AS r, generate_series(1, orders_each / 2) AS e;
    UPDATE products SET deleted_at = updated_at WHERE id % 7 = 0;
    UPDATE orders SET deleted_at = updated_at WHERE id % 10 = 3;
    UPDATE order_items SET deleted_at = updated_at WHERE order_id % 10 = 3;
END
$fill$;
ANALYZE;
"""


def mapping_text() -> str:
    """Return the queries with the statements by which an export writes the same tables."""
    return queries_text() + writing_text()


def writing_text() -> str:
    return QUERIES.with_name("restaurants-export.sql").read_text(encoding="utf-8")


def queries_text() -> str:
    return QUERIES.read_text(encoding="utf-8")


async def make_restaurants(server: PostgresServer, name: str, *, restaurants: int, orders: int) -> str:
    """Make the source on *server*, with *orders* orders each; return its URL. 30 rows more each, and 4.5 an order."""
    url = await server.create_database(name)
    await fill_restaurants(url, restaurants=restaurants, orders=orders)
    return url


async def fill_restaurants(url: str, *, restaurants: int, orders: int) -> None:
    await execute(url, TABLES)
    await execute(url, ROWS.format(restaurants=restaurants, orders=orders))


def row_count(restaurants: int, orders: int) -> int:
    return restaurants * (1 + 5 + 4 + 20 + orders * 4 + 1 + orders // 2)
