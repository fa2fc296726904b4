"""The command line of `resources`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from cyclopts import App, Parameter, validators

from simplu_worker.commands.command_line import NO_OPTIONS, Apply, CommonOptions, Flag, parse_time
from simplu_worker.errors import UsageError

resources = App(name="resources")

Limit = Annotated[int, Parameter(validator=validators.Number(gte=1, lte=500), help="Print at most this many.")]
Version = Annotated[int, Parameter(validator=validators.Number(gte=0))]
LIMIT: Final = 50


@resources.command(name="history")
def show_history(
    business: str,
    location: str,
    type_: str,
    id_: str,
    /,
    *,
    diff: Flag = False,
    before: Version | None = None,
    limit: Limit = LIMIT,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Print the versions of a resource, newest first. Its type has a history in the file of its business type.

    Parameters
    ----------
    diff
        What each version has changed, in place of its document.
    before
        Only versions before this one.
    """
    from simplu_worker.commands.resources.reading import show_history

    return common.run(show_history, (business, location, type_, id_), before, limit, is_diff=diff)


@resources.command(name="show")
def show_resource(
    business: str,
    location: str,
    type_: str,
    id_: str,
    /,
    *,
    at: str | None = None,
    version: Version | None = None,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Print a resource as it was.

    Parameters
    ----------
    at
        At this time, by RFC 3339; no offset means UTC.
    version
        In this version.
    """
    from simplu_worker.commands.resources.reading import show_resource

    return common.run(show_resource, (business, location, type_, id_), *_parse_moment(at, version))


def _parse_moment(at: str | None, version: int | None) -> tuple[datetime | None, int | None]:
    if (at is None) == (version is None):
        raise UsageError("--at, --version: expected one of them")
    return None if at is None else parse_time("--at", at), version


@resources.command(name="restore")
def restore_resource(
    business: str,
    location: str,
    type_: str,
    id_: str,
    /,
    *,
    at: str | None = None,
    version: Version | None = None,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Have a resource be again what it was, by an operation on the stream.

    Parameters
    ----------
    at
        At this time, by RFC 3339; no offset means UTC.
    version
        In this version.
    """
    from simplu_worker.commands.resources.reading import restore_resource

    names, moment = (business, location, type_, id_), _parse_moment(at, version)
    return common.run(restore_resource, names, *moment, is_apply=apply, as_json=common.as_json)


@resources.command(name="audit")
def audit_versions(
    business: str, location: str, type_: str | None = None, /, *, common: CommonOptions = NO_OPTIONS
) -> int:
    """Check that no version of a tenant's resources is missing, or was changed after it was written."""
    from simplu_worker.commands.resources.reading import audit_versions

    return common.run(audit_versions, business, location, type_)


@resources.command(name="list")
def list_resources(
    business: str,
    location: str,
    type_: str,
    /,
    *,
    at: str,
    limit: Limit = LIMIT,
    after: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Print the resources of a type that a tenant had at a time.

    Parameters
    ----------
    at
        The time, by RFC 3339; no offset means UTC.
    after
        Go on after a list that ended with this cursor.
    """
    from simplu_worker.commands.resources.reading import list_resources

    return common.run(list_resources, (business, location, type_), parse_time("--at", at), limit, after)
