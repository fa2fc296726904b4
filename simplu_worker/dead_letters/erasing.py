"""Erase a resource from dead letters: delete those about it, and take it out of those with records of others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from contextlib import aclosing
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage, unwrap
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker, SubRecord, deaggregate
from simplu_worker.consumers.sqs.order_messages import RESOURCE_TYPE as ORDER
from simplu_worker.dead_letters.letter import ParsedDeadLetter, encode_dead_letter, fifo_ids_of, parse_dead_letter
from simplu_worker.dead_letters.plan import DeadLetterFilter
from simplu_worker.dead_letters.queue import MAX_MESSAGE_DEFAULT_BYTES, DeadLetterBrowser, Narration
from simplu_worker.dead_letters.service import open_browser
from simplu_worker.operations.dead_letter import BadParts, DeadLetter, tenant_of
from simplu_worker.vocabulary import Source

ENVELOPE: Final = b'"Notification"'  # of SNS
_ID_MEMBERS: Final = ("resourceId", "orderId", "oldResourceId", "newResourceId", "adminUserId")


class LetterTarget(msgspec.Struct, frozen=True):
    """The resource to erase, by all names of its type; *order_tenant* is the tenant of order events that name none."""

    business_id: str
    location_id: str
    resource_types: Collection[str]
    resource_id: str
    order_tenant: tuple[str, str] | None = None

    @property
    def tenant(self) -> tuple[str, str]:
        """The business and the location."""
        return self.business_id, self.location_id


class Relation(StrEnum):
    """What a record has to do with the resource."""

    NONE = "none"
    MENTIONS = "mentions"  # it is about another resource, or names no tenant
    ABOUT = "about"  # it names the resource, or cannot be read and has the id


LetterVerdict: TypeAlias = Relation | DeadLetter
"""A letter about the resource is deleted; a new letter takes the place of one with records of others beside it."""


def judge_letter(letter: DeadLetter, target: LetterTarget) -> LetterVerdict:
    """Return what becomes of a letter."""
    parts = deaggregate(letter.record)
    if parts is None:
        default = target.order_tenant if letter.origin.source is Source.SQS else None
        return relation_of(letter.record, tenant_of(letter) or default, letter.resource_id, target)
    relations = [relation_of(part.data, None, None, target) for part in parts]
    kept = [index for index, relation in enumerate(relations) if relation is not Relation.ABOUT]
    if not kept:
        return Relation.ABOUT
    if len(kept) < len(parts):
        return _without_parts(letter, parts, kept)
    return Relation.MENTIONS if Relation.MENTIONS in relations else Relation.NONE


def relation_of(
    record: bytes, tenant: tuple[str, str] | None, resource_id: str | None, target: LetterTarget
) -> Relation:
    """Return what *record* has to do with the resource; without a *tenant* of its letter the record's own counts."""
    if ENVELOPE in record:
        record = unwrap(record.decode("utf-8", "replace"), {})[0].encode("utf-8", "surrogatepass")
    members = _members_of(record)
    if tenant is None and members is not None:
        tenant = _texts(members, "businessId", "locationId")
    if tenant is not None and tenant != target.tenant:
        return Relation.NONE
    has_id = _has_word(record, target.resource_id)
    if members is None:  # it can never be applied as it is
        is_of_tenant = tenant is not None or all(_has_word(record, name) for name in target.tenant)
        is_about = is_of_tenant and (has_id or resource_id == target.resource_id)
        return Relation.ABOUT if is_about else Relation.MENTIONS if has_id else Relation.NONE
    resource_type = members.get("resourceType", ORDER if "orderId" in members else None)
    is_named = target.resource_id in [resource_id, *map(members.get, _ID_MEMBERS)] and (
        resource_type is None or resource_type in target.resource_types
    )
    if is_named and tenant is not None:
        return Relation.ABOUT
    return Relation.MENTIONS if is_named or has_id else Relation.NONE


def _without_parts(letter: DeadLetter, parts: list[SubRecord], kept: list[int]) -> DeadLetter:
    packer = AggregatePacker()
    for index in kept:
        packer.add(parts[index].partition_key, parts[index].data)
    bad = letter.parts
    if bad is None:  # no part of a whole aggregate was applied
        ids = tuple(_request_id_of(part.data) for part in parts)
        bad = BadParts(len(parts), len(parts), {letter.reason: len(kept)}, tuple(range(len(parts))), ids)
    left = BadParts(
        part_count=bad.part_count,
        bad_count=len(kept),
        reasons=bad.reasons,
        numbers=None if bad.numbers is None else tuple(bad.numbers[index] for index in kept),
        request_ids=None if bad.request_ids is None else tuple(bad.request_ids[index] for index in kept),
    )
    return msgspec.structs.replace(letter, record=packer.seal(), parts=left, resource_id=None)


