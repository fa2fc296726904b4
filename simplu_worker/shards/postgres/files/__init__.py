"""The files of a connection: which ones asyncpg opens, and whether it may."""
