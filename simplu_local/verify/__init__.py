"""Comparison of every row of every shard with the records that were sent."""
