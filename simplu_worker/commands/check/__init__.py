"""`simplu-worker check`."""
