"""Lists of the operations of one tenant, from its shard's log."""
