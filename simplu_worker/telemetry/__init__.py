"""Logging and systemd notifications."""
