"""Moves of tenants between shards, by one command, while workers apply their operations (docs/adr/0007)."""
