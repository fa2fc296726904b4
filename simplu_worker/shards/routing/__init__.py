"""Routing: the shard of each tenant, and the address of each shard."""
