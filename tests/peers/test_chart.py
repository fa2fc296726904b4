"""The Helm chart: rendered by Helm itself with each part of its values, and held against the schemas."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.chart.render import (
    CHART,
    Manifest,
    chart_arguments,
    custom_resource_problems,
    helm,
    merged,
    of_kind,
    query_problems,
    render,
    schema_problems,
)
from support.requires import ROOT

from simplu_worker.config.loading import KNOWN_VARIABLES

BASE = ROOT / "deploy" / "kubernetes"
STREAM = {"KINESIS_STREAM_NAME": "resources-operations", "PREFETCH_MAX_BYTES": 134217728}
QUEUE = {"SQS_ORDER_EVENTS_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/000000000000/orders"}
CITRUS = {"CITRUS_SERVER_URL": "http://citrus:8080"}
ROLE = "arn:aws:iam::000000000000:role/simplu-worker"
SECRET_FILE = {"API_TOKEN": {"secret": "tokens", "key": "api"}}
MINIMAL = {"settings": STREAM | CITRUS}
VALUE, VARIABLE, SECRET = (
    f"expected the name of a {kind}, got another; did you mean"
    for kind in ("value of the chart", "variable of the worker", "secret variable of the worker")
)
# What each name in a row of the combinations stands for.
Row = dict[str, str]
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "source": {
        "stream": {"settings": STREAM},
        "queues": {"settings": QUEUE},
        "both": {"settings": STREAM | QUEUE | {"SHUTDOWN_GRACE_SECONDS": 90, "LOG_LEVEL": "debug"}},
    },
    "shards": {
        "citrus": {"settings": CITRUS},
        "map": {"shardMap": {"secret": "map", "key": "map.json"}, "feed": {"secret": "feed"}},
    },
    "tls": {"off": {}, "on": {"tls": {"secret": "certificate"}}},
    "secrets": {
        "none": {},
        "environment": {"secrets": {"environment": ["one", "other"]}},
        "files": {"secrets": {"files": SECRET_FILE}},
        "both": {"secrets": {"environment": ["one"], "files": SECRET_FILE}},
    },
    "scaling": {
        "none": {"replicas": 0},
        "keda": {"autoscaling": {"kind": "keda", "openStreamShards": 4}},
        "keda with a login": {
            "autoscaling": {
                "kind": "keda",
                "openStreamShards": 64,
                "prometheus": {"authentication": "mimir", "matchers": 'job="worker"'},
            }
        },
        "hpa": {"autoscaling": {"kind": "hpa", "openStreamShards": 8}},
        "hpa with metrics": {"autoscaling": {"kind": "hpa", "openStreamShards": 8, "hpa": {"external": True}}},
    },
    "monitoring": {
        "annotations": {},
        "pods": {"monitoring": {"kind": "podMonitor", "labels": {"release": "prometheus"}}},
        "service": {"monitoring": {"kind": "serviceMonitor"}, "nameOverride": "work"},
        "none": {"monitoring": {"kind": "none"}},
    },
    "aws": {
        "node": {},
        "irsa": {"aws": {"identity": "irsa", "roleArn": ROLE}},
        "pod identity": {"aws": {"identity": "pod-identity"}},
    },
    "account": {
        "created": {},
        "annotated": {"serviceAccount": {"name": "mine", "annotations": {"team": "shards"}}},
        "given": {"serviceAccount": {"create": False, "name": "theirs"}},
    },
    "network": {
        "open": {},
        "scrapers": {"networkPolicy": {"enabled": True}},
        "closed": {"networkPolicy": {"enabled": True, "scrapers": [], "egress": {"restricted": True, "ports": []}}},
    },
    "placing": {
        "usual": {},
        "chosen": {
            "topology": {"keys": [], "whenUnsatisfiable": "DoNotSchedule"},
            "nodeSelector": {"kubernetes.io/arch": "arm64"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "high",
            "podLabels": {"team": "shards"},
            "podAnnotations": {"note": "yes"},
            "podDisruptionBudget": {"maxUnavailable": "30%"},
            "image": {"tag": "main", "pullSecrets": ["registry"]},
        },
        "without a budget": {"podDisruptionBudget": {"enabled": False}},
    },
}
# As many as the most parts that a dimension has, in two orders: each part twice at least, beside others.
ROWS: list[Row] = [
    {name: [*parts][(turn + order * place) % len(parts)] for place, (name, parts) in enumerate(PARTS.items())}
    for order in (0, 1)
    for turn in range(max(map(len, PARTS.values())))
]


def values_of(row: Row) -> dict[str, Any]:
    return merged(*(PARTS[name][value] for name, value in row.items()))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[list[Manifest]]:
    return [render(values_of(row), tmp_path_factory.mktemp("values")) for row in ROWS]


def queries_of(manifests: list[Manifest]) -> dict[str, str]:
    triggers = of_kind(manifests, "ScaledObject")["spec"]["triggers"]
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in triggers}


def test_helm_lint_has_no_complaint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 chart(s) failed" in done.stdout


def test_manifests_of_each_part_fit_the_schemas(rendered: list[list[Manifest]], tmp_path: Path) -> None:
    everything = [manifest for manifests in rendered for manifest in manifests]
    assert schema_problems(everything, tmp_path) == ""
    assert {manifest["kind"] for manifest in everything} == {
        *("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor"),
        *("ScaledObject", "Service", "ServiceAccount", "ServiceMonitor"),
    }


def test_example_of_external_secrets_fits_its_schema() -> None:
    assert custom_resource_problems(ROOT / "deploy" / "helm" / "external-secret.example.yaml") == ""


def test_names_and_labels_meet(rendered: list[list[Manifest]]) -> None:
    for row, manifests in zip(ROWS, rendered, strict=True):
        deployment = of_kind(manifests, "Deployment")
        pod = deployment["spec"]["template"]
        labels = pod["metadata"]["labels"].items()
        names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
        assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"resources"}
        for manifest in manifests:
            spec = manifest.get("spec", {})
            selector = spec.get("selector", spec.get("podSelector", {}))
            wanted = selector.get("matchLabels", selector)
            if manifest["kind"] == "ServiceMonitor":
                labels_found = of_kind(manifests, "Service")["metadata"]["labels"].items()
                assert wanted.items() <= labels_found, row
            else:
                assert wanted.items() <= labels, row
            if target := spec.get("scaleTargetRef"):
                assert ("Deployment", target["name"]) in names, row
        account = pod["spec"]["serviceAccountName"]
        assert row["account"] == "given" or ("ServiceAccount", account) in names
        assert ("ConfigMap", pod["spec"]["containers"][0]["envFrom"][0]["configMapRef"]["name"]) in names


def test_variables_are_those_of_the_worker(rendered: list[list[Manifest]]) -> None:
    for manifests in rendered:
        data = of_kind(manifests, "ConfigMap")["data"]
        mounts = [
            mount["mountPath"] + "/"
            for mount in of_kind(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0].get(
                "volumeMounts", []
            )
        ]
        assert data.keys() <= KNOWN_VARIABLES
        assert data.get("PREFETCH_MAX_BYTES", "134217728") == "134217728"
        files = [value for name, value in data.items() if name.endswith("_FILE")]
        assert [path for path in files if not any(path.startswith(mount) for mount in mounts)] == []


def test_ports_of_policy_and_monitors_are_the_container_s(tmp_path: Path) -> None:
    settings = {"settings": STREAM | CITRUS | {"HTTP_PORT": 9090}, "networkPolicy": {"enabled": True}}
    for kind, list_name in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
        monitoring = {"monitoring": {"kind": kind[0].lower() + kind[1:]}}
        manifests = render(merged(settings, monitoring), tmp_path)
        (container,) = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports == {"http": 9090}
        (rule,) = of_kind(manifests, "NetworkPolicy")["spec"]["ingress"]
        assert {one["port"] for one in rule["ports"]} == {*ports}
        assert {one["port"] for one in of_kind(manifests, kind)["spec"][list_name]} == {*ports}
        probes = [container[name]["httpGet"]["port"] for name in container if name.endswith("Probe")]
        assert {*probes} == {*ports}
        if kind == "ServiceMonitor":
            (port,) = of_kind(manifests, "Service")["spec"]["ports"]
            assert (port["name"], port["port"], port["targetPort"]) == ("http", 9090, "http")


@pytest.mark.parametrize("kind", ["annotations", "podMonitor", "serviceMonitor"])
def test_probes_and_scrapers_use_https_where_it_is_served(kind: str, tmp_path: Path) -> None:
    own = {"settings": {"HTTP_TLS_CERT_FILE": "/etc/tls/tls.crt", "HTTP_TLS_KEY_FILE": "/etc/tls/tls.key"}}
    for tls, scheme in (({}, None), ({"tls": {"secret": "certificate"}}, "HTTPS"), (own, "HTTPS")):
        manifests = render(merged(MINIMAL, {"monitoring": {"kind": kind}}, tls), tmp_path)
        template = of_kind(manifests, "Deployment")["spec"]["template"]
        (container,) = template["spec"]["containers"]
        probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
        assert [probe.get("scheme") for probe in probes] == [scheme] * 3
        names = [one["name"] for one in container.get("env", [])]
        assert names == (["HTTP_TLS_CERT_FILE", "HTTP_TLS_KEY_FILE"] if "tls" in tls else [])
        match kind:
            case "annotations":
                scraped = template["metadata"]["annotations"].get("prometheus.io/scheme")
            case "podMonitor":
                scraped = of_kind(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"][0].get("scheme")
            case _:
                scraped = of_kind(manifests, "ServiceMonitor")["spec"]["endpoints"][0].get("scheme")
        assert scraped == (scheme and scheme.lower())


def test_values_of_the_page_make_the_chart_that_it_describes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    deployment, scaling = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert deployment["secrets"]["environment"] == [
        yaml.safe_load((BASE / "secret.example.yaml").read_text(encoding="utf-8"))["metadata"]["name"]
    ]
    render(deployment, tmp_path)
    manifests = render(merged(deployment, scaling), tmp_path)
    assert schema_problems(manifests, tmp_path) == ""
    names = ", ".join(f"{one['kind']} {one['metadata']['name']}" for one in manifests)
    record_property("note", f"The chart with the values of docs/kubernetes.md: {names}")


def test_drain_fits_the_time_that_a_pod_has(rendered: list[list[Manifest]]) -> None:
    for manifests in rendered:
        grace_s = int(of_kind(manifests, "ConfigMap")["data"].get("SHUTDOWN_GRACE_SECONDS", "25"))
        pod = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == grace_s + 15


def test_pods_are_restricted(rendered: list[list[Manifest]]) -> None:
    for manifests in rendered:
        pod = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
        assert {volume_kind for volume in pod.get("volumes", []) for volume_kind in volume} <= {
            *("name", "projected", "secret")
        }


def test_queries_count_late_shards_messages_and_cpu(tmp_path: Path) -> None:
    settings = {"settings": STREAM | QUEUE | CITRUS, "autoscaling": {"kind": "keda", "openStreamShards": 4}}
    own, other = 'namespace="resources",pod="applier-7-a"', 'namespace="resources",pod="applier-7-b"'
    foreign = 'namespace="resources",pod="web-1"'
    series = {
        f'simplu_kinesis_lag_seconds{{{own},stream_shard="s0"}}': "900x20",
        f'simplu_kinesis_lag_seconds{{{other},stream_shard="s0"}}': "0x20",
        f'simplu_kinesis_lag_seconds{{{other},stream_shard="s1"}}': "30x20",
        f'simplu_kinesis_lag_seconds{{{foreign},stream_shard="s2"}}': "900x20",
        f'simplu_sqs_queue_depth{{{own},queue="orders"}}': "4000x20",
        f'simplu_sqs_queue_depth{{{other},queue="orders"}}': "5000x20",
        f'process_cpu_seconds_total{{{own},job="w",instance="a"}}': "0+7.5x20",
        f'process_cpu_seconds_total{{{other},job="w",instance="b"}}': "0+3x20",
        f'process_cpu_seconds_total{{{own},job="sidecar",instance="c"}}': "0+9x20",
        f'simplu_build_info{{{own},job="w",instance="a"}}': "1x20",
        f'simplu_build_info{{{other},job="w",instance="b"}}': "1x20",
    }
    queries = queries_of(render(settings, tmp_path))
    expected = {"late-stream-shards": 1.5, "waiting-messages": 5000.0, "processor-time": 0.7}
    assert queries.keys() == expected.keys()
    assert query_problems(queries, series, expected, tmp_path) == ""
    # Without series there is no result, which KEDA takes for an error: nothing is taken away.
    assert query_problems(queries, {f"up{{{foreign}}}": "1x20"}, {}, tmp_path) == ""
    assert query_problems(queries, series, expected | {"processor-time": 0.5}, tmp_path) != ""


@pytest.mark.parametrize(
    ("shards", "most", "bound"), [(4, 16, 4), (64, 16, 16), (1, 16, 2)], ids=["few", "many", "one"]
)
@pytest.mark.parametrize("kind", ["keda", "hpa"])
def test_replicas_are_bounded_by_open_stream_shards(
    kind: str, shards: int, most: int, bound: int, tmp_path: Path
) -> None:
    scaling = {"kind": kind, "openStreamShards": shards, "maxReplicas": most}
    manifests = render(merged(MINIMAL, {"autoscaling": scaling}), tmp_path)
    specs = [one["spec"] for one in manifests if one["kind"] in {"ScaledObject", "HorizontalPodAutoscaler"}]
    assert [spec.get("maxReplicaCount", spec.get("maxReplicas")) for spec in specs] == [bound]
    assert "replicas" not in of_kind(manifests, "Deployment")["spec"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "settings: expected a source"),
        ({"settings": STREAM}, "settings: expected a way to find shards"),
        ({"aws": {"identity": "irsa"}}, "aws.roleArn: expected the ARN of a role"),
        ({"autoscaling": {"kind": "keda"}}, "autoscaling.openStreamShards: expected the number"),
        (
            {"autoscaling": {"kind": "hpa", "openStreamShards": 4, "scaleDownAfterSeconds": 10}},
            "autoscaling.scaleDownAfterSeconds: expected more than KINESIS_LEASE_DURATION_SECONDS (10), got 10",
        ),
        ({"autoscaling": {"kind": "keda", "openStreamShards": 4, "maxReplicas": 1}}, "autoscaling.maxReplicas"),
        ({"autoscaling": {"minReplicas": 0}}, "/autoscaling/minReplicas"),
        ({"settings": {"KINESIS_STREAM_NAM": "typo"}}, f"settings.KINESIS_STREAM_NAM: {VARIABLE} KINESIS_STREAM_NAME?"),
        ({"settings": {"API_TOKEN": "in the open"}}, "settings.API_TOKEN: expected a variable that is not secret"),
        ({"settings": {"API_TOKEN_FILE": "/token"}}, "settings.API_TOKEN_FILE: expected a variable that is not secret"),
        ({"settings": {"OTEL_EXPORTER_OTLP_HEADERS": "in the open"}}, "settings.OTEL_EXPORTER_OTLP_HEADERS: expected"),
        (
            {"secrets": {"files": {"API_TOKN": SECRET_FILE["API_TOKEN"]}}},
            f"secrets.files.API_TOKN: {SECRET} API_TOKEN?",
        ),
        ({"replicaCout": 3}, f"replicaCout: {VALUE} replicas?"),
        ({"image": {"repositry": "mine"}}, f"image.repositry: {VALUE} repository?"),
        ({"podLabel": {}}, f"podLabel: {VALUE} podLabels?"),
        ({"zzz": 1}, "zzz: expected the name of a value of the chart, got another; correct it or take it out"),
    ],
)
def test_mistakes_are_refused(values: dict[str, Any], problem: str, tmp_path: Path) -> None:
    whole = values if values in ({}, {"settings": STREAM}) else merged(MINIMAL, values)
    done = helm("template", *chart_arguments(whole, tmp_path))
    assert done.returncode != 0
    assert problem in done.stderr
    assert "in the open" not in done.stderr


def test_chart_and_base_run_the_same_pod(tmp_path: Path) -> None:
    manifests = render(MINIMAL | {"nameOverride": "simplu-worker", "topology": {"keys": [HOSTNAME]}}, tmp_path)
    for kind, file in (("Deployment", "deployment.yaml"), ("PodDisruptionBudget", "pod-disruption-budget.yaml")):
        base = yaml.safe_load((BASE / file).read_text(encoding="utf-8"))
        assert without_names(of_kind(manifests, kind)["spec"]) == without_names(base["spec"])


HOSTNAME = "kubernetes.io/hostname"


def without_names(value: Any) -> Any:
    if isinstance(value, list):
        kept = [without_names(one) for one in value]
        return [one for one in kept if one != {"secretRef": {"name": "simplu-worker"}}]
    if not isinstance(value, dict):
        return value
    dropped = {"matchLabels", "labels", "checksum/settings", "image", "imagePullPolicy"}
    return {name: without_names(one) for name, one in value.items() if name not in dropped}


def test_settings_change_restarts_the_replicas(tmp_path: Path) -> None:
    sums = [
        of_kind(render(merged(MINIMAL, {"settings": {"LOG_LEVEL": level}}), tmp_path), "Deployment")["spec"][
            "template"
        ]["metadata"]["annotations"]["checksum/settings"]
        for level in ("info", "debug", "info")
    ]
    assert sums[0] == sums[2] != sums[1]
