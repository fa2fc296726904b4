"""A sample of the tenants that business-info lists, for `check`: which are registered at Citrus and on no shard.

Citrus does not list its registrations, and its counts include destroyed tenants. So only a tenant that another list
names can be missed; `tenants audit` looks at all of them.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from simplu_worker.assembly.aws import open_business_info
from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.check.findings import RegistrationSample
from simplu_worker.commands.tenants.inventory import TenantInventory
from simplu_worker.config.settings import Settings

SAMPLE_SIZE: Final = 100  # some tenths of a second with an ordinary Citrus


async def sample_registrations(settings: Settings, shards: Shards) -> RegistrationSample:
    """Compare the first tenants of business-info with Citrus and all shards. Raises `WorkerError`."""
    async with open_business_info(settings) as info:
        inventory = TenantInventory(info, shards, page_size=SAMPLE_SIZE)
        async with aclosing(inventory.read_listed()) as pages:
            page = await anext(pages, None)
        subjects = [] if page is None else await inventory.gather_subjects(page.tenants)
    missing = [subject for subject in subjects if subject.lacks_row and subject.named_shard_id is not None]
    return RegistrationSample(
        len(subjects), tuple(f"business {one.business_id}, location {one.location_id}" for one in missing)
    )
