"""deploy/prometheus: Grafana draws and Prometheus alerts on figures that somebody has. The alerts
have the thresholds of the alarms on AWS.
"""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from app.errors import AWAY
from infra import grafana
from infra.templates import read
from sqs_broker.observers.instruments import ALL, Kind, prometheus

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
RECORDS = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
RAISED = {rule["alert"]: rule for rule in RULES if "alert" in rule}
PANELS = [each for each in grafana.dashboard()["panels"] if each["type"] != "row"]

#: All series of the figures, with their labels.
SERIES = {
    f"{each.prometheus}{suffix}": {prometheus(label) for label in each.labels} | own
    for each in ALL
    for suffix, own in (
        [("_bucket", {"le"}), ("_count", set()), ("_sum", set())]
        if each.kind is Kind.HISTOGRAM
        else [("", set())]
    )
}

#: Labels that Prometheus gives to each series.
OF_PROMETHEUS = {"job", "instance"}

#: Debian's package `prometheus` has it.
PROMTOOL = shutil.which("promtool")


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


EXPRESSIONS = list(expressions())


def names_in(expression: str) -> set[str]:
    return set(
        re.findall(
            r"\b(?:sqs_broker|messaging)[a-z0-9_:]*",
            re.sub(r"\{.*?\}|\bby \(.*?\)", "", expression),
        )
    )


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[n for n, _ in EXPRESSIONS])
def test_each_expression_reads_series_that_somebody_has(name: str, expression: str) -> None:
    found = names_in(expression)
    assert found
    assert found <= SERIES.keys() | RECORDS.keys()


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[n for n, _ in EXPRESSIONS])
def test_each_expression_uses_labels_that_its_series_have(name: str, expression: str) -> None:
    known = OF_PROMETHEUS.union(
        *(SERIES.get(each, {"messaging_destination_name"}) for each in names_in(expression))
    )
    groups = re.findall(r"\bby \((.*?)\)", expression)
    used = {label.strip() for group in groups for label in group.split(",")}
    used |= set(re.findall(r"(\w+)=~?\"", expression))
    assert used <= known


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[n for n, _ in EXPRESSIONS])
def test_prometheus_can_parse_each_expression(name: str, expression: str) -> None:
    assert promql_parser.parse(expression)


def test_each_record_is_used() -> None:
    used = set().union(*(names_in(rule["expr"]) for rule in RULES))
    assert RECORDS.keys() <= used


# The thresholds


def defaults() -> dict[str, Any]:
    return {name: given.get("Default") for name, given in read("alarms")["Parameters"].items()}


def test_there_is_an_alert_for_each_alarm() -> None:
    resources = read("alarms")["Resources"]
    alarms = {name for name, each in resources.items() if each["Type"] == "AWS::CloudWatch::Alarm"}
    # Prometheus has the pause from Flower, also that of a queue that only functions read.
    assert RAISED.keys() == alarms - {"FunctionPaused"} | {"PausedTrouble"}


@pytest.mark.parametrize(
    ("alert", "bounds"),
    [
        ("Depth", [">= {DepthThreshold})[5m:1m]", ">= 3"]),
        ("Oldest", [">= {OldestSeconds})[5m:1m]", ">= 2"]),
        ("ErrorRate", [">= {ErrorRatePercent} and", ">= {ErrorRateLeast}"]),
        ("DeadLetters", [">= {DeadLetterThreshold}"]),
        ("DeadLettersGrow", [">= {DeadLetterThreshold}"]),
        ("Outage", [f'"{AWAY}"', "[25m:1m]", ">= 2"]),
        ("LateFailures", [">= 1"]),
        ("PausedTrouble", [">= {DepthThreshold})[5m:1m]", ">= {OldestSeconds})[5m:1m]"]),
    ],
)
def test_the_threshold_of_an_alert_is_that_of_the_alarm(alert: str, bounds: list[str]) -> None:
    expression = RAISED[alert]["expr"]
    for bound in bounds:
        assert bound.format(**defaults()) in expression
    alarm = read("alarms")["Resources"][alert]["Properties"]
    if "AlarmRule" in alarm:
        return
    if "[5m:1m]" in expression or "[25m:1m]" in expression:
        assert expression.endswith(f">= {alarm['DatapointsToAlarm']}")
        assert f"[{alarm['EvaluationPeriods']}m:1m]" in expression


