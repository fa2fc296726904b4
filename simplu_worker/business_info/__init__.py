"""The door to the business-info table, and the meaning of its items."""
