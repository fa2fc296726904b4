"""What is in deploy/ is true: judged by the programs that will read it, and by the metrics the worker has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from support.exported_metrics import metric_names
from support.requires import ROOT, required_program

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "simplu-worker.service"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
ALERTS_TEST = DEPLOY / "prometheus" / "alerts_test.yaml"
ALERTMANAGER = DEPLOY / "prometheus" / "alertmanager.yaml"
AMTOOL_HOW = "apt-get install --no-install-recommends prometheus-alertmanager"
MANIFESTS = [path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) if path.name != "kustomization.yaml"]
KEYS_OF_EVERY_ALERT = ("severity", "runbook_url", "summary", "description")
TOOLS_HOW = "python3 run.py tools"


def judge(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a checker and return what it said."""
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)


def unit_in(folder: Path, *, add: str = "") -> Path:
    """Copy the unit to *folder* with a program that exists everywhere, which is what is looked up, and with *add*."""
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    copy = folder / UNIT.name
    copy.write_text(text.replace("[Service]\n", f"[Service]\n{add}\n"))
    return copy


def complaints(unit: Path) -> list[str]:
    """Return what systemd-analyze says about *unit*; it reports an unknown key with exit status 0."""
    program = required_program("systemd-analyze", how="apt-get install --no-install-recommends systemd")
    said = judge(program, "verify", str(unit)).stderr
    return [line for line in said.splitlines() if unit.name in line or str(unit.parent) in line]


def alert_names(path: Path, key: str) -> list[str]:
    """Return the values of *key* in the YAML file *path*, in order."""
    return re.findall(rf"\b{key}: (\w+)", path.read_text())


def test_dockerfile_passes_hadolint() -> None:
    """The Dockerfile follows hadolint's rules without exception."""
    done = judge(required_program("hadolint", how=TOOLS_HOW), "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_dockerfile_runs_the_worker_as_a_numbered_user() -> None:
    """Process 1 is the worker itself, in exec form, and Kubernetes can tell that it is not root."""
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^(?:USER|ENTRYPOINT|CMD) .*$", text, flags=re.MULTILINE) == [
        "USER 65532:65532",
        'ENTRYPOINT ["simplu-worker"]',
        'CMD ["run"]',
    ]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_is_valid(path: Path) -> None:
    """Each manifest has only members Kubernetes knows, with values of their types."""
    done = judge(required_program("kubernetes-validate", how=TOOLS_HOW), "--strict", "--quiet", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_manifest_with_a_wrong_type_is_refused(tmp_path: Path) -> None:
    """The check above has teeth."""
    program = required_program("kubernetes-validate", how=TOOLS_HOW)
    text = (DEPLOY / "kubernetes" / "deployment.yaml").read_text()
    (tmp_path / "deployment.yaml").write_text(text.replace("replicas: 2", 'replicas: "2"'))
    assert judge(program, "--strict", "--quiet", str(tmp_path / "deployment.yaml")).returncode != 0


def test_deployment_has_no_variables_of_services() -> None:
    """A service called "database" would set DATABASE_PORT."""
    assert "\n      enableServiceLinks: false\n" in (DEPLOY / "kubernetes" / "deployment.yaml").read_text()


def test_kustomization_lists_every_manifest_but_the_example() -> None:
    """No manifest is forgotten, and no example secret is ever applied with the rest."""
    text = (DEPLOY / "kubernetes" / "kustomization.yaml").read_text()
    listed = re.findall(r"^  - ([\w.-]+\.yaml)$", text, flags=re.MULTILINE)
    assert {path.name for path in MANIFESTS} - {"secret.example.yaml"} == set(listed)


def test_unit_passes_systemd(tmp_path: Path) -> None:
    """Systemd has nothing to say about the unit."""
    assert complaints(unit_in(tmp_path)) == []


def test_unit_with_an_unknown_key_is_found(tmp_path: Path) -> None:
    """The check above has teeth."""
    assert len(complaints(unit_in(tmp_path, add="Typo=yes"))) == 1


def test_unit_is_hardened(tmp_path: Path) -> None:
    """Systemd's exposure score of the unit is 2.0 or better."""
    program = required_program("systemd-analyze", how="apt-get install --no-install-recommends systemd")
    done = judge(program, "security", "--offline=true", "--threshold=20", "--no-pager", str(unit_in(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [("check", "rules", ALERTS.name), ("test", "rules", ALERTS_TEST.name)])
def test_alerts_pass_promtool(command: tuple[str, ...]) -> None:
    """The rules are valid, fire when they must, and are silent when all is well."""
    program = required_program("promtool", how="apt-get install --no-install-recommends prometheus")
    done = judge(program, *command, cwd=ALERTS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_each_tested_firing_and_silent() -> None:
    """Every alert has a case in which it fires and one in which it does not."""
    text = ALERTS_TEST.read_text()
    names = set(alert_names(ALERTS, "alert"))
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", text))
    firing = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", text))
    assert (names, names) == (silent, firing)


def test_alerts_say_how_bad_and_what_to_do() -> None:
    """Every alert has a severity, the address of its runbook, a summary and a description."""
    text = ALERTS.read_text()
    count = len(alert_names(ALERTS, "alert"))
    assert [count] * len(KEYS_OF_EVERY_ALERT) == [
        len(re.findall(rf"^ +{key}: ", text, re.MULTILINE)) for key in KEYS_OF_EVERY_ALERT
    ]


def test_alerts_name_only_metrics_the_worker_has() -> None:
    """A renamed metric does not leave an alert behind that never fires."""
    named = set(re.findall(r"simplu_[a-z_]+", ALERTS.read_text() + ALERTS_TEST.read_text()))
    families = {family.name for family in REGISTRY.collect()}  # texts name a histogram without its suffixes
    assert set() == named - metric_names() - families


def test_alertmanager_example_passes_amtool() -> None:
    """Alertmanager would take the example as it is."""
    done = judge(required_program("amtool", how=AMTOOL_HOW), "check-config", str(ALERTMANAGER))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "on-call"), ("warning", "tickets")])
def test_alertmanager_example_sends_each_severity_to_its_receiver(severity: str, receiver: str) -> None:
    """Every severity that an alert has wakes somebody, or makes a ticket."""
    program = required_program("amtool", how=AMTOOL_HOW)
    done = judge(program, "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"severity={severity}")
    assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr
    assert set(re.findall(r"severity: (\w+)$", ALERTS.read_text(), re.MULTILINE)) == {"critical", "warning"}


def test_alertmanager_example_inhibits_alerts_that_exist() -> None:
    """A renamed alert is not left behind in a rule that matches nothing."""
    matched = re.findall(r'alertname=~?"([^"]+)"', ALERTMANAGER.read_text())
    assert {name for names in matched for name in names.split("|")} <= set(alert_names(ALERTS, "alert"))