def test_what_an_outage_suppresses_on_aws_can_be_inhibited() -> None:
    rule = json.dumps(read("alarms")["Resources"]["Trouble"]["Properties"]["AlarmRule"])
    suppressed = set(re.findall(r"\$\{(\w+)\}", rule)) - {"Paused", "FunctionPaused"}
    assert suppressed == {
        name for name, each in RAISED.items() if each["labels"].get("inhibited_by") == "Outage"
    }


# The dashboard


def test_the_file_is_made_of_the_list_of_figures() -> None:
    assert grafana.FILE.read_text() == grafana.text(), "run: python -m infra.grafana"


def test_each_figure_has_one_panel() -> None:
    assert sorted(panel["title"] for panel in PANELS) == sorted(each.prometheus for each in ALL)


def test_no_two_panels_overlap_and_none_leaves_the_grid() -> None:
    panels = grafana.dashboard()["panels"]
    cells = [
        {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        for place in (panel["gridPos"] for panel in panels)
    ]
    assert max(x for found in cells for x, _ in found) < grafana.COLUMNS
    assert sum(map(len, cells)) == len(set(itertools.chain(*cells)))
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_grafana_knows_each_field_of_the_dashboard() -> None:
    """Grafana makes this package of the types of its own JSON. It reads what it knows, and writes
    that again."""
    why = "grafana-foundation-sdk is not installed"
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason=why)
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason=why)
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=why)
    # Without them, the queries and options of a panel would not be looked at.
    plugins.register_default_plugins()
    given = grafana.dashboard()
    read = models.Dashboard.from_json(json.loads(json.dumps(given)))
    written = json.loads(encoder.JSONEncoder(sort_keys=True).encode(read))
    assert list(_unread(given, written)) == []


