"""The page, the alerts and the documentation tell the same causes, equally bad, with the same way out."""

from __future__ import annotations

import re

import yaml
from support.requires import ROOT

from simplu_worker.status import problems
from simplu_worker.status.causes import CAUSES, HELD
from simplu_worker.status.words import ProblemCause, Severity
from simplu_worker.vocabulary import HoldReason

(GROUP,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
SEVERITIES = {rule["alert"]: rule["labels"]["severity"] for rule in GROUP["rules"]}
ALL = [*CAUSES.values(), *HELD.values()]
WITHOUT_CAUSE = {"WorkerAbsent"}  # no replica is there to tell it


def test_every_cause_and_reason_has_words() -> None:
    assert (set(CAUSES), set(HELD)) == (set(ProblemCause), set(HoldReason))


def test_alerts_are_as_bad_as_their_causes() -> None:
    told = [one for one in ALL if one.alerts]
    assert [one.alerts for one in told if SEVERITIES[one.alerts[0]] != one.severity] == []
    assert {name for one in told for name in one.alerts} <= SEVERITIES.keys()
    assert [key for key, one in CAUSES.items() if one.severity is Severity.CRITICAL and not one.alerts] == ["outage"]


def test_critical_alerts_are_causes_that_the_page_shows() -> None:
    told = {name for one in ALL for name in one.alerts}
    assert {name for name, severity in SEVERITIES.items() if severity == "critical"} - told == WITHOUT_CAUSE


def test_thresholds_of_page_and_alerts_agree() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in GROUP["rules"]}
    for alert, most in (
        ("NearRetention", problems.NEAR_RATIO),
        ("CertificateExpires", problems.CERTIFICATE_LEFT.total_seconds()),
        ("FeedBehind", problems.FEED_BEHIND_S),
        ("MoveStandsStill", problems.MOVE_STANDS.total_seconds()),
    ):
        numbers = [float(one) for one in re.findall(r"[<>] ([0-9.]+)", rules[alert])]
        assert most in numbers, alert
