"""`resources`: what resources were, by the history on their tenant's home; whether it is whole, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, Facts, Part, table_of
from simplu_worker.commands.running import parse_tenant_id, require_settings
from simplu_worker.commands.stream.send import SendOptions, parse_operations, preview_lines, send_lines
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.lookups import RESOURCE_SHOWN_MAX_BYTES, ShardLookups
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import Absence

ResourceNames: TypeAlias = tuple[str, str, str, str]  # business, location, type, id
COLUMNS: Final = {
    "version": "version",
    "appliedAt": "applied",
    "change": "change",
    "requestId": "request id",
    "source": "source",
    "document": "document",
}
LIST_COLUMNS: Final = {"resourceId": "resource", **COLUMNS}
BEFORE: Final = "before the history"
NO_CONTENT: Final = "erased, or too large to show"
PAGE_ROWS: Final = 100
RESTORED_WITHIN_S: Final = 60.0
AUDIT_BEGIN: Final = "-1//-1"  # a place before all versions
AUDIT_ROWS: Final = 2000
AUDIT_COLUMNS: Final = {"resourceType": "type", "resourceId": "resource", "version": "version", "problem": "problem"}
PROBLEMS: Final = {
    "missing": "versions before it are missing",
    "changed": "it, or its document, or the digest before it was changed",
}
PROBLEMS_MAX: Final = 100  # shown; all are counted


class VersionView(msgspec.Struct, frozen=True, rename="camel"):
    """One version, with the document that it left; *applied_at* is None of what was before the history."""

    resource_id: str
    version: int
    change: str
    request_id: str | None
    source: str | None
    applied_at: datetime | None
    document: msgspec.Raw | None

    @property
    def is_there(self) -> bool:
        """Whether the resource existed."""
        return self.change != "delete"


def _view(row: Mapping[str, Any]) -> VersionView:
    document = None if row["document"] is None else msgspec.Raw(row["document"].encode())
    change = row["change"] or BEFORE
    who = (row["request_id"], row["source"], row["applied_at"])
    return VersionView(row["resource_id"], row["version"], change, *who, document)


async def show_history(
    settings: Settings, names: ResourceNames, before: int | None, limit: int, *, is_diff: bool = False
) -> Answer:
    """Return the newest versions of a resource, before the version *before*; it fails if there are none."""
    rows = await _read(settings, "list_versions", names, limit + is_diff, before, None)
    views = [_view(row) for row in rows if row["version"] is not None]
    shown, older = views[:limit], [*views[1:], None]
    members = msgspec.to_builtins(shown, builtin_types=(msgspec.Raw, datetime))
    if is_diff:
        for member, view, former in zip(members, shown, older, strict=False):
            del member["document"]
            member["changes"] = list(differences(_content(former), _content(view)))
    columns = {**COLUMNS, "changes": "changes"} if is_diff else COLUMNS
    cells = [{**one, "changes": list(map(_change_text, one.get("changes", ())))} for one in members]
    nothing = None if views else f"{names[2]} {names[3]}: no versions"
    return Answer({"versions": members}, [table_of(columns, cells), nothing], is_failed=not views)


async def show_resource(settings: Settings, names: ResourceNames, at: datetime | None, version: int | None) -> Answer:
    """Return a resource at a time, or in a version; it fails if there is no such version, or no resource then."""
    found = await _find_version(settings, names, at, version)
    if found is None or not found.is_there:
        told = f"no version {version}" if found is None and at is None else "there was none"
        return Answer({"resource": None}, [f"{names[2]} {names[3]}: {told}"], is_failed=True)
    member = msgspec.to_builtins(found, builtin_types=(msgspec.Raw, datetime))
    return Answer({"resource": member}, [Facts(member), None if member["document"] else NO_CONTENT])


async def _find_version(
    settings: Settings, names: ResourceNames, at: datetime | None, version: int | None
) -> VersionView | None:
    before = None if version is None else version + 1
    rows = await _read(settings, "list_versions", names, 1, before, at, at=at)
    found = [_view(row) for row in rows if row["version"] is not None]
    return found[0] if found and version in {None, found[0].version} else None


async def restore_resource(
    settings: Settings,
    names: ResourceNames,
    at: datetime | None,
    version: int | None,
    *,
    is_apply: bool,
    as_json: bool,
) -> Answer:
    """Have a resource be again what it was, by an operation on the stream; without *is_apply* only print it.

    It is in order with all others: one that comes before it is overwritten. It fails unless a worker would apply it, or
    has applied it.
    """
    require_settings(settings, routes=True, stream=is_apply)
    (newest,) = await _read(settings, "list_versions", names, 1, None, None)
    if newest["members"] is not None:
        raise PermanentError(f"{names[2]}: its history keeps some members alone; send an operation with all of them")
    then = await _find_version(settings, names, at, version)
    now = None if newest["version"] is None else _view(newest)
    if then is None and version is not None:
        raise PermanentError(f"{names[2]} {names[3]}: there is no version {version}; resources history lists them")
    operation = operation_to(now, then)
    if operation is None:
        return Answer({"operations": []}, [f"{names[2]} {names[3]}: nothing to do, it is as it was"])
    members = zip(("businessId", "locationId", "resourceType", "resourceId"), names, strict=True)
    lines = parse_operations(settings, msgspec.json.encode({**dict(members), **operation}))
    plan = await preview_lines(settings, lines)
    if not is_apply or plan.is_failed:
        changes = list(differences(_content(now), _content(then)))
        cells = [{"change": _change_text(one)} for one in changes]
        parts = [table_of({"change": f"change of {names[2]} {names[3]}"}, cells), *plan.parts]
        return Answer(plan.members | {"changes": changes}, parts, plan.silent, plan.is_failed)
    options = SendOptions(wait=True, timeout_s=RESTORED_WITHIN_S, force=False)
    return await send_lines(settings, lines, options, as_json=as_json)


def operation_to(now: VersionView | None, then: VersionView | None) -> dict[str, Any] | None:
    """Return the operation and its data that make a resource what it was, None without a difference.

    Raises `PermanentError` where the document of then is not known.
    """
    if then is None or not then.is_there:
        return {"operation": "delete"} if now is not None and now.is_there else None
    if then.document is None:
        raise PermanentError(f"version {then.version}: its document is {NO_CONTENT}; restore another version")
    if now is None or not now.is_there:
        return {"operation": "create", "data": then.document}
    is_same = now.document is not None and _content(now) == _content(then)
    return None if is_same else {"operation": "update", "data": then.document}


async def list_resources(
    settings: Settings, names: tuple[str, str, str], at: datetime, limit: int, after: str
) -> Answer:
    """Return at most *limit* resources as they were at a time, and a cursor to go on."""
    found: list[VersionView] = []
    part, _, key = after.partition(":")
    if part not in {"", "changed", "unchanged"}:
        raise PermanentError("--after: expected what a list has ended with, got something else")
    query = "list_unchanged" if part == "unchanged" else "list_changed_at"
    cursor: str | None = after
    async with open_shards(settings) as shards:
        while cursor is not None and len(found) < limit:
            size = min(limit - len(found), PAGE_ROWS)
            times = (at,) if query == "list_changed_at" else ()
            rows = await _ask(shards.gateway.lookups, query, (*names, key), size, *times, at=at)
            keyed = [row for row in rows if row["key"] is not None]
            views = [_view(row) for row in keyed if row["version"] is not None]
            found += [view for view in views if view.is_there]
            if len(keyed) == size:
                key = keyed[-1]["key"]
                cursor = f"{query.removeprefix('list_').removesuffix('_at')}:{key}"
            else:
                cursor = "unchanged:" if query == "list_changed_at" else None
                query, key = "list_unchanged", ""
    members = msgspec.to_builtins(found, builtin_types=(msgspec.Raw, datetime))
    parts: list[Part] = [table_of(LIST_COLUMNS, members), None if cursor is None else f"go on with --after {cursor}"]
    return Answer({"resources": members, "next": cursor}, parts)


async def audit_versions(settings: Settings, business_id: str, location_id: str, resource_type: str | None) -> Answer:
    """Check each version of a tenant's resources against its digest; it fails where one was changed, or is missing."""
    parse_tenant_id(business_id, location_id)
    counts, problems, place = Counter[str | None](), list[dict[str, Any]](), AUDIT_BEGIN
    async with open_shards(settings) as shards:
        while place:
            names = business_id, location_id, resource_type or ""
            rows = await shards.gateway.lookups.find_versions("audit_versions", *names, place, AUDIT_ROWS)
            if isinstance(rows, Absence):
                raise PermanentError(f"no shard has the tenant {business_id} {location_id}: {rows}")
            counts.update(row["finding"] for row in rows if row["version"])
            problems += [_problem(row) for row in rows if row["finding"] in PROBLEMS][: PROBLEMS_MAX - len(problems)]
            place = rows[-1]["place"]
    count = sum(counts[finding] for finding in PROBLEMS)
    told = f"{counts.total()} versions, {count} wrong, {counts['erased']} erased"
    members = {"versions": counts.total(), "wrong": count, "erased": counts["erased"], "problems": problems}
    return Answer(members, [table_of(AUDIT_COLUMNS, problems), told], is_failed=count > 0)


