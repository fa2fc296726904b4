"""Processes of the embedded stack, their ports, and serving HTTP on loopback."""
