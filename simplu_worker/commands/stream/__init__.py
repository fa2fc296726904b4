"""`simplu-worker operations` and `simplu-worker replay`."""
