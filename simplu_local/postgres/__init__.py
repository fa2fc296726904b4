"""Embedded Postgres servers."""
