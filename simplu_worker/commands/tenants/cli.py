"""The command line of `tenants`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from simplu_worker.commands.command_line import NO_OPTIONS, Apply, CommonOptions, Flag, UsageError

tenants = App(name="tenants", help="Show, create and audit tenants.")


@tenants.command(name="list")
def list_tenants(*, common: CommonOptions = NO_OPTIONS) -> int:
    """Print the tenants of all shards."""
    from simplu_worker.commands.tenants.show import list_tenants

    return common.run(lambda settings: list_tenants(settings, as_json=common.as_json))


@tenants.command(name="show")
def show_tenant(business: str, location: str, /, *, common: CommonOptions = NO_OPTIONS) -> int:
    """Print the rows that the shards have of one tenant, and the shard it is routed to."""
    from simplu_worker.commands.tenants.show import show_tenant

    return common.run(lambda settings: show_tenant(settings, business, location, as_json=common.as_json))


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
    """Register a tenant and create it on its shard, unless it exists; or do so for all that business-info lists.

    Parameters
    ----------
    business_type
        The business type, such as dental.
    from_business_info
        Plan to create every tenant of business-info that no shard has.
    """
    from simplu_worker.commands.tenants.provision import provision_listed, provision_tenant

    if from_business_info and (business, location, business_type) == (None, None, None):
        return common.run(lambda settings: provision_listed(settings, apply=apply, as_json=common.as_json))
    if from_business_info or apply or business is None or location is None or business_type is None:
        raise UsageError("tenants provision: expected BUSINESS LOCATION --type TYPE, or --from-business-info [--apply]")
    return common.run(
        lambda settings: provision_tenant(settings, business, location, business_type, as_json=common.as_json)
    )


@tenants.command(name="audit")
def audit_tenants(*, common: CommonOptions = NO_OPTIONS) -> int:
    """Compare business-info, Citrus and the tenants of all shards; print the differences."""
    from simplu_worker.commands.tenants.audit import audit_tenants

    return common.run(lambda settings: audit_tenants(settings, as_json=common.as_json))
