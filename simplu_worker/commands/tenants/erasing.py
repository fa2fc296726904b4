"""`tenants erase-resource`: erase a resource on every shard with a row of its tenant, and from dead letters.

The shards come first: what workers give up afterwards has the resource no more.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.moves import clear_cache
from simplu_worker.commands.output import StderrNarration, print_json, print_line, print_note, print_silent, print_table
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
    count_on_shard,
    erase_on_shard,
    find_standing,
    has_old_table,
    obstacle_to,
)

ACTION: Final = "erase_resource"
HASH_SHOWN: Final = 16  # hexadecimal digits, in the log


class Found(msgspec.Struct, frozen=True):
    """What the shards have of the tenant, by shard id, and the shards that did not answer.

    *old_tables* are the shards with a table of before their adoption: the tenant's rows may be in that table only.
    """

    standings: dict[str, Standing]
    silent: dict[str, str]
    old_tables: list[str]


class ErasureReport(msgspec.Struct, frozen=True, rename="camel"):
    """What was erased, or would be: nothing of it is content, nor the resource's id.

    *letters* is None without a dead-letter queue, or with an error of it. *other_ids* are ids before or after a rename.
    *warning*: the cache was not cleared.
    """

    applied: bool
    business_id: str
    location_id: str
    resource_type: str
    shards: list[ErasedOnShard]
    shards_without_answer: dict[str, str]
    letters: ErasedLetters | None
    letters_error: str | None
    other_ids: list[str]
    remains: list[str]
    warning: str | None

    @property
    def is_whole(self) -> bool:
        """Whether all that can be reached was erased, or would be."""
        has_letters = self.letters is not None and not self.letters.is_whole
        return not (self.shards_without_answer or has_letters or self.letters_error or self.warning)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the resource was found."""
        letters = self.letters or ErasedLetters()
        has_letters = letters.deleted or letters.rewritten or letters.left
        return not has_letters and not any(one.resources or one.results for one in self.shards)


async def erase_resource(settings: Settings, erasure: Erasure, *, apply: bool, as_json: bool) -> int:
    """Erase a resource, or print what would be. Return 1 if something could not be reached.

    Raises first `RetryableError` while the tenant is on the move, and `PermanentError` if no shard has it.
    """
    require_settings(settings, routes=True)
    parse_tenant_id(erasure.business_id, erasure.location_id)
    for name, value in {"type": erasure.resource_type, "id": erasure.resource_id}.items():
        if not value or not is_storable(value):
            raise PermanentError(f"{name}: expected a text that a shard can store, got another one")
    asked = {
        "businessId": erasure.business_id,
        "locationId": erasure.location_id,
        "resourceType": erasure.resource_type,
        "resourceIdSha256": id_hash(erasure),
    }
    actor = Actor(COMMAND, socket.gethostname())
    with logged_action(ACTION, actor, asked) if apply else nullcontext(Acted()) as acted:
        report = await _erase(settings, erasure, apply=apply)
        acted.answer = _counts(report)
    _print(report, as_json=as_json)
    return 0 if report.is_whole else 1


def id_hash(erasure: Erasure) -> str:
    """Return the beginning of the SHA-256 of the id, which may be personal."""
    return hashlib.sha256(erasure.resource_id.encode()).hexdigest()[:HASH_SHOWN]


async def _erase(settings: Settings, erasure: Erasure, *, apply: bool) -> ErasureReport:
    async with open_shards(settings) as shards:
        found = await _find(shards, erasure)
        erased: list[ErasedOnShard] = []
        failed = dict(found.silent)
        for shard_id, standing in sorted(found.standings.items()):
            pool = shards.pools.pool_of(shard_id)
            try:
                if apply:
                    erased.append(await erase_on_shard(pool, shards.commits, erasure, standing))
                else:
                    erased.append(await count_on_shard(pool, erasure, standing))
            except RetryableError as exc:
                failed[shard_id] = pool.address.without_name(str(exc))
    warning = await clear_cache(settings) if apply else None
    letters, letters_error = None, None
    if settings.dead_letter_queue_url is not None:
        target = LetterTarget(
            erasure.business_id,
            erasure.location_id,
            {erasure.resource_type}.union(*(one.names for one in found.standings.values())),
            erasure.resource_id,
            settings.order_tenant,
        )
        try:
            letters = await erase_letters(settings, target, StderrNarration(), apply=apply)
        except WorkerError as exc:
            letters_error = str(exc)
    exports = {one.export for one in found.standings.values() if one.export is not None}
    return ErasureReport(
        applied=apply,
        business_id=erasure.business_id,
        location_id=erasure.location_id,
        resource_type=erasure.resource_type,
        shards=erased,
        shards_without_answer=failed,
        letters=letters,
        letters_error=letters_error,
        other_ids=sorted({one for standing in found.standings.values() for one in standing.other_ids}),
        remains=list(_remains(sorted(exports), found.old_tables, settings.operation_retention_hours)),
        warning=warning,
    )


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


