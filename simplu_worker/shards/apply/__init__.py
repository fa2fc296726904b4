"""Applying a batch in one transaction, with its log and positions."""
