"""The door to Postgres: connections, pools, errors, queries."""
