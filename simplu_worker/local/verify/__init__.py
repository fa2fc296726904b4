"""Compares every row of every shard with what was sent."""
