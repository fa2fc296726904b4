"""Backups of shards, as the commands of shards and of tenants see them."""
