"""The command line of `tenants`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from simplu_worker.commands.command_line import (
    DEFAULT_BOUNDS,
    NO_OPTIONS,
    SIZES,
    Apply,
    CommonOptions,
    Flag,
    MoveBounds,
    parse_duration,
    parse_rate,
    parse_time,
)
from simplu_worker.errors import UsageError

tenants = App(name="tenants")


@tenants.command(name="list")
def list_tenants(*, common: CommonOptions = NO_OPTIONS) -> int:
    """Print the tenants of all shards."""
    from simplu_worker.commands.tenants.show import list_tenants

    return common.run(list_tenants)


@tenants.command(name="show")
def show_tenant(business: str, location: str, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """Print a tenant's rows on all shards, and where it is routed."""
    from simplu_worker.commands.tenants.show import show_tenant

    return common.run(show_tenant, business, location)


@tenants.command(name="provision")
def provision_tenant(
    business: str | None = None,
    location: str | None = None,
    /,
    *,
    business_type: Annotated[str | None, Parameter(name="--type")] = None,
    from_business_info: Flag = False,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Register a tenant and create it on its shard, or all that business-info lists.

    Parameters
    ----------
    business_type
        The business type, such as dental.
    from_business_info
        Plan to create every tenant of business-info that no shard has.
    """
    from simplu_worker.commands.tenants.inventory import provision_listed, provision_tenant

    if from_business_info and (business, location, business_type) == (None, None, None):
        return common.run(provision_listed, apply=apply)
    if from_business_info or apply or business is None or location is None or business_type is None:
        raise UsageError("tenants provision: expected BUSINESS LOCATION --type TYPE, or --from-business-info [--apply]")
    return common.run(provision_tenant, business, location, business_type)


@tenants.command(name="move")
def move_tenant(
    business: str,
    location: str,
    /,
    *,
    to: str,
    bounds: MoveBounds = DEFAULT_BOUNDS,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Move a tenant to another shard while workers run. An interrupted move continues."""
    from simplu_worker.commands.moves import MoveRequest, move_tenant

    request = MoveRequest(business, location, to)
    return common.run(move_tenant, request, bounds, apply=apply, as_json=common.as_json)


@tenants.command(name="pause")
def pause_tenant(
    business: str,
    location: str | None = None,
    /,
    *,
    duration: Annotated[str, Parameter(name="--for")] = "4h",
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Have the operations and order events of a tenant or business wait for a time.

    Parameters
    ----------
    duration
        The time, such as 30m or 2d. The pause ends sooner once half of a source's retention is over for what waits.
    """
    from simplu_worker.commands.tenants.controls import set_controls
    from simplu_worker.shards.types import PAUSE_MAX_S, TenantControls

    pause_s = parse_duration("--for", duration).total_seconds()
    if not 0 < pause_s <= PAUSE_MAX_S:
        raise UsageError(f"--for: expected more than 0 and at most 14d, got {duration}")
    return common.run(set_controls, business, location, TenantControls(pause_s=pause_s))


@tenants.command(name="resume")
def resume_tenant(business: str, location: str | None = None, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """End the pause of a tenant or business."""
    from simplu_worker.commands.tenants.controls import set_controls
    from simplu_worker.shards.types import TenantControls

    return common.run(set_controls, business, location, TenantControls(pause_s=0.0))


@tenants.command(name="weight")
def weigh_tenant(
    business: str,
    location: str | None = None,
    /,
    *,
    to: Annotated[float, Parameter(validator=validators.Number(gte=0.1, lte=10))],
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Give a tenant or business more or less of a shard's time than others.

    Parameters
    ----------
    to
        The weight, from 0.1 to 10; each tenant and each business has 1 by default.
    """
    from simplu_worker.commands.tenants.controls import set_controls
    from simplu_worker.shards.types import TenantControls

    return common.run(set_controls, business, location, TenantControls(weight=to))


@tenants.command(name="limit")
def limit_tenant(
    business: str,
    location: str | None = None,
    /,
    *,
    operations: str | None = None,
    size: Annotated[str | None, Parameter(name="--bytes")] = None,
    none: Flag = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Limit the operations of a tenant or business; what is beyond waits.

    Parameters
    ----------
    operations
        Operations, such as 50/s.
    size
        Bytes of their records, such as 1MB/s.
    none
        End both limits.
    """
    from simplu_worker.commands.tenants.controls import set_controls
    from simplu_worker.shards.types import TenantControls

    if none is (operations is not None or size is not None):
        raise UsageError("tenants limit: expected --operations, --bytes or both, or --none")
    limits = TenantControls(
        operations_per_s=0.0 if none else parse_rate("--operations", operations),
        bytes_per_s=0.0 if none else parse_rate("--bytes", size, SIZES),
    )
    return common.run(set_controls, business, location, limits)


@tenants.command(name="usage")
def tenant_usage(
    *,
    begin: Annotated[str, Parameter(name="--from")],
    end: Annotated[str, Parameter(name="--to")],
    business: str | None = None,
    by: Annotated[Literal["hour", "day", "month"], Parameter()] = "day",
    as_csv: Annotated[bool, Parameter(name="--csv", negative="")] = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Print what tenants used: operations, bytes, time of Postgres, storage.

    Parameters
    ----------
    begin
        From when on; a time such as 2026-03-01T00:00:00Z, at a full hour.
    end
        Until before when, the same.
    business
        Only this business.
    by
        The length of the periods, in UTC.
    as_csv
        Print CSV on stdout, and nothing else.
    """
    from simplu_worker.commands.tenants.usage import UsageRequest, show_usage

    if as_csv and common.as_json:
        raise UsageError("tenants usage: expected one of --csv and --json")
    times = parse_time("--from", begin), parse_time("--to", end)
    if times[0] >= times[1] or any(one.timestamp() % 3600 for one in times):
        raise UsageError(f"--from, --to: expected two full hours, the second later, got {begin} and {end}")
    return common.run(show_usage, UsageRequest(*times, by, business), as_csv=as_csv)


@tenants.command(name="verify")
def verify_tenant(business: str, location: str, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """Compare a moved tenant with the unchanged rows that it left behind."""
    from simplu_worker.commands.moves import verify_tenant

    return common.run(verify_tenant, (business, location))


@tenants.command(name="rollback")
def rollback_tenant(
    business: str,
    location: str,
    /,
    *,
    stay: Flag = False,
    bounds: MoveBounds = DEFAULT_BOUNDS,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Delete an unfinished move's copy, or move the tenant back.

    Parameters
    ----------
    stay
        Only delete copies, also that of a rollback that was stopped: the tenant stays on its shard.
    """
    from simplu_worker.commands.moves import rollback_tenant

    tenant = business, location
    return common.run(rollback_tenant, tenant, bounds, apply=apply, stay=stay, as_json=common.as_json)


@tenants.command(name="cleanup")
def clean_up_tenants(
    *, older_than: str = "7d", differing: Flag = False, apply: Apply = False, common: CommonOptions = NO_OPTIONS
) -> int:
    """Delete the rows that moved tenants left behind. A rollback then copies everything.

    Parameters
    ----------
    older_than
        The time since the move, such as 7d or 12h.
    differing
        Also rows of moves that ended with other rows on the new shard: nothing is left to compare these with.
    """
    from simplu_worker.commands.moves import clean_up_tenants

    return common.run(clean_up_tenants, older_than, differing=differing, apply=apply)


@tenants.command(name="restore")
def restore_tenant(
    business: str,
    location: str,
    /,
    *,
    catch_up: Flag = False,
    as_of_backup: Flag = False,
    export: Path | None = None,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Restore one tenant from a backup of its shard while workers run.

    Parameters
    ----------
    catch_up
        Read the stream again from the backup on, for all tenants of the shard: rows were lost.
    as_of_backup
        Leave undone what the tenant's operations since the backup have done: a producer was wrong.
    export
        Write the rows that are overwritten to this new file, one JSON object a line.
    """
    from simplu_worker.commands.tenants.restore import restore_tenant
    from simplu_worker.transfers.restoring import RestoreMode

    if catch_up == as_of_backup:
        raise UsageError("tenants restore: expected one of --catch-up and --as-of-backup")
    mode = RestoreMode.CATCH_UP if catch_up else RestoreMode.AS_OF_BACKUP
    return common.run(restore_tenant, (business, location), mode, export, apply=apply)


@tenants.command(name="audit")
def audit_tenants(*, common: CommonOptions = NO_OPTIONS) -> int:
    """Print the differences between business-info, Citrus and all shards."""
    from simplu_worker.commands.tenants.inventory import audit_tenants

    return common.run(audit_tenants)


@tenants.command(name="import")
def import_tenants(
    queries: Path | None = None,
    /,
    *,
    business_type: str | None = None,
    apply: Apply = False,
    follow: Flag = False,
    parallel: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=64))] = 4,
    max_rows_per_second: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    leave_refused: Flag = False,
    discard: Flag = False,
    source: str | None = None,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Import the tenants of another database, each to its shard. IMPORT_SOURCE_URL has its connection string.

    Parameters
    ----------
    queries
        A file of SQL with a query for each resource type, each below a line `-- name: RESOURCE_TYPE`.
    business_type
        The business type of all tenants; without it that of business-info.
    follow
        With --apply: copy all tenants and then, until Ctrl-C, the rows that change; activate none yet.
    parallel
        Copy at most this many tenants at a time, each by a connection of its own.
    max_rows_per_second
        Read at most this many rows a second, of all tenants together; does not slow counts and comparisons.
    leave_refused
        Activate tenants with rows that cannot be taken; these rows stay in the source.
    discard
        Give up: delete the tenants of imports that are not active yet, with their rows; takes --apply and --source.
    source
        With --discard: only tenants of the source with this name, as a refusal and the plan print it.
    """
    from simplu_worker.commands.tenants.importing import discard_imports, import_tenants
    from simplu_worker.transfers.importing.importer import ImportOptions

    if discard:
        if queries is not None or follow or leave_refused:
            raise UsageError("tenants import: expected --discard alone or with --apply and --source, or none")
        return common.run(discard_imports, source, apply=apply)

    if queries is None:
        raise UsageError("tenants import: expected a file of queries, got none; docs/importing.md has an example")
    if source is not None:
        raise UsageError("tenants import: expected --source with --discard, got --source alone")
    if follow and not apply:
        raise UsageError("tenants import: expected --follow with --apply, got --follow alone")
    options = ImportOptions(business_type, parallel, max_rows_per_second, leave_refused)
    return common.run(import_tenants, queries, options, apply=apply, follow=follow)


@tenants.command(name="export")
def export_tenants(
    mapping: Path, /, *, follow: Flag = False, verify: Flag = False, common: CommonOptions = NO_OPTIONS
) -> int:
    """Write what changes to another database, compare it, or tell how far it is behind. EXPORT_TARGET_URL names it.

    Parameters
    ----------
    mapping
        The file of an import, with two further statements for each resource type: `-- upsert:` and `-- delete:`.
    follow
        Copy the rows of all tenants from the shards, then write what changes, until Ctrl-C.
    verify
        Compare all rows, and change nothing: without an export, its plan.
    """
    from simplu_worker.commands.tenants.exporting import follow_shards, show_lag, verify_target

    if follow and verify:
        raise UsageError("tenants export: expected one of --follow and --verify, or none")
    return common.run(follow_shards if follow else verify_target if verify else show_lag, mapping)


@tenants.command
def erase_resource(
    business: str,
    location: str,
    resource_type: str,
    resource_id: str,
    /,
    *,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Erase a person's resource from its shards, results and dead letters."""
    from simplu_worker.commands.tenants.erasing import erase_resource
    from simplu_worker.transfers.erasing import Erasure

    erasure = Erasure(business, location, resource_type, resource_id)
    return common.run(erase_resource, erasure, apply=apply)
