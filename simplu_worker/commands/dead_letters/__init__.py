"""The command line of `dead-letters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter, validators

from simplu_worker.commands.command_line import NO_OPTIONS, Apply, CommonOptions, Flag, OneTenant, OneWord, parse_range
from simplu_worker.errors import UsageError
from simplu_worker.vocabulary import DeadLetterReason, Source

if TYPE_CHECKING:
    from simplu_worker.dead_letters.plan import LettersRequest

dead_letters = App(name="dead-letters")


@Parameter(name="*")
@dataclass(frozen=True)
class FilterOptions:
    """The dead letters to list or to replay; all of them without an option.

    Parameters
    ----------
    reason
        Only those with this reason; may be given several times.
    source
        Only those from Kinesis, or from SQS.
    tenant
        Only dead letters of this business and location.
    since
        Only dead letters that failed at this time or later, by RFC 3339; no offset means UTC.
    until
        Only dead letters that failed before this time.
    message
        Only the one in this message of the queue, by the `messageId` of `list --json`; may be given several times.
    """

    reason: Annotated[tuple[DeadLetterReason, ...], Parameter(negative="", name_transform=str.lower)] = ()
    source: Annotated[Source | None, OneWord] = None
    tenant: OneTenant = None
    since: str | None = None
    until: str | None = None
    message: Annotated[tuple[str, ...], Parameter(negative="")] = ()

    def request(self, limit: int | None, **how: bool) -> LettersRequest:
        """Return what is asked for. Raises UsageError."""
        from msgspec.structs import replace

        from simplu_worker.dead_letters.plan import ALL_LETTERS, LettersRequest

        (business_id, location_id), (since, until) = self.tenant or (None, None), parse_range(self.since, self.until)
        of_tenant = frozenset(self.reason), self.source, business_id, location_id
        request = LettersRequest(*of_tenant, since, until, frozenset(self.message), limit or ALL_LETTERS)
        return replace(request, **how)


NO_FILTER: Final = FilterOptions()


@dead_letters.command(name="list")
def list_dead_letters(
    *,
    filters: FilterOptions = NO_FILTER,
    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    records: Flag = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Print dead letters. They stay in the queue, hidden from other readers while the command runs.

    Parameters
    ----------
    limit
        Print at most this many; all without this option.
    records
        Print the content of the records too.
    """
    from simplu_worker.commands.dead_letters.command import list_dead_letters

    return common.run(list_dead_letters, filters.request(limit, records=records))


@dead_letters.command(name="replay")
def replay_dead_letters(
    *,
    filters: FilterOptions = NO_FILTER,
    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    apply: Apply = False,
    force: Flag = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Send the records of dead letters to their source again, in order.

    Parameters
    ----------
    limit
        Send at most this many, the first ones by their position in the source.
    force
        Also send records that would come back as dead letters.
    """
    from simplu_worker.commands.dead_letters.command import replay_dead_letters

    return common.run(replay_dead_letters, filters.request(limit, apply=apply, force=force))


@dead_letters.command(name="discard")
def discard_dead_letters(
    *,
    filters: FilterOptions = NO_FILTER,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Delete dead letters with their records: the ones that filters name, or all.

    Parameters
    ----------
    every
        All dead letters of the queue, where no filter is given.
    limit
        Delete at most this many.
    """
    from simplu_worker.commands.dead_letters.command import discard_dead_letters

    request = filters.request(limit, apply=apply)
    if request.is_all != every:
        raise UsageError("expected a filter, such as --reason or --tenant, or --all in place of filters")
    return common.run(discard_dead_letters, request)
