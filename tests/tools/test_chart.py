"""What can be known of the Helm chart without Helm; tests/peers/test_chart.py renders it."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES as AWS_SESSION
from support.exported_metrics import METRIC, metric_names
from support.requires import ROOT

from simplu_worker import __version__
from simplu_worker.config.loading import KNOWN_VARIABLES, find_misspellings
from simplu_worker.config.settings import SECRETS, VARIABLES

HELM = ROOT / "deploy" / "helm"
CHART = HELM / "simplu-worker"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
NAMES: dict[str, Any] = yaml.safe_load((CHART / "names.yaml").read_text(encoding="utf-8"))
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
TEXTS = [*(CHART / "templates").iterdir(), CHART / "values.yaml", HELM / "prometheus-adapter.values.yaml"]
HAS_ITS_OWN_VALUE = {"FEED_FILE", "SHARD_MAP_FILE"}
# Of every AWS client: for calls, for credentials, and all with which botocore's sessions choose addresses.
OF_AWS_CLIENTS = {
    *("AWS_CA_BUNDLE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"),
    *("AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL_STS"),
    *("AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *re.findall(r"\bAWS_\w*(?:ENDPOINT|METADATA|IMDS)\w*", str([one[1] for one in AWS_SESSION.values()])),
}


def test_names_are_the_variables_of_the_worker() -> None:
    files = {f"{name}_FILE" for name in SECRETS}
    assert set(NAMES["settings"]) == KNOWN_VARIABLES - {*SECRETS} - files - HAS_ITS_OWN_VALUE | OF_AWS_CLIENTS
    assert set(NAMES["secrets"]) == {*SECRETS}
    assert find_misspellings(OF_AWS_CLIENTS) == {}


def test_schema_has_every_value_and_no_other() -> None:
    assert members_of_schema(SCHEMA) - {"global"} == members_of_values(VALUES, SCHEMA)
    named = {f"{path}.{name}".strip(".") for path, names in NAMES["values"].items() for name in names}
    assert named == {path for path in members_of_schema(SCHEMA) if "*" not in path}


def members_of_schema(schema: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, inner in schema.get("properties", {}).items():
        found |= {prefix + name} | members_of_schema(inner, f"{prefix}{name}.")
    return found


def members_of_values(values: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in values.items():
        found.add(prefix + name)
        inner = schema.get("properties", {}).get(name, {})
        if isinstance(value, dict) and "properties" in inner:
            found |= members_of_values(value, inner, f"{prefix}{name}.")
    return found


def test_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_chart_names_only_variables_and_metrics_of_the_worker() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS)
    variables = set(re.findall(r"\b(?:AWS|KINESIS|SQS|CITRUS|DATABASE|FEED|HTTP|SHUTDOWN|SHARD)_[A-Z_]+\b", text))
    assert variables
    assert variables <= KNOWN_VARIABLES
    assert set(METRIC.findall(text)) <= metric_names()


def test_defaults_in_the_templates_are_those_of_the_worker() -> None:
    text = (CHART / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    defaults = dict(re.findall(r'get \.Values\.settings "(\w+)" \| default (\d+)', text))
    assert defaults.keys() == {"SHUTDOWN_GRACE_SECONDS", "KINESIS_LEASE_DURATION_SECONDS", "HTTP_PORT"}
    assert {name: VARIABLES[name].default for name in defaults} == {
        name: float(value) for name, value in defaults.items()
    }


def test_rules_of_the_adapter_are_the_queries_of_the_chart() -> None:
    adapter = yaml.safe_load((HELM / "prometheus-adapter.values.yaml").read_text(encoding="utf-8"))
    late_after_s = str(VALUES["autoscaling"]["lateAfterSeconds"])
    template = (CHART / "templates" / "scaledobject.yaml").read_text(encoding="utf-8")
    template = template.replace("{{ $scaling.lateAfterSeconds }}", late_after_s)
    queries = {
        name: query.replace("{ {{- $matchers -}} }", "{<<.LabelMatchers>>}")
        for name, query in re.findall(r"name: ([\w-]+)\n.*?query: (.*?)\n", template, flags=re.DOTALL)
    }
    rules = {rule["name"]["as"]: rule["metricsQuery"] for rule in adapter["rules"]["external"]}
    assert rules.items() <= queries.items()
    assert len(rules) == 2
    hpa = (CHART / "templates" / "horizontalpodautoscaler.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"metric:\n +name: ([\w-]+)", hpa)) == rules.keys()
