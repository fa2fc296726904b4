"""The export of tenants to a database of the user's own shape, following what changes: the way back."""
