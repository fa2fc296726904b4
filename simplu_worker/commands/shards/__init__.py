"""The command line of `shards`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from simplu_worker.commands.command_line import (
    DEFAULT_TERMS,
    NO_OPTIONS,
    Apply,
    CommonOptions,
    Flag,
    MoveTerms,
    OneTenant,
)
from simplu_worker.errors import UsageError

shards = App(name="shards")


@shards.command(name="list")
def list_shards(*, common: CommonOptions = NO_OPTIONS) -> int:
    """Print health and usage of every known shard."""
    from simplu_worker.commands.shards.show import list_shards

    return common.run(list_shards)


@shards.command(name="query")
def query_shards(
    statement: str,
    /,
    *,
    shard: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    tenant: OneTenant = None,
    on: Literal["primary", "standby"] = "primary",
    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=1_000_000))] = None,
    timeout: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=3600))] = 30,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Run one SQL query on all shards, as the role READER_USERNAME, which can only read.

    With --json each row is a line.

    Parameters
    ----------
    statement
        A SELECT, VALUES, TABLE or WITH, or the name of a file with one.
    shard
        Ask this shard only; may be given several times.
    tenant
        Ask the shard of this business and location only, and let the policies show its rows.
    on
        Ask the standby of each shard in place of the primary.
    limit
        Print at most this many rows of each shard; without this option 1,000, and more are a failure.
    timeout
        End the statement on a shard after this many seconds.
    """
    from simplu_worker.commands.shards.query import Asked, query_shards, read_statement
    from simplu_worker.shards.postgres.connector import TargetSessionAttrs
    from simplu_worker.shards.questions import ROWS_MAX, ShardQuestion

    if shard and tenant is not None:
        raise UsageError("shards query: expected --shard or --tenant, got both")
    question = ShardQuestion(read_statement(statement), row_limit=limit or ROWS_MAX, timeout_s=timeout)
    asked = Asked(shard, tenant, TargetSessionAttrs(on), wants_all=limit is None)
    return common.run(query_shards, question, asked, as_json=common.as_json)


@shards.command(name="upgrade")
def upgrade_shards(*shard: str, apply: Apply = False, common: CommonOptions = NO_OPTIONS) -> int:
    """Upgrade the schema of shards while workers run, or create it on a named empty shard.

    An upgrade that was interrupted is completed.

    Parameters
    ----------
    shard
        The shards to upgrade; all of them if none is named.
    """
    from simplu_worker.commands.shards.upgrade import upgrade_shards

    return common.run(upgrade_shards, shard, apply=apply)


@shards.command(name="route")
def route_keys(*keys: str, common: CommonOptions = NO_OPTIONS) -> int:
    """Print on which shards the map or Citrus places tenants.

    Parameters
    ----------
    keys
        The tenants, each as businessId-locationId.
    """
    from simplu_worker.commands.shards.show import route_keys

    if not keys:
        raise UsageError("KEY: expected at least one, got none")
    return common.run(route_keys, keys)


@shards.command(name="accept-gap")
def accept_gap(
    shard: str | None = None,
    /,
    *,
    all_shards: Annotated[Flag, Parameter(name="--all")] = False,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Continue a shard without the records that have left the stream since its backup.

    Parameters
    ----------
    all_shards
        All shards that are held for a gap.
    """
    from simplu_worker.commands.shards.gaps import accept_gaps

    if (shard is None) is not all_shards:
        raise UsageError(f"shards accept-gap: expected a shard or --all, got {'none' if shard is None else 'both'}")
    return common.run(accept_gaps, shard, apply=apply)


@shards.command(name="raise-numbers")
def raise_numbers(shard: str, /, *, apply: Apply = False, common: CommonOptions = NO_OPTIONS) -> int:
    """Continue a shard that was restored into another server, such as from a dump.

    Its log then has numbers of transactions that the new server has yet to reach.
    """
    from simplu_worker.commands.shards.gaps import raise_numbers

    return common.run(raise_numbers, shard, apply=apply)


@shards.command(name="rebalance")
def rebalance_shards(
    *,
    by: Literal["rows", "bytes", "load"] | None = None,
    to: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    terms: MoveTerms = DEFAULT_TERMS,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Move tenants so that shards are equally full, or to where the map places them.

    Parameters
    ----------
    by
        The measure: rows, bytes, or load, which is the operations of the last hour. Without it a shard map is followed,
        and with Citrus the numbers of businesses are balanced, by the capacities of the shards.
    to
        Move tenants to this shard only; may be given several times.
    """
    from simplu_worker.commands.shards.rebalance import Balance, Weight, rebalance_shards

    balance = Balance(None if by is None else Weight(by), to)
    return common.run(rebalance_shards, balance, terms, apply=apply, as_json=common.as_json)


@shards.command(name="drain")
def drain_shard(
    shard: str,
    /,
    *,
    undo: Flag = False,
    terms: MoveTerms = DEFAULT_TERMS,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Move all tenants of a shard to others, and print whether it can be removed.

    Parameters
    ----------
    undo
        Let the shard take tenants again; tenants that have left it stay where they are.
    """
    from simplu_worker.commands.shards.rebalance import drain_shard, undo_drain

    if undo:
        return common.run(undo_drain, shard, apply=apply)
    return common.run(drain_shard, shard, terms, apply=apply, as_json=common.as_json)


@shards.command(name="adopt")
def adopt_shard(
    shard: str,
    /,
    *,
    prepare: Flag = False,
    apply: Flag = False,
    leave_unresolved: Flag = False,
    leave_faulty: Flag = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Take over a shard of the TypeScript worker.

    Parameters
    ----------
    prepare
        Copy all rows, and keep the copy up to date while the other program runs; do not swap the tables.
    apply
        Carry out the adoption; stop the other program first. Without this option and --prepare the plan is printed.
    leave_unresolved
        Leave rows in the old table if business-info and the map or Citrus do not identify their tenant.
    leave_faulty
        Leave rows in the old table that cannot be resources.
    """
    from simplu_worker.commands.shards.adopt import AdoptMode, adopt_shard
    from simplu_worker.transfers.adoption.plan import AdoptionChoices

    if prepare and apply:
        raise UsageError("shards adopt: expected --prepare or --apply, got both")
    mode = AdoptMode.ALL if apply else AdoptMode.COPY if prepare else AdoptMode.NOTHING
    return common.run(adopt_shard, shard, mode, AdoptionChoices(leave_unresolved, leave_faulty))
