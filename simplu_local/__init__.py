"""The embedded stack: what `simplu-worker demo` and `stack` run, and a real AWS and real Postgres servers for tests.

It imports nothing of the worker, which it starts as a program.
"""

__version__ = "1.0.0"
