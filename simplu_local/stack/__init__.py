"""`simplu-worker stack`: Postgres, AWS and Citrus together."""
