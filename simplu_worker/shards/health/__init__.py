"""How shards are doing."""
