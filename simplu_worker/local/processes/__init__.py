"""Processes of the embedded stack and how they serve HTTP."""
