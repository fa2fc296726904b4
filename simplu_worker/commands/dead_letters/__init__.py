"""`simplu-worker dead-letters`."""
