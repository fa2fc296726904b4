"""`simplu-worker fleet`."""
