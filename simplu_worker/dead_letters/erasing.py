"""Erase a resource from dead letters: delete those about it, and name those with records of others beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.aws.sqs_queue import Message, unwrap
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.aggregation import deaggregate
from simplu_worker.consumers.sqs.order_messages import RESOURCE_TYPE as ORDER
from simplu_worker.dead_letters.letter import NotADeadLetterError, ParsedDeadLetter
from simplu_worker.dead_letters.plan import ALL_LETTERS, LettersRequest
from simplu_worker.dead_letters.queue import Note
from simplu_worker.dead_letters.service import delete_letters, open_browser
from simplu_worker.operations.dead_letter import DeadLetter, tenant_of
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
    AMONG = "among"  # it has a record about the resource beside others
    ABOUT = "about"  # it names the resource, or cannot be read and has the id


def judge_letter(letter: DeadLetter, target: LetterTarget) -> Relation:
    """Return what a letter has to do with the resource."""
    parts = deaggregate(letter.record)
    if parts is None:
        default = target.order_tenant if letter.origin.source is Source.SQS else None
        return relation_of(letter.record, tenant_of(letter) or default, letter.resource_id, target)
    relations = {relation_of(part.data, None, None, target) for part in parts}
    if Relation.ABOUT in relations:
        return Relation.ABOUT if len(relations) == 1 else Relation.AMONG
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
    """The number of letters that were deleted, or would be, and the message ids of those that stay.

    Letters in *among* have the resource beside records of others; those in *mentioning* have the id and are about
    something else.
    """

    deleted: int = 0
    among: list[str] = []
    mentioning: list[str] = []
    left: int = 0
    hidden: int = 0
    behind: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether no letter is left that may have the resource."""
        return not (self.among or self.left or self.hidden or self.behind)


async def erase_letters(settings: Settings, target: LetterTarget, note: Note, *, apply: bool) -> ErasedLetters:
    """Erase a resource from the dead-letter queue, as far as the queue shows its letters; or count them."""
    erased = ErasedLetters()

    def choose(message: Message, parsed: ParsedDeadLetter | NotADeadLetterError) -> bool:
        if isinstance(parsed, ParsedDeadLetter):
            relation = judge_letter(parsed.letter, target)
        else:  # such as a message that SQS itself has moved here
            relation = relation_of(message.body.encode("utf-8", "surrogatepass"), None, None, target)
        if relation is Relation.AMONG:
            erased.among.append(message.message_id)
        elif relation is Relation.MENTIONS:
            erased.mentioning.append(message.message_id)
        return relation is Relation.ABOUT

    async with open_browser(settings, note) as browser:
        count, erased.left = await delete_letters(browser, LettersRequest(limit=ALL_LETTERS, apply=apply), choose)
        erased.deleted = count - erased.left
        erased.hidden = browser.warn_of_hidden()
        erased.behind = await browser.count_behind()
    return erased
