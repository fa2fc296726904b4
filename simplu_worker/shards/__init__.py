"""Everything about Postgres shards: where a tenant lives, how its operations are applied, how it is provisioned."""
