"""`tenants erase-resource`: erase a resource on every shard with a row of its tenant, and from dead letters.

The shards come first: what workers give up afterwards has the resource no more.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Final

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.moves import clear_cache
from simplu_worker.commands.output import Answer, Line, Part, Table, print_note
from simplu_worker.commands.running import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.dead_letters.erasing import ErasedLetters, LetterTarget, erase_letters
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import is_storable
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_query import query_with_causes
from simplu_worker.status.guard import COMMAND, Acted, Actor, logged_action
from simplu_worker.transfers.erasing import (
    ErasedOnShard,
    Erasure,
    Standing,
    erase_on_shard,
    find_standing,
    has_old_table,
    obstacle_to,
)

ACTION: Final = "erase_resource"
HASH_SHOWN: Final = 16  # hexadecimal digits, in the log


class ErasureReport(msgspec.Struct, frozen=True, rename="camel"):
    """What was erased, or would be: nothing of it is content, nor the resource's id.

    *letters* is None without a dead-letter queue, or with an error of it. *other_ids* are ids before or after a rename.
    *warning*: the cache was not cleared.
    """

    shards: list[ErasedOnShard]
    letters: ErasedLetters | None
    letters_error: str | None
    other_ids: list[str]
    remains: list[str]
    warning: str | None

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of what was erased, or would be."""
        return {
            "resources": sum(one.resources for one in self.shards),
            "results": sum(one.results for one in self.shards),
            "versions": sum(one.versions for one in self.shards),
            "letters": 0 if self.letters is None else self.letters.deleted,
        }


async def erase_resource(settings: Settings, erasure: Erasure, *, apply: bool) -> Answer:
    """Erase a resource, or return what would be erased. It fails if something could not be reached.

    Raises first `RetryableError` while the tenant is on the move, and `PermanentError` if no shard has it.
    """
    require_settings(settings, routes=True)
    parse_tenant_id(erasure.business_id, erasure.location_id)
    if not (is_storable(erasure.resource_type) and is_storable(erasure.resource_id)):
        raise PermanentError("type, id: expected texts that a shard can store, got others")
    names = {
        "businessId": erasure.business_id,
        "locationId": erasure.location_id,
        "resourceType": erasure.resource_type,
    }
    id_hash = hashlib.sha256(erasure.resource_id.encode()).hexdigest()[:HASH_SHOWN]  # the id may be personal
    actor, asked = Actor(COMMAND, socket.gethostname()), names | {"resourceIdSha256": id_hash}
    with logged_action(ACTION, actor, asked) if apply else nullcontext(Acted()) as acted:
        report, silent = await _erase(settings, erasure, apply=apply)
        acted.answer = report.counts | {"shardsWithoutAnswer": list(silent)}
    has_letters = report.letters is not None and not report.letters.is_whole
    is_whole = not (silent or has_letters or report.letters_error or report.warning)
    is_found = any(report.counts.values()) or bool(report.letters and (report.letters.among or report.letters.left))
    members = {"applied": apply, **names, **msgspec.to_builtins(report), "whole": is_whole, "found": is_found}
    parts = [*_describe(report, applied=apply), *_describe_outcome(is_found=is_found, is_whole=is_whole, applied=apply)]
    return Answer(members, parts, silent, is_failed=not is_whole)


async def _erase(settings: Settings, erasure: Erasure, *, apply: bool) -> tuple[ErasureReport, dict[str, str]]:
    async with open_shards(settings) as shards:
        standings, old_tables, failed = await _find(shards, erasure)
        erased: list[ErasedOnShard] = []
        for shard_id, standing in sorted(standings.items()):
            pool = shards.pools.pool_of(shard_id)
            try:
                erased.append(await erase_on_shard(pool, shards.commits, erasure, standing, apply=apply))
            except RetryableError as exc:
                failed[shard_id] = pool.address.without_name(str(exc))
    warning = await clear_cache(settings) if apply else None
    letters, letters_error = None, None
    if settings.dead_letter_queue_url is not None:
        names = {erasure.resource_type}.union(*(one.names for one in standings.values()))
        of_tenant = erasure.business_id, erasure.location_id
        target = LetterTarget(*of_tenant, names, erasure.resource_id, settings.order_tenant)
        try:
            letters = await erase_letters(settings, target, print_note, apply=apply)
        except WorkerError as exc:
            letters_error = str(exc)
    exports = {one.export for one in standings.values() if one.export is not None}
    other_ids = sorted({one for standing in standings.values() for one in standing.other_ids})
    remains = list(_remains(sorted(exports), old_tables, settings.operation_retention_hours))
    return ErasureReport(erased, letters, letters_error, other_ids, remains, warning), failed


