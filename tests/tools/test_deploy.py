"""What is in deploy/ is true: judged by the programs that will read it, and by the metrics the worker has."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY
from support.exported_metrics import metric_names
from support.requires import ROOT, required_program

from simplu_worker.config.loading import KNOWN_VARIABLES
from simplu_worker.config.settings import SECRETS, VARIABLES

DEPLOY = ROOT / "deploy"
SYSTEMD = DEPLOY / "systemd"
UNIT, TEMPLATE = SYSTEMD / "simplu-worker.service", SYSTEMD / "simplu-worker@.service"
UNITS = pytest.mark.parametrize("unit", [UNIT, TEMPLATE], ids=["unit", "template"])
DROP_IN = SYSTEMD / "simplu-worker.service.d" / "credentials.conf"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
ALERTS_TEST = DEPLOY / "prometheus" / "alerts_test.yaml"
ALERTMANAGER = DEPLOY / "prometheus" / "alertmanager.yaml"
AMTOOL_HOW = "apt-get install --no-install-recommends prometheus-alertmanager"
MANIFESTS = [path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) if path.name != "kustomization.yaml"]
KEYS_OF_EVERY_ALERT = ("severity", "runbook_url", "summary", "description")
TOOLS_HOW = "python3 run.py tools"


def judge(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=180)


def unit_in(folder: Path, unit: Path = UNIT, *, add: str = "") -> Path:
    """Copy *unit* to *folder* with a program that exists everywhere, which is what is looked up, and with *add*.

    The drop-in is beside it; a template gets an instance.
    """
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
    copy = folder / unit.name
    copy.write_text(text.replace("[Service]\n", f"[Service]\n{add}\n"))
    shutil.copytree(DROP_IN.parent, folder / f"{unit.name}.d")
    return copy.with_name(unit.name.replace("@.", "@a."))


def complaints(unit: Path) -> list[str]:
    """Return what systemd-analyze says about *unit*; it reports an unknown key with exit status 0."""
    program = required_program("systemd-analyze", how="apt-get install --no-install-recommends systemd")
    said = judge(program, "verify", str(unit)).stderr
    return [line for line in said.splitlines() if "simplu" in line or str(unit.parent) in line]


def alert_names(path: Path, key: str) -> list[str]:
    return re.findall(rf"\b{key}: (\w+)", path.read_text())


def test_dockerfile_passes_hadolint() -> None:
    done = judge(required_program("hadolint", how=TOOLS_HOW), "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_dockerfile_runs_the_worker_as_a_numbered_user() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^(?:USER|ENTRYPOINT|CMD) .*$", text, flags=re.MULTILINE) == [
        "USER 65532:65532",
        'ENTRYPOINT ["simplu-worker"]',
        'CMD ["run"]',
    ]


def test_settings_of_the_base_are_variables_of_the_worker() -> None:
    settings = yaml.safe_load((DEPLOY / "kubernetes" / "configmap.yaml").read_text())["data"]
    secrets = yaml.safe_load((DEPLOY / "kubernetes" / "secret.example.yaml").read_text())
    assert settings.keys() <= KNOWN_VARIABLES - {*SECRETS}
    assert secrets["stringData"].keys() <= {*SECRETS}
    external = yaml.safe_load((DEPLOY / "helm" / "external-secret.example.yaml").read_text())
    assert external["spec"]["target"]["name"] == secrets["metadata"]["name"]
    assert {one["secretKey"] for one in external["spec"]["data"]} == secrets["stringData"].keys()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_is_valid(path: Path) -> None:
    done = judge(required_program("kubernetes-validate", how=TOOLS_HOW), "--strict", "--quiet", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_kustomization_lists_every_manifest_but_the_example() -> None:
    text = (DEPLOY / "kubernetes" / "kustomization.yaml").read_text()
    listed = re.findall(r"^  - ([\w.-]+\.yaml)$", text, flags=re.MULTILINE)
    assert {path.name for path in MANIFESTS} - {"secret.example.yaml"} == set(listed)


@UNITS
def test_unit_passes_systemd(unit: Path, tmp_path: Path) -> None:
    assert complaints(unit_in(tmp_path, unit)) == []


@UNITS
def test_unit_is_hardened(unit: Path, tmp_path: Path) -> None:
    program = required_program("systemd-analyze", how="apt-get install --no-install-recommends systemd")
    path = unit_in(tmp_path, unit).with_name(unit.name)
    done = judge(program, "security", "--offline=true", "--threshold=12", "--no-pager", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_template_is_the_unit_with_an_environment_of_its_own() -> None:
    unit, template = (path.read_text().partition("[Unit]\n")[2].splitlines() for path in (UNIT, TEMPLATE))
    changes = [line for line in difflib.ndiff(unit, template) if line[0] in "+-"]
    assert changes == [
        "- Description=simplu-worker: operations from Kinesis and SQS to Postgres shards",
        "+ Description=simplu-worker %i: operations from Kinesis and SQS to Postgres shards",
        "+ EnvironmentFile=/etc/simplu-worker/%i.env",
    ]


def test_credentials_of_the_drop_in_are_secrets_of_the_worker() -> None:
    text = DROP_IN.read_text()
    loaded = re.findall(r"^LoadCredential=(\w+):/etc/simplu-worker/credentials/(\w+)$", text, flags=re.MULTILINE)
    named = re.findall(r"^Environment=(\w+)_FILE=%d/(\w+)$", text, flags=re.MULTILINE)
    assert loaded == named
    assert {name for pair in loaded for name in pair} <= {*SECRETS}


def test_units_leave_more_time_than_a_drain_takes() -> None:
    values = dict(
        re.findall(r"^(TimeoutStopSec|WatchdogSec|RestartPreventExitStatus)=(\d+)$", UNIT.read_text(), re.MULTILINE)
    )
    assert int(values["TimeoutStopSec"]) >= VARIABLES["SHUTDOWN_GRACE_SECONDS"].default + 15
    assert (values["WatchdogSec"], values["RestartPreventExitStatus"]) == ("30", "78")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("check", "rules", ALERTS.name), ("test", "rules", ALERTS_TEST.name)])
def test_alerts_pass_promtool(command: tuple[str, ...]) -> None:
    program = required_program("promtool", how="apt-get install --no-install-recommends prometheus")
    done = judge(program, *command, cwd=ALERTS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_each_tested_firing_and_silent() -> None:
    text = ALERTS_TEST.read_text()
    names = set(alert_names(ALERTS, "alert"))
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", text))
    firing = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", text))
    assert (names, names) == (silent, firing)


def test_alerts_say_how_bad_and_what_to_do() -> None:
    text = ALERTS.read_text()
    count = len(alert_names(ALERTS, "alert"))
    assert [count] * len(KEYS_OF_EVERY_ALERT) == [
        len(re.findall(rf"^ +{key}: ", text, re.MULTILINE)) for key in KEYS_OF_EVERY_ALERT
    ]


def test_alerts_name_only_metrics_the_worker_has() -> None:
    named = set(re.findall(r"simplu_[a-z_]+", ALERTS.read_text() + ALERTS_TEST.read_text()))
    families = {family.name for family in REGISTRY.collect()}  # texts name a histogram without its suffixes
    assert set() == named - metric_names() - families


def test_alerts_keep_fleets_apart() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found = [
        (rule["alert"], labels)
        for rule in group["rules"]
        for labels in re.findall(r"\b(?:sum|min|max|avg|count|on)\b(?: by)?(.{6})", rule["expr"])
    ]
    assert len(found) > 40
    assert [one for one in found if not one[1].startswith(" (job")] == []


def test_alertmanager_example_keeps_fleets_apart() -> None:
    settings = yaml.safe_load(ALERTMANAGER.read_text())
    routes = [settings["route"], *settings["route"]["routes"]]
    assert [one for one in routes if "job" not in one["group_by"]] == []
    assert [one for one in settings["inhibit_rules"] if "job" not in one["equal"]] == []


def test_alertmanager_example_passes_amtool() -> None:
    done = judge(required_program("amtool", how=AMTOOL_HOW), "check-config", str(ALERTMANAGER))
    assert done.returncode == 0, done.stdout + done.stderr
