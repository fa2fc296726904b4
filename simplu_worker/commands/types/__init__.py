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
    """Write business types to all shards while workers run, each from a file NAME.json of a folder.

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
    """Print the business types of all shards, and where they differ; or the files of one type."""
    from simplu_worker.commands.types.business_types import show_types

    return common.run(show_types, name)


@types.command(name="check")
def check_types(folder: Path, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """Check the files of a folder, and count the resources on all shards that they do not know or would refuse."""
    from simplu_worker.commands.types.business_types import check_types

    return common.run(check_types, folder)