def _remains(exports: Iterable[str], old_tables: Iterable[str], log_hours: float) -> Iterator[str]:
    yield "its records in the stream and the queues, for as long as these keep them"
    yield f"its id, without content, in the log of operations, for {log_hours:g} hours"
    for path in exports:
        yield f"rows that a restore has overwritten, in the file {path}: delete it"
    for shard_id in old_tables:
        yield (
            f"rows of before the adoption of shard {shard_id}, in its table resources_before_adoption, and ids in its "
            "schema simplu_adoption_log: drop both (docs/adopting.md)"
        )
    yield "backups of the shards and their logs, for as long as they are kept: erase again what a restore brings back"
    yield "copies that readers of the shards and of the cache have made"


async def _find(shards: Shards, erasure: Erasure) -> tuple[dict[str, Standing], list[str], dict[str, str]]:
    """Return what the shards have of the tenant, those with a table of before their adoption, and the silent ones."""

    async def ask(address: ShardAddress) -> tuple[Standing | None, bool]:
        pool = shards.pools.ensure_pool(address)
        return await find_standing(pool, erasure), await has_old_table(pool)

    known = await shards.locator.list_shards()
    answers, silent = await query_with_causes(known, ask)
    standings = {shard_id: one for shard_id, (one, _) in answers.items() if one is not None}
    if (obstacle := obstacle_to(erasure, standings)) is not None:
        raise RetryableError(obstacle)
    if not standings:
        error = RetryableError if silent else PermanentError
        of_silent = f", and no answer from {', '.join(sorted(silent))}" if silent else ""
        raise error(f"{erasure.tenant_id}: expected a tenant of some shard, got none{of_silent}")
    return standings, sorted(shard_id for shard_id, (_, has_table) in answers.items() if has_table), silent


def _describe(report: ErasureReport, *, applied: bool) -> Iterator[Part]:
    rows = [(one.shard, one.state, one.resources, one.results, one.versions) for one in report.shards]
    yield Table(("shard", "tenant", "resources", "results in the log", "versions"), rows)
    if report.letters_error is not None:
        yield f"dead letters: {report.letters_error}"
    elif (letters := report.letters) is None:
        yield "dead letters: expected SQS_DEAD_LETTER_QUEUE_URL, got nothing; none was looked at"
    else:
        yield Line(f"dead letters: {letters.deleted} {'deleted' if applied else 'about it'}")
        if letters.left:
            yield f"{letters.left} dead letters with it could not be deleted"
        if letters.among:
            yield (
                f"{len(letters.among)} dead letters have it beside records of others: replay or discard them, then run "
                "this again; with --json their messages are named"
            )
        if letters.mentioning:
            yield (
                f"{len(letters.mentioning)} dead letters of other resources have its id and stay; "
                "with --json their messages are named"
            )
    for one in report.other_ids:
        yield f"it was renamed: results may have it as {one} too; run the command with this id as well"
    for line in report.remains:
        yield f"stays: {line}"
    yield report.warning


def _describe_outcome(*, is_found: bool, is_whole: bool, applied: bool) -> Iterator[Part]:
    if not is_found:
        yield Line("nothing of the resource was found")
    elif not applied:
        yield (
            "nothing was erased; --apply erases it. Stop its producers first: what they have put on the stream and the "
            "queues and no worker has applied yet makes the resource again"
        )
    elif is_whole:
        yield Line("erased")
    if not is_whole:
        yield "this was not all: run the command again once the cause is gone"
