"""`simplu-worker demo`."""
