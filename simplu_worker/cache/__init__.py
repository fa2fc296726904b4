"""Invalidates the cache in Redis after changes on a shard."""
