"""Traces (docs/tracing.md): off, and without any cost for a record, unless `TRACES` is on."""
