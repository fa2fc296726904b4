"""Which tenants to move to which shards, where they are, and whether a move is possible: before anything is written."""
