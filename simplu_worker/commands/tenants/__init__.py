"""`simplu-worker tenants`."""
