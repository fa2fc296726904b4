"""Check custom resources against the schemas of their definitions, members that these do not know included.

    python custom_resources.py FOLDER FILE ...

It runs in `.venv-tools`, which has jsonschema. Rules in CEL (`x-kubernetes-validations`) are for the API server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GROUPS = ("keda.sh", "monitoring.coreos.com", "external-secrets.io")
Schema = dict[str, Any]


def strict(schema: Any) -> Any:
    """Return an OpenAPI schema of Kubernetes as a JSON schema that refuses members it does not know."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: strict(value) for name, value in schema.items() if name != "properties"}
    if "properties" in schema:
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    return result


def schemas_in(definitions: list[Schema]) -> dict[tuple[str, str], Schema]:
    return {
        (f"{one['spec']['group']}/{version['name']}", one["spec"]["names"]["kind"]): strict(
            version["schema"]["openAPIV3Schema"]
        )
        for one in definitions
        for version in one["spec"]["versions"]
        if version["served"]
    }


def problems(schemas: dict[tuple[str, str], Schema], manifest: dict[str, Any]) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    key = (manifest["apiVersion"], manifest["kind"])
    if key not in schemas:
        yield f"{' '.join(key)}: expected one of {sorted(schemas)}"
        return
    for error in Draft202012Validator(schemas[key]).iter_errors(manifest):
        yield f"{key[1]} {'.'.join(map(str, error.absolute_path))}: {error.message}"


def main(folder: str, *files: str) -> int:
    """Print the problems of all *files*; return 1 if there are any."""
    import yaml

    definitions = [
        one
        for path in sorted(Path(folder).glob("*.yaml"))
        for one in yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        if one
    ]
    schemas = schemas_in(definitions)
    found = [
        problem
        for path in files
        for manifest in yaml.safe_load_all(Path(path).read_text(encoding="utf-8"))
        if manifest
        for problem in problems(schemas, manifest)
    ]
    print(*found, sep="\n")  # noqa: T201 - for the test that runs it
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
