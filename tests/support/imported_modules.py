"""Which modules of an installed package can be imported, and which extra the others need."""

from __future__ import annotations

# Modules that only an extra lets in; the extra `local` is a package of its own.
NEEDS = {"cache": {"simplu_worker.cache.redis_commands"}, "tracing": {"simplu_worker.telemetry.exported_spans"}}
IMPORT_ALL = """
import importlib, json, pkgutil, simplu_worker

refused = []
for module in pkgutil.walk_packages(simplu_worker.__path__, "simplu_worker."):
    try:
        module.name == "simplu_worker.__main__" or importlib.import_module(module.name)
    except ImportError:
        refused.append(module.name)
print(json.dumps(refused))
"""