def _request_id_of(record: bytes) -> str | None:
    request_id = (_members_of(record) or {}).get("requestId")
    return request_id if isinstance(request_id, str) else None


def _members_of(record: bytes) -> dict[str, object] | None:
    try:
        members = json.loads(record)
    except (ValueError, RecursionError):
        return None
    return members if isinstance(members, dict) else None


def _texts(members: dict[str, object], first: str, second: str) -> tuple[str, str] | None:
    one, other = members.get(first), members.get(second)
    return (one, other) if isinstance(one, str) and isinstance(other, str) else None


def _has_word(record: bytes, text: str) -> bool:
    """Return whether *record* has *text*, as it is or as JSON escapes it, and not as a part of a longer word."""
    forms = {text.encode("utf-8", "surrogatepass"), json.dumps(text)[1:-1].encode()}
    return any(re.search(rb"(?<![\w-])%b(?![\w-])" % re.escape(form), record) for form in forms)


class ErasedLetters(msgspec.Struct, rename="camel"):
    """The number of letters that were deleted, and of those that new ones took the place of; or would be.

    *mentioning* are the message ids of letters that have the id and are about something else: they stay.
    """

    deleted: int = 0
    rewritten: int = 0
    mentioning: list[str] = []
    left: int = 0
    hidden: int = 0
    behind: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether no letter is left that may have the resource."""
        return not (self.left or self.hidden or self.behind)


async def erase_letters(
    settings: Settings, target: LetterTarget, narration: Narration, *, apply: bool
) -> ErasedLetters:
    """Erase a resource from the dead-letter queue, as far as the queue shows its letters; or count them.

    A letter is rewritten before the old one is deleted: after a kill in between the next run does it again.
    """
    erased = ErasedLetters()
    async with open_browser(settings, narration) as browser:
        max_bytes = browser.before.max_message_bytes or MAX_MESSAGE_DEFAULT_BYTES
        while True:
            found, rewritten = await _find(browser, target, erased.mentioning)
            if not apply:
                erased.deleted, erased.rewritten = len(found), len(rewritten)
                break
            replaced = [one for one, letter in rewritten.items() if await _replace(browser, letter, max_bytes)]
            left = await browser.delete(found + replaced)
            erased.deleted += len(found) - len(left.intersection(found))
            erased.rewritten += len(replaced) - len(left.intersection(replaced))
            erased.left += len(left) + len(rewritten) - len(replaced)
            # A FIFO queue shows more of a group once the first are deleted.
            if not (browser.queue.is_fifo and found + replaced):
                break
        erased.hidden = browser.warn_of_hidden()
        erased.behind = await browser.count_behind()
    return erased


async def _find(
    browser: DeadLetterBrowser, target: LetterTarget, mentioning: list[str]
) -> tuple[list[str], dict[str, DeadLetter]]:
    found: list[str] = []
    rewritten: dict[str, DeadLetter] = {}
    async with aclosing(browser.read(DeadLetterFilter())) as letters:
        async for message, parsed in letters:
            if isinstance(parsed, ParsedDeadLetter):
                verdict = judge_letter(parsed.letter, target)
            else:  # such as a message that SQS itself has moved here
                verdict = relation_of(message.body.encode("utf-8", "surrogatepass"), None, None, target)
            match verdict:
                case DeadLetter():
                    rewritten[message.message_id] = verdict
                case Relation.ABOUT:
                    found.append(message.message_id)
                case Relation.MENTIONS:
                    mentioning.append(message.message_id)
                case Relation.NONE:
                    pass
    return found, rewritten


async def _replace(browser: DeadLetterBrowser, letter: DeadLetter, max_bytes: int) -> bool:
    body = encode_dead_letter(letter, max_bytes)
    if parse_dead_letter(body).whole is not None:
        return False
    fifo = None
    if browser.queue.is_fifo:  # by its position it would have the id of the other letter, and be dropped
        own_id = hashlib.sha256(body.encode()).hexdigest()
        fifo = FifoIds(group_id=fifo_ids_of(letter).group_id, deduplication_id=own_id)
    return not await browser.queue.send([OutgoingMessage(body, fifo)])
