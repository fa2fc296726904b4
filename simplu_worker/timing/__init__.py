"""Clocks, back-off and waits."""
