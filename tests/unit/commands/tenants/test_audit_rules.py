"""What an audit finds to differ, and what a bulk provisioning does about it."""

from __future__ import annotations

import pytest

from simplu_worker.commands.tenants.inventory import ProvisionStep, plan_tenant
from simplu_worker.commands.tenants.rules import (
    AuditedRow,
    AuditSubject,
    BusinessListing,
    DifferenceKind,
    find_differences,
)
from simplu_worker.vocabulary import TenantState

DENTAL, CLOSED, SPA = BusinessListing("dental"), BusinessListing("dental", is_active=False), BusinessListing("spa")
TYPES = ("dental", "gym")


def row(
    shard_id: str = "s1", state: str = "active", *, name: tuple[str, str] = ("a", "b-c"), kind: str = "dental"
) -> AuditedRow:
    return AuditedRow(shard_id, *name, kind, TenantState(state))


def subject(
    listing: BusinessListing | None = DENTAL,
    *rows: AuditedRow,
    named: str | None = "s1",
    refusal: str | None = None,
    silent: tuple[str, ...] = (),
) -> AuditSubject:
    return AuditSubject("a", "b-c", listing, rows, named, refusal, silent)


OTHER = ("a-b", "c")


@pytest.mark.parametrize(
    ("tenant", "kinds"),
    [
        pytest.param(subject(DENTAL, row()), [], id="all agree"),
        pytest.param(subject(DENTAL, row(state="fenced")), [], id="on the move"),
        pytest.param(subject(DENTAL, row(state="moved"), row("s2"), named="s2"), [], id="moved"),
        pytest.param(subject(DENTAL, row(), row("s2", "incoming")), [], id="coming"),
        pytest.param(subject(DENTAL, row("s2", "destroyed"), row()), [], id="an old row elsewhere"),
        pytest.param(subject(DENTAL), [DifferenceKind.NO_ROW], id="registered, not made"),
        pytest.param(
            subject(DENTAL, named=None), [DifferenceKind.NO_ROW, DifferenceKind.NOT_IN_CITRUS], id="listed only"
        ),
        pytest.param(subject(DENTAL, row(), named=None), [DifferenceKind.NOT_IN_CITRUS], id="forgotten by Citrus"),
        pytest.param(subject(DENTAL, row("s2")), [DifferenceKind.SHARD_DIFFERS], id="lives elsewhere"),
        pytest.param(subject(DENTAL, row(), row("s2")), [DifferenceKind.TWO_HOMES], id="split"),
        pytest.param(
            subject(DENTAL, row("s2"), row("s3")),
            [DifferenceKind.TWO_HOMES, DifferenceKind.SHARD_DIFFERS],
            id="split elsewhere",
        ),
        pytest.param(subject(DENTAL, row(kind="gym")), [DifferenceKind.TYPE_DIFFERS], id="another type"),
        pytest.param(subject(SPA, row(kind="spa")), [DifferenceKind.UNKNOWN_TYPE], id="an unknown type"),
        pytest.param(subject(DENTAL, row(state="destroyed")), [DifferenceKind.DESTROYED], id="destroyed and listed"),
        pytest.param(
            subject(DENTAL, row(state="destroying")), [DifferenceKind.DESTROYED], id="being destroyed and listed"
        ),
        pytest.param(subject(DENTAL, row(state="moved")), [DifferenceKind.NO_ROW], id="moved to nowhere"),
        pytest.param(subject(DENTAL, row(name=OTHER)), [DifferenceKind.ID_TAKEN], id="taken"),
        pytest.param(subject(CLOSED, row(name=OTHER)), [], id="taken and closed"),
        pytest.param(
            subject(CLOSED, row(), row("s2", name=OTHER)),
            [DifferenceKind.ID_TAKEN, DifferenceKind.LOCATION_INACTIVE],
            id="taken, closed and alive",
        ),
        pytest.param(subject(None), [], id="nowhere"),
        pytest.param(subject(None, row(name=OTHER)), [], id="another's, not listed"),
        pytest.param(subject(None, row(state="destroying")), [], id="not listed and ending"),
        pytest.param(
            subject(DENTAL, row(state="destroyed"), named=None),
            [DifferenceKind.DESTROYED],
            id="destroyed, forgotten",
        ),
        pytest.param(
            subject(DENTAL, row(state="destroyed"), row("s2")), [DifferenceKind.SHARD_DIFFERS], id="alive elsewhere"
        ),
        pytest.param(subject(CLOSED, row()), [DifferenceKind.LOCATION_INACTIVE], id="closed and alive"),
        pytest.param(subject(CLOSED, named=None), [], id="closed"),
        pytest.param(subject(CLOSED, row(state="destroying")), [], id="closed and ending"),
        pytest.param(subject(None, row()), [DifferenceKind.NOT_IN_BUSINESS_INFO], id="not listed"),
        pytest.param(
            subject(None, row(), named=None),
            [DifferenceKind.NOT_IN_BUSINESS_INFO, DifferenceKind.NOT_IN_CITRUS],
            id="not listed, not registered",
        ),
        pytest.param(
            subject(DENTAL, row(), named=None, refusal="host x"), [DifferenceKind.ADDRESS_REFUSED], id="a bad address"
        ),
        pytest.param(subject(DENTAL, silent=("s2",)), [], id="perhaps on a silent shard"),
    ],
)
def test_differences_name_what_differs(tenant: AuditSubject, kinds: list[DifferenceKind]) -> None:
    found = find_differences(tenant, known_types=TYPES)
    assert [difference.kind for difference in found] == kinds
    assert {(one.business_id, one.location_id) for one in found} <= {("a", "b-c")}
    assert all(difference.detail for difference in found)


