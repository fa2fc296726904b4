"""Run moves of tenants and show how far they are: for the commands of tenants and of shards."""
