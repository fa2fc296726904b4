"""`tenants audit`: business-info × Citrus × the tenants of all shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from simplu_worker.assembly.aws import open_business_info
from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_line, print_silent
from simplu_worker.commands.output.streamed_list import StreamedList
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.tenants.audit_rules import AuditSubject, Difference, find_differences
from simplu_worker.commands.tenants.inventory import BUSINESS_INFO_ATTEMPTS, PAGE_SIZE, TenantInventory
from simplu_worker.config.settings import Settings
from simplu_worker.shards.tenants.known_types import find_known_types

COLUMNS: Final = ("business", "location", "difference", "detail")


async def audit_tenants(settings: Settings, *, as_json: bool, page_size: int = PAGE_SIZE) -> int:
    """Print every difference. Return 1 if there is one, or if a shard did not answer."""
    require_settings(settings, routes=True)
    counts: Counter[str] = Counter()
    shown: StreamedList[Difference] = StreamedList("differences", COLUMNS, _row, as_json=as_json)
    async with open_business_info(settings, attempts=BUSINESS_INFO_ATTEMPTS) as info, open_shards(settings) as shards:
        inventory = TenantInventory(info, shards, page_size=page_size)
        known = await find_known_types(shards.locator, shards.pools)

        def note(found: Sequence[Difference]) -> None:
            counts.update(difference.kind.value for difference in found)
            shown.add(found)

        listed_count = 0
        async for page in inventory.read_listed():
            listed_count += len(page.tenants)
            note(page.unreadable)
            note(_differences(await inventory.gather_subjects(page.tenants), known))
        async for unlisted in inventory.read_unlisted():
            note(_differences(unlisted, known))
    silent = sorted(inventory.silent)
    shown.finish({"counts": dict(sorted(counts.items())), "tenantsListed": listed_count, "shardsWithoutAnswer": silent})
    if not as_json:
        _print_summary(counts, listed_count, silent)
    return 1 if counts or silent else 0


def _differences(subjects: Sequence[AuditSubject], known: Collection[str]) -> list[Difference]:
    return [difference for subject in subjects for difference in find_differences(subject, known_types=known)]


def _row(difference: Difference) -> tuple[object, ...]:
    return difference.business_id, difference.location_id, difference.kind, difference.detail


def _print_summary(counts: Counter[str], listed_count: int, silent: Sequence[str]) -> None:
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no difference"
    print_line(f"{listed_count} tenants in business-info: {found}")
    print_silent(silent)
