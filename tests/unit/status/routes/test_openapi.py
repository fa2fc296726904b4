from __future__ import annotations

import re
from typing import Any

import pytest
from support.requires import ROOT

from simplu_worker.shards.lookups import LoggedOperation, RejectedRequest
from simplu_worker.status.message_schemas import OPENAPI_SCHEMAS as SCHEMAS
from simplu_worker.status.message_schemas import describe
from simplu_worker.status.roles import for_viewers
from simplu_worker.status.routes import PLACES, ROUTES, Access, Answer, Route

DESCRIPTION = describe("1.2.3")


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list | tuple) else set()


def test_every_route_is_described_once() -> None:
    described = {
        (method.upper(), path): operation["operationId"]
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
    }
    assert described == {(route.method, route.path): route.name for route in ROUTES}
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert DESCRIPTION["info"]["version"] == "1.2.3"


def test_references_lead_to_schemas() -> None:
    used = {one.removeprefix("#/components/schemas/") for one in references(DESCRIPTION)}
    assert used == SCHEMAS.keys()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_refusals_are_described(route: Route) -> None:
    responses = DESCRIPTION["paths"][route.path][route.method.lower()]["responses"]
    assert ({"401", "403"} <= responses.keys()) == (route.access is not Access.ALL)
    assert route.answer is Answer.AT_ONCE or "503" in responses
    assert set(route.places) <= PLACES.keys()
    parameters = DESCRIPTION["paths"][route.path][route.method.lower()].get("parameters", [])
    assert all(one["description"] for one in parameters)


def test_members_of_an_operation_are_described() -> None:
    members = {*LoggedOperation.__struct_encode_fields__, *RejectedRequest.__struct_encode_fields__}
    assert members <= SCHEMAS["Operation"]["properties"].keys()


def sample(schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return sample(SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return sample(schema["anyOf"][0])
    values = {"string": "text", "array": [], "object": {}, "boolean": True, "number": 1.0, "integer": 1}
    return schema["enum"][0] if "enum" in schema else values[schema["type"]]


@pytest.mark.parametrize("name", ["Status", "Fleet", "Tenant", "NoTenant", "Operation", "Handler"])
def test_required_members_stay_for_viewers(name: str) -> None:
    schema = SCHEMAS[name]
    answer = {member: sample(schema["properties"][member]) for member in schema["required"]}
    assert for_viewers(200, answer).keys() == answer.keys()


def test_page_has_every_path() -> None:
    page = (ROOT / "docs" / "outcomes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:[A-Z]+ )?(/[\w/{}.-]*)[^`]*`", page))
    assert {route.path for route in ROUTES} - named == set()
