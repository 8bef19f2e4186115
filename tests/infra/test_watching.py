"""The dashboard and the alerts ask Prometheus for what cluster/metrics.py tells, under these names and labels."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

import promql_parser as promql
import pytest
import yaml

from cluster.lane_meter import Activity
from cluster.metrics import METRICS, QUEUE_RUNS, Counter, Histogram, Metric
from cluster.plan import FailureKind
from cluster.settings import LaneConfig
from dass.records import Status

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "infra/grafana/dass.json"
ALERTS = ROOT / "infra/prometheus/alerts.yaml"
ALERTS_TEST = Path(__file__).parent / "alerts_test.yaml"
RUNBOOK = ROOT / "infra/README.md"
PREFIX = "ray_"
COLUMNS = 24  # of Grafana's grid
INTERVALS = {"$__rate_interval": "5m"}
VALUES = {
    "activity": set(get_args(Activity)),
    "kind": {str(kind) for kind in FailureKind},
    "state": set(re.findall(r"\b[a-z]+\b", QUEUE_RUNS.description)),
    "status": {str(status) for status in Status},
}


@cache
def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


@cache
def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


@cache
def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["spec"]["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return asked + [alert["expr"] for alert in alerts()]


# What is wrong with a query


def series() -> dict[str, tuple[Metric, set[str]]]:
    """The names that may be asked for: the metric behind each, and its labels."""
    found: dict[str, tuple[Metric, set[str]]] = {}
    for metric in METRICS:
        labels = set(metric.labels)
        if isinstance(metric, Histogram):  # not its sum, of which Ray knows only the middles of the buckets
            found[f"{PREFIX}{metric.name}_bucket"] = (metric, labels | {"le"})
            found[f"{PREFIX}{metric.name}_count"] = (metric, labels)
        else:
            found[f"{PREFIX}{metric.name}"] = (metric, labels)
    return found


def parsed(query: str) -> promql.Expr:
    """Raises ValueError when the query is no PromQL."""
    for variable, value in INTERVALS.items():
        query = query.replace(variable, value)
    return promql.parse(query)


def nodes(expression: promql.Expr) -> list[promql.Expr]:
    found: list[promql.Expr] = []
    promql.walk(expression, lambda node: found.append(node))
    return found


def selectors(expression: promql.Expr) -> Iterator[promql.VectorSelector]:
    return (node for node in nodes(expression) if isinstance(node, promql.VectorSelector))


def problems(query: str) -> list[str]:
    """Every name, label and value in the query that is not there, and every rate of what does not only grow."""
    try:
        expression = parsed(query)
    except ValueError as error:
        return [f"no PromQL: {error}"]
    found = [problem for selector in selectors(expression) for problem in problems_of_selector(selector)]
    for node in nodes(expression):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found += [f"no label {label}" for label in set(node.modifier.labels) - labels_in(node.expr)]
        if isinstance(node, promql.Call):
            found += problems_of_call(node)
    return found


def problems_of_selector(selector: promql.VectorSelector) -> Iterator[str]:
    if selector.name not in series():
        yield f"no series {selector.name}"
        return
    _, labels = series()[selector.name]
    for matcher in selector.matchers.matchers:
        values = set(matcher.value.split("|"))
        if matcher.name not in labels:
            yield f"no label {matcher.name}"
        elif not values <= VALUES.get(matcher.name, values):
            yield f"no value {matcher.value} of {matcher.name}"


def problems_of_call(call: promql.Call) -> Iterator[str]:
    grows = call.func.name in ("rate", "irate", "increase")
    for selector in (selector for arg in call.args for selector in selectors(arg)):
        metric, _ = series().get(str(selector.name), (None, None))
        if grows and not isinstance(metric, Counter | Histogram):
            yield f"a {call.func.name} of {selector.name}, which is no counter"


def labels_in(expression: promql.Expr) -> set[str]:
    """The labels of all series in an expression."""
    return set().union(*(series().get(str(selector.name), (None, set()))[1] for selector in selectors(expression)))


def labels_of_result(query: str) -> set[str]:
    """The labels that at least one aggregation in the query keeps."""
    kept = (node.modifier for node in nodes(parsed(query)) if isinstance(node, promql.AggregateExpr))
    return set().union(*(set(modifier.labels) for modifier in kept if modifier is not None))


# Dashboard and alerts


@pytest.mark.parametrize("query", queries())
def test_every_query_asks_for_what_is_exported(query: str) -> None:
    assert problems(query) == []


def test_every_metric_is_asked_for() -> None:
    asked = {selector.name for query in queries() for selector in selectors(parsed(query))}
    used = {series()[str(name)][0] for name in asked}
    assert {metric.name for metric in METRICS} == {metric.name for metric in used}


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ('sum(ray_dass_queue_run{state="pending"})', "no series ray_dass_queue_run"),
        ("sum(dass_queue_runs)", "no series dass_queue_runs"),
        ("rate(ray_dass_runs_ended[5m])", "no series ray_dass_runs_ended"),
        ("rate(ray_dass_runs_ended_total_bucket[5m])", "no series ray_dass_runs_ended_total_bucket"),
        ("rate(ray_dass_s3_request_seconds[5m])", "no series ray_dass_s3_request_seconds"),
        ("rate(ray_dass_s3_request_seconds_sum[5m])", "no series ray_dass_s3_request_seconds_sum"),
        ('ray_dass_queue_runs{status="pending"}', "no label status"),
        ('ray_dass_queue_runs{state=~"pending|runing"}', "no value pending|runing of state"),
        ('ray_dass_failed_attempts_total{kind!="return"}', "no value return of kind"),
        ("sum by (op) (rate(ray_dass_s3_request_seconds_count[5m]))", "no label op"),
        ("sum by (le) (rate(ray_dass_s3_request_seconds_count[5m]))", "no label le"),
        ("rate(ray_dass_queue_runs[5m])", "a rate of ray_dass_queue_runs, which is no counter"),
        ("sum(rate(ray_dass_s3_retries_total[5m])", "no PromQL"),
        ("rate(ray_dass_s3_retries_total)", "no PromQL"),
        ("sum(ray_dass_queue_runs", "no PromQL"),
    ],
)
def test_a_mistake_in_a_query_is_found(query: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(query))


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    (variable,) = dashboard()["templating"]["list"]
    assert variable["type"] == "datasource"
    for panel in panels():
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
            assert named == labels_of_result(target["expr"]) - {"le"}


def test_panels_have_a_place_of_their_own() -> None:
    placed = dashboard()["panels"]
    ids = [panel["id"] for panel in placed]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in placed:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & mine
        cells |= mine


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_every_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    assert set(re.findall(r"\$labels\.(\w+)", notes["summary"])) <= labels_of_result(alert["expr"])
    assert set(re.findall(r'panel "([^"]+)"', notes["description"])) <= {panel["title"] for panel in panels()}
    assert set(re.findall(r"\blanes\.(\w+)", notes["description"])) <= settings_of_lanes()
    file, _, anchor = notes["runbook"].partition("#")
    assert ROOT / file == RUNBOOK
    assert re.fullmatch(r"[a-z0-9-]+", anchor)


def test_every_alert_has_its_heading_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {alert["annotations"]["runbook"].partition("#")[2] for alert in alerts()} <= anchors
    assert set(re.findall(r"`lanes\.(\w+)`", RUNBOOK.read_text())) <= settings_of_lanes()


def settings_of_lanes() -> set[str]:
    return {field.name for field in fields(LaneConfig)}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, a part of Prometheus, is not installed")
def test_prometheus_itself_accepts_the_alerts_and_fires_them_when_it_should(tmp_path: Path) -> None:
    spec = yaml.safe_load(ALERTS.read_text())["spec"]
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(spec))
    for rule in spec["groups"][0]["rules"]:
        del rule["annotations"]  # which promtool would compare word by word
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(spec))
    shutil.copy(ALERTS_TEST, tmp_path)
    for command in (["check", "rules", "whole.yaml"], ["test", "rules", ALERTS_TEST.name]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    cases = [case for test in yaml.safe_load(ALERTS_TEST.read_text())["tests"] for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in alerts()}
    assert names == {case["alertname"] for case in cases if "exp_alerts" in case}
    assert names == {case["alertname"] for case in cases if "exp_alerts" not in case}
