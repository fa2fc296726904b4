"""The door to the business-info table, and what its items mean."""
