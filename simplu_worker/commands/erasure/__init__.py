"""`tenants erase-resource`: what shards and the dead-letter queue have of one resource."""
