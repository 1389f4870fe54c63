"""The chart's alerts, evaluated by `promtool`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.alerts import ALERTS, Case
from tests.deploy.helm import ROOT, Object, render
from tests.prometheus import rule_faults

RUNBOOKS = ROOT / "docs" / "operations" / "runbooks.md"


def groups(**values: Any) -> Object:
    """Return the rules' groups that the chart renders."""
    made = render({"prometheusRule": {"enabled": True, **values}})
    (rule,) = (obj for obj in made if obj["kind"] == "PrometheusRule")
    spec: Object = rule["spec"]
    return spec


def alerts(**values: Any) -> dict[str, Object]:
    return {rule["alert"]: rule for group in groups(**values)["groups"] for rule in group["rules"]}


def promtool_test(alert: str, case: Case) -> dict[str, Any]:
    """Return a test of promtool: `ALERTS_FIRING` is the number of alerts of the name that fire."""
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    expected = [{"labels": "{}", "value": 1 if case.fires else 0}]
    expression = {"expr": firing, "eval_time": f"{case.minute}m", "exp_samples": expected}
    return {"interval": "1m", "input_series": series, "promql_expr_test": [expression]}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_for_its_cause_and_for_no_other(alert: str, tmp_path: Path) -> None:
    tests = [promtool_test(alert, case) for case in ALERTS[alert]]
    assert rule_faults(tmp_path, groups(), tests) == ""
    assert {case.fires for case in ALERTS[alert]} == {True, False}


def test_every_alert_has_cases() -> None:
    assert alerts().keys() == ALERTS.keys()


def test_in_knative_mode_no_pod_at_all_is_no_alert(tmp_path: Path) -> None:
    values = {"prometheusRule": {"enabled": True}, "kserve": {"deploymentMode": "Knative"}}
    (rule,) = (obj for obj in render(values) if obj["kind"] == "PrometheusRule")
    loading, none = ALERTS["PredictorNotReady"][:2]
    quiet = Case(none.series, none.minute, fires=False)
    tests = [promtool_test("PredictorNotReady", case) for case in (loading, quiet)]
    assert rule_faults(tmp_path, rule["spec"], tests) == ""


def test_thresholds_are_values(tmp_path: Path) -> None:
    changed = groups(stallShare=0.5, preemptionsPerMinute=10)
    (_, waits, _), (preempts, _) = ALERTS["PredictorWaitsForWeights"], ALERTS["PredictorPreempts"]
    tests = [
        promtool_test("PredictorWaitsForWeights", Case(waits.series, waits.minute, fires=True)),
        promtool_test("PredictorPreempts", Case(preempts.series, preempts.minute, fires=False)),
    ]
    assert rule_faults(tmp_path, changed, tests) == ""


def test_each_alert_has_a_section_of_the_runbooks() -> None:
    sections = {name.lower() for name in re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.M)}
    urls = {rule["annotations"]["runbook_url"] for rule in alerts().values()}
    assert urls == {f"docs/operations/runbooks.md#{name}" for name in sections}
    (url, *_) = (
        rule["annotations"]["runbook_url"]
        for rule in alerts(docsUrl="https://docs.test/p/").values()
    )
    assert url == "https://docs.test/p/operations/runbooks/#predictornotready"


def test_an_alert_that_belongs_to_a_pod_names_it(tmp_path: Path) -> None:
    rule = alerts()["PredictorHangs"]
    (case, *_) = ALERTS["PredictorHangs"]
    summary = "A forward pass or a read of demo takes far too long in demo-predictor-1."
    expected = {
        "exp_labels": {"severity": "critical", "pod": "demo-predictor-1"},
        "exp_annotations": {**rule["annotations"], "summary": summary},
    }
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    expression = {"eval_time": "10m", "alertname": "PredictorHangs", "exp_alerts": [expected]}
    test = {"interval": "1m", "input_series": series, "alert_rule_test": [expression]}
    assert rule_faults(tmp_path, groups(), [test]) == ""