def test_differences_tell_where_and_whose() -> None:
    rows = (row("s2", kind="gym"), row("s3", name=OTHER))
    details = [one.detail for one in find_differences(subject(DENTAL, *rows), known_types=TYPES)]
    assert details == [
        "shard s3 has its id a-b-c for business a-b, location c",
        "its home is on shard s2, and it is routed to s1",
        "business-info has dental, its shard gym",
    ]


@pytest.mark.parametrize(
    ("tenant", "step"),
    [
        pytest.param(subject(DENTAL), ProvisionStep.MAKE, id="nowhere"),
        pytest.param(subject(DENTAL, row()), None, id="there"),
        pytest.param(subject(DENTAL, row("s2")), None, id="there, elsewhere"),
        pytest.param(subject(DENTAL, row(), silent=("s2",)), None, id="there, with a silent shard"),
        pytest.param(subject(DENTAL, silent=("s2",)), ProvisionStep.UNKNOWN, id="perhaps there"),
        pytest.param(subject(DENTAL, row(state="destroyed")), ProvisionStep.LEFT, id="destroyed"),
        pytest.param(subject(DENTAL, row("s2", "destroyed")), ProvisionStep.LEFT, id="destroyed elsewhere"),
        pytest.param(subject(DENTAL, row(state="destroying")), ProvisionStep.LEFT, id="being destroyed"),
        pytest.param(subject(DENTAL, row(state="incoming")), ProvisionStep.LEFT, id="on its way"),
        pytest.param(subject(DENTAL, row(name=OTHER)), ProvisionStep.REFUSED, id="taken"),
        pytest.param(subject(SPA), ProvisionStep.REFUSED, id="an unknown type"),
    ],
)
def test_plan_makes_only_what_no_shard_has(tenant: AuditSubject, step: ProvisionStep | None) -> None:
    planned = plan_tenant(tenant, TYPES)
    assert (None if planned is None else planned.step) is step


@pytest.mark.parametrize(
    ("tenant", "detail"),
    [
        (subject(DENTAL, named=None), "no shard has its row"),
        (subject(DENTAL, row(state="moved"), named=None), "no shard has its row; only a row that is moved"),
        (subject(DENTAL), "it is routed to shard s1, and no shard has its row"),
        (
            subject(DENTAL, row(state="moved")),
            "it is routed to shard s1, and no shard has its row; only a row that is moved",
        ),
    ],
)
def test_missing_row_is_described_with_route_and_other_rows(tenant: AuditSubject, detail: str) -> None:
    found = find_differences(tenant, known_types=TYPES)
    assert detail in [one.detail for one in found if one.kind is DifferenceKind.NO_ROW]
