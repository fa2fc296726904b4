"""Metric definitions and the HTTP server that shows them; imports nothing of ours."""
