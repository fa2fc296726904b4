"""The command line of `types`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from simplu_worker.commands.command_line import NO_OPTIONS, Apply, CommonOptions

types = App(name="types")


@types.command(name="apply")
def apply_types(
    folder: Path,
    /,
    *,
    apply: Apply = False,
    remove: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Write the business types of a folder to all shards while workers run.

    Types without a file are left alone.

    Parameters
    ----------
    remove
        Remove a type that no tenant has, with its views; may be given again.
    """
    from simplu_worker.commands.types.business_types import apply_types

    return common.run(apply_types, folder, remove, apply=apply)


@types.command(name="show")
def show_types(name: str | None = None, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """Print the business types of all shards and their differences, or one type's file."""
    from simplu_worker.commands.types.business_types import show_types

    return common.run(show_types, name)


@types.command(name="check")
def check_types(folder: Path, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """Check the files of a folder against the resources on all shards."""
    from simplu_worker.commands.types.business_types import check_types

    return common.run(check_types, folder)
