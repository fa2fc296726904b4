"""Making, changing and destroying tenants."""
