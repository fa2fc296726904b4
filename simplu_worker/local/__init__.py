"""The embedded stack: real Postgres servers, local AWS endpoints and a local Citrus, for demo, development and tests."""
