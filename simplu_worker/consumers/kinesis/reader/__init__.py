"""The reader of one stream shard, and the catch-ups of its holds."""
