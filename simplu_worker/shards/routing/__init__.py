"""Which shard a tenant lives on."""