def _unread(given: Any, written: Any, path: str = "") -> Iterator[str]:
    """The paths of what is given and not written. What is written beyond it are defaults."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from _unread(value, (written or {}).get(key), f"{path}/{key}")
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for place, (one, other) in enumerate(zip(given, written, strict=True)):
            yield from _unread(one, other, f"{path}/{place}")
    elif given != written:
        yield path


# What fires

QUEUE = 'messaging_destination_name="jobs"'
VISIBLE = f'sqs_broker_queue_messages{{{QUEUE},sqs_broker_state="visible"}}'
DEAD = f'sqs_broker_queue_dead_letters{{{QUEUE},sqs_broker_state="visible"}}'
HIDDEN = f'sqs_broker_queue_dead_letters{{{QUEUE},sqs_broker_state="in flight"}}'
RECEIVES = f'sqs_broker_receives_total{{{QUEUE},sqs_broker_state="empty"}}'
OLDEST = f"sqs_broker_messages_oldest_age_seconds{{{QUEUE}}}"
BY_HAND = f"sqs_broker_queue_paused{{{QUEUE}}}"
PAUSED = f'sqs_broker_paused{{sqs_broker_reason="{AWAY}"}}'
DONE = f"sqs_broker_messages_done_total{{{QUEUE}}}"
RETRIED = f'sqs_broker_messages_retried_total{{{QUEUE},error_type="KeyError"}}'
COUNT = f'sqs_broker_message_attempts_count{{{QUEUE},sqs_broker_outcome="dead-letter"}}'
EARLY = f'sqs_broker_message_attempts_bucket{{{QUEUE},sqs_broker_outcome="dead-letter",le="2.0"}}'

#: Series from minute 0 on, one value a minute, and what fires after ten minutes.
CASES: dict[str, tuple[dict[str, str], set[str]]] = {
    "nothing": ({VISIBLE: "0x15", RECEIVES: "0+3x15"}, set()),
    "a short peak": ({VISIBLE: "0x7 100x1 0x5", RECEIVES: "0+3x15"}, set()),
    "many messages": ({VISIBLE: "100x15", RECEIVES: "0+3x15"}, {"Depth"}),
    "nearly many": ({VISIBLE: "99x15", RECEIVES: "0+3x15"}, set()),
    "nobody polls": ({VISIBLE: "1x15", RECEIVES: "7x15"}, {"NobodyPolls"}),
    "no worker at all": ({VISIBLE: "1x15"}, {"NobodyPolls"}),
    "old": ({OLDEST: "300x15"}, {"Oldest"}),
    "not old": ({OLDEST: "299x15"}, set()),
    "an outage": ({PAUSED: "0x2 1x3 0x15"}, {"Outage"}),
    "a short pause": ({PAUSED: "0x3 1 0x15"}, set()),
    "dead letters": ({DEAD: "1x15"}, {"DeadLetters"}),
    "a further one": ({DEAD: "1x6 2x9"}, {"DeadLetters", "DeadLettersGrow"}),
    "a look at them": ({DEAD: "2x6 0x9", HIDDEN: "0x6 2x9"}, set()),
    "a new worker that fails": ({DONE: "_x6 18x9", RETRIED: "_x6 2x9"}, {"ErrorRate"}),
    "few runs": ({DONE: "_x6 16x9", RETRIED: "_x6 3x9"}, set()),
    "few failures": ({DONE: "0x6 91x9", RETRIED: "0x6 9x9"}, set()),
    "a restart": ({DONE: "500x6 0x9", RETRIED: "400x6 0x9"}, set()),
    "a pause of an empty queue": ({VISIBLE: "0x15", BY_HAND: "1x15"}, {"Paused"}),
    "many messages in a pause": (
        {VISIBLE: "100x15", RECEIVES: "0+3x3 9x12", BY_HAND: "0x2 1x13"},
        {"Paused", "PausedTrouble"},
    ),
    "old in a pause": (
        {OLDEST: "300x15", BY_HAND: "1x15"},
        {"Paused", "PausedTrouble"},
    ),
    "few messages in a pause": ({VISIBLE: "1x15", BY_HAND: "1x15"}, {"Paused", "PausedTrouble"}),
    "soon after a pause": (
        {VISIBLE: "100x15", RECEIVES: "0+3x15", BY_HAND: "1x3 0x12"},
        {"Paused", "PausedTrouble"},
    ),
    "no pause": ({VISIBLE: "100x15", RECEIVES: "0+3x15", BY_HAND: "0x15"}, {"Depth"}),
    "a failure in a pause": (
        {DONE: "_x6 18x9", RETRIED: "_x6 2x9", BY_HAND: "1x15"},
        {"ErrorRate", "Paused"},
    ),
    "a third failure": ({COUNT: "_x6 1x9", EARLY: "_x6 0x9"}, {"LateFailures"}),
    "second failures": ({COUNT: "0x6 9x9", EARLY: "0x6 9x9"}, set()),
}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on this machine")
def test_each_alert_fires_from_its_threshold_on_and_not_below(tmp_path: Path) -> None:
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "alert_rule_test": [
                {"eval_time": "10m", "alertname": alert, "exp_alerts": _expected(alert, fired)}
                for alert in RAISED
            ],
        }
        for name, (series, fired) in CASES.items()
    ]
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    ran = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _expected(alert: str, fired: set[str]) -> list[dict[str, Any]]:
    if alert not in fired:
        return []
    labels = {} if alert == "Outage" else {"messaging_destination_name": "jobs"}
    rule = RAISED[alert]
    summary = rule["annotations"]["summary"]
    summary = summary.replace("{{ $labels.messaging_destination_name }}", "jobs")
    return [
        {
            "exp_labels": labels | rule["labels"],
            "exp_annotations": rule["annotations"] | {"summary": summary},
        }
    ]


def test_each_alert_fires_in_a_case() -> None:
    assert set().union(*(fired for _, fired in CASES.values())) == RAISED.keys()
