"""The erasure of one resource of a tenant, with what results in the log have of it, on every shard with a row of it."""
