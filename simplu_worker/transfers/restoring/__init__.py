"""Restores of single tenants from a backup of their shard (docs/adr/0008-restoring-one-tenant.md)."""
