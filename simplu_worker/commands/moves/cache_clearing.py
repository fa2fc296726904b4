"""Clear the cache after rows of tenants were moved or replaced: readers may have filled it from the former ones."""

from __future__ import annotations

from simplu_worker.cache.cache import open_cache
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError


async def clear_cache(settings: Settings) -> str | None:
    """Clear the cache, if there is one; return a warning if that failed."""
    if settings.redis_url is None:
        return None
    try:
        async with open_cache(settings.redis_url.get_secret_value()) as (_, admin):
            await admin.clear()
    except WorkerError as exc:
        return f"the cache was not cleared: {exc}; run: curl -X DELETE on /cache/clear of a worker"
    return None