async def _find(shards: Shards, erasure: Erasure) -> Found:

    async def ask(address: ShardAddress) -> tuple[Standing | None, bool]:
        pool = shards.pools.ensure_pool(address)
        return await find_standing(pool, erasure), await has_old_table(pool)

    known = await shards.locator.list_shards()
    answers, causes = await query_with_causes(known, ask)
    silent = {one.shard_id: causes.get(one.shard_id, "") for one in known if one.shard_id not in answers}
    standings = {shard_id: one for shard_id, (one, _) in answers.items() if one is not None}
    if (obstacle := obstacle_to(erasure, standings)) is not None:
        raise RetryableError(obstacle)
    if not standings:
        error = PermanentError if not silent else RetryableError
        of_silent = f", and no answer from {', '.join(sorted(silent))}" if silent else ""
        raise error(f"{erasure.tenant_id}: expected a tenant of some shard, got none{of_silent}")
    return Found(standings, silent, sorted(shard_id for shard_id, (_, has_table) in answers.items() if has_table))


def _counts(report: ErasureReport) -> Mapping[str, Any]:
    letters = report.letters or ErasedLetters()
    return {
        "resources": sum(one.resources for one in report.shards),
        "results": sum(one.results for one in report.shards),
        "letters": letters.deleted + letters.rewritten,
        "shardsWithoutAnswer": list(report.shards_without_answer),
    }


def _print(report: ErasureReport, *, as_json: bool) -> None:
    if as_json:
        print_json({**msgspec.to_builtins(report), "whole": report.is_whole, "found": not report.is_empty})
        return
    rows = [(one.shard, one.state, one.resources, one.results) for one in report.shards]
    print_table(("shard", "tenant", "resources", "results in the log"), rows)
    if report.letters_error is not None:
        print_note(f"dead letters: {report.letters_error}")
    elif (letters := report.letters) is None:
        print_note("dead letters: expected SQS_DEAD_LETTER_QUEUE_URL, got nothing; none was looked at")
    else:
        _print_letters(letters, applied=report.applied)
    _print_outcome(report)
    for one in report.other_ids:
        print_note(f"it was renamed: results may have it as {one} too; run the command with this id as well")
    for line in report.remains:
        print_note(f"stays: {line}")
    if report.warning is not None:
        print_note(report.warning)
    print_silent(sorted(report.shards_without_answer), report.shards_without_answer)
    if not report.is_whole:
        print_note("this was not all: run the command again once the cause is gone")


def _print_outcome(report: ErasureReport) -> None:
    if report.is_empty:
        print_line("nothing of the resource was found")
    elif not report.applied:
        print_note("nothing was erased; --apply erases it. Stop its producers first: what they have put on the stream")
        print_note("and the queues and no worker has applied yet makes the resource again")
    elif report.is_whole:
        print_line("erased")


def _print_letters(letters: ErasedLetters, *, applied: bool) -> None:
    if applied:
        print_line(f"dead letters: {letters.deleted} deleted, {letters.rewritten} stored again without it")
    else:
        print_line(f"dead letters: {letters.deleted} about it, {letters.rewritten} with it beside others")
    if letters.left:
        print_note(f"{letters.left} dead letters with it could not be deleted, or have no room without it")
    if letters.mentioning:
        print_note(
            f"{len(letters.mentioning)} dead letters of other resources have its id and stay; "
            "with --json their messages are named"
        )
