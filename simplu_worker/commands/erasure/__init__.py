"""The command line of `tenants erase-resource`, above the commands of tenants and of dead letters."""

from __future__ import annotations

from simplu_worker.commands.command_line import NO_OPTIONS, Apply, CommonOptions


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
    """Erase a person's resource: its row, and what results in the log and dead letters have of it."""
    from simplu_worker.commands.erasure.command import erase_resource
    from simplu_worker.transfers.erasing import Erasure

    erasure = Erasure(business, location, resource_type, resource_id)
    return common.run(lambda settings: erase_resource(settings, erasure, apply=apply, as_json=common.as_json))
