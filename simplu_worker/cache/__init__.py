"""Drops from Redis what was changed on a shard."""
