"""Delete the dead letters with a resource that is erased, and take it out of letters with records of others."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage
from simplu_worker.commands.dead_letters.browse import DeadLetterBrowser, read_with_progress
from simplu_worker.commands.dead_letters.desk import (
    count_behind,
    open_browser,
    read_depth,
    warn_of_hidden,
)
from simplu_worker.commands.dead_letters.erasure_rules import LetterTarget, Relation, judge_letter, relation_of
from simplu_worker.commands.output import Narration
from simplu_worker.config.settings import Settings
from simplu_worker.dead_letters.letter import (
    DeadLetter,
    NotADeadLetterError,
    encode_dead_letter,
    fifo_ids_of,
    parse_dead_letter,
)
from simplu_worker.dead_letters.queue import MAX_MESSAGE_DEFAULT_BYTES


class ErasedLetters(msgspec.Struct, rename="camel"):
    """The number of letters that were deleted, and of those that new ones took the place of; of a plan, would be.

    *mentioning* are the message ids of letters that have the id and are about something else: they stay. *left* could
    not be deleted; *hidden* and *behind* were not seen.
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
    """Erase a resource from the dead-letter queue, as far as the queue shows its letters; or count them for a plan.

    A letter is rewritten before the old one is deleted: after a kill in between both are there, and the next run
    rewrites the old one again; a replay drops what comes twice.
    """
    erased = ErasedLetters()
    started_at = datetime.now(UTC)
    async with open_browser(settings, narration) as browser:
        depth = await read_depth(browser)
        max_bytes = (await browser.read_attributes()).max_message_bytes or MAX_MESSAGE_DEFAULT_BYTES
        while True:
            found, rewritten = await _find(browser, target, erased.mentioning, depth.visible_count, started_at)
            if not apply:
                erased.deleted, erased.rewritten = len(found), len(rewritten)
                break
            replaced = [one for one, letter in rewritten if await _replace(browser, letter, max_bytes)]
            left = await browser.delete_all(found + replaced)
            erased.deleted += len(found) - len(left.intersection(found))
            erased.rewritten += len(replaced) - len(left.intersection(replaced))
            erased.left += len(left) + len(rewritten) - len(replaced)
            # A FIFO queue shows more of a group once the first are deleted.
            if not (browser.is_fifo and found + replaced):
                break
        erased.hidden = warn_of_hidden(depth, browser)
        erased.behind = await count_behind(browser)
    return erased


async def _find(
    browser: DeadLetterBrowser, target: LetterTarget, mentioning: list[str], expected: int, newest: datetime
) -> tuple[list[str], list[tuple[str, DeadLetter]]]:
    """Return the messages to delete, and those whose letters get another one; *mentioning* gets those that stay."""
    found: list[str] = []
    rewritten: list[tuple[str, DeadLetter]] = []
    async with aclosing(read_with_progress(browser, expected)) as messages:
        async for message in messages:
            if message.sent_at > newest:
                continue
            try:
                verdict = judge_letter(parse_dead_letter(message.body).letter, target)
            except NotADeadLetterError:  # such as a message that SQS itself has moved here
                verdict = relation_of(message.body.encode("utf-8", "surrogatepass"), None, None, target)
            match verdict:
                case DeadLetter():
                    rewritten.append((message.message_id, verdict))
                case Relation.ABOUT:
                    found.append(message.message_id)
                case Relation.MENTIONS:
                    mentioning.append(message.message_id)
                case Relation.NONE:
                    pass
    return found, rewritten


async def _replace(browser: DeadLetterBrowser, letter: DeadLetter, max_bytes: int) -> bool:
    """Send a letter that takes the place of another one; return whether the queue has it, with its whole record."""
    body = encode_dead_letter(letter, max_bytes)
    if parse_dead_letter(body).whole is not None:
        return False
    fifo = None
    if browser.is_fifo:  # by its position it would have the id of the other letter, and be dropped
        own_id = hashlib.sha256(body.encode()).hexdigest()
        fifo = FifoIds(group_id=fifo_ids_of(letter).group_id, deduplication_id=own_id)
    return await browser.send(OutgoingMessage(body, fifo))
