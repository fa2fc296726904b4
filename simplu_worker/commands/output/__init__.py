"""How commands print tables, lines and JSON."""
