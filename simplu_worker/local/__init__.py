"""The embedded stack: real Postgres servers, local AWS endpoints, a local Citrus; for demo, development and tests."""
