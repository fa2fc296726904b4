"""The paths of the HTTP interface: one table, which the router and the description of the interface are made from."""