def _problem(row: Mapping[str, Any]) -> dict[str, Any]:
    names = {"resourceType": row["resource_type"], "resourceId": row["resource_id"], "version": row["version"]}
    return {**names, "problem": PROBLEMS[row["finding"]]}


async def _read(
    settings: Settings, query: str, names: ResourceNames, *arguments: object, at: datetime | None = None
) -> Sequence[Mapping[str, Any]]:
    async with open_shards(settings) as shards:
        return await _ask(shards.gateway.lookups, query, names, *arguments, at=at)


async def _ask(
    lookups: ShardLookups, query: str, names: ResourceNames, *arguments: object, at: datetime | None
) -> Sequence[Mapping[str, Any]]:
    """Return the rows of *query*. Raises `PermanentError` where the history does not know the time *at*."""
    business_id, location_id, resource_type, key = names
    parse_tenant_id(business_id, location_id)
    arguments = (RESOURCE_SHOWN_MAX_BYTES, *arguments)
    rows = await lookups.find_versions(query, business_id, location_id, resource_type, key, *arguments)
    if isinstance(rows, Absence):
        raise PermanentError(f"no shard has the tenant {business_id} {location_id}: {rows}")
    known_from = rows[0]["known_from"]
    if known_from is None:
        raise PermanentError(
            f"{resource_type}: it has no history; give the type one in its file, then run: simplu-worker types apply"
        )
    if at is not None and not known_from <= at <= utc_now():
        raise PermanentError(f"--at: expected a time from {known_from.isoformat()} until now, got {at.isoformat()}")
    return rows


def _content(view: VersionView | None) -> Any:
    return msgspec.json.decode(view.document) if view is not None and view.document is not None else {}


def differences(before: Any, after: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """Yield what differs between two documents by the path of each member: `before` and `after`, as far as it is there.

    Objects are compared by member, all else as a whole.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            sides = {side: one[name] for side, one in (("before", before), ("after", after)) if name in one}
            if len(sides) == 1:
                yield {"path": f"{path}/{name}", **sides}
            else:
                yield from differences(before[name], after[name], f"{path}/{name}")
    elif before != after:
        yield {"path": path, "before": before, "after": after}


def _change_text(change: Mapping[str, Any]) -> str:
    before, after = (
        msgspec.json.encode(change[side]).decode() if side in change else "nothing" for side in ("before", "after")
    )
    return f"{change['path']}: {before} → {after}"
