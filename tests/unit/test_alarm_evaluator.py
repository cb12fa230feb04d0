"""The tests' own evaluator of CloudWatch alarms gives what CloudWatch's documentation shows."""

from typing import Any

import pytest

from tests.cloudformation.evaluator import (
    ALARM,
    INSUFFICIENT,
    OK,
    Metrics,
    calculate,
    composite,
    evaluate,
    state_of,
)

#: The state of before.
BEFORE = "before"

MISSING = ("missing", "ignore", "breaching", "notBreaching")

#: From https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html:
#: data points (0: within the threshold, X: breaching, -: missing), and the state for each way to
#: treat missing data, if three of three data points must breach.
THREE_OF_THREE = {
    "0-X-X": (OK, OK, OK, OK),
    "----0": (OK, OK, OK, OK),
    "-----": (INSUFFICIENT, BEFORE, ALARM, OK),
    "0XX-X": (ALARM, ALARM, ALARM, ALARM),
    "--X--": (ALARM, BEFORE, ALARM, OK),
}

#: From the same page: if two of three must breach.
TWO_OF_THREE = {
    "0-X-X": (ALARM, ALARM, ALARM, ALARM),
    "00X0X": (ALARM, ALARM, ALARM, ALARM),
    "0-X--": (OK, OK, ALARM, OK),
    "----0": (OK, OK, ALARM, OK),
    "----X": (ALARM, BEFORE, ALARM, OK),
}


def examples() -> list[Any]:
    return [
        (points, to_alarm, missing, state)
        for to_alarm, table in ((3, THREE_OF_THREE), (2, TWO_OF_THREE))
        for points, states in table.items()
        for missing, state in zip(MISSING, states, strict=True)
    ]


@pytest.mark.parametrize(("points", "to_alarm", "missing", "state"), examples())
def test_missing_data_is_treated_as_in_the_documented_examples(
    points: str, to_alarm: int, missing: str, state: str
) -> None:
    given = [{"0": False, "X": True, "-": None}[point] for point in points]
    found = state_of(given, periods=3, to_alarm=to_alarm, missing=missing, state=BEFORE)
    assert found == state


GRID = [0, 60, 120]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("100 * a / b", {0: 50.0, 120: 25.0}),
        # What is divided by zero is no data point.
        ("a / zero", {}),
        ("FILL(a, 0)", {0: 1.0, 60: 0.0, 120: 2.0}),
        ("MAX([FILL(a, 0), b])", {0: 2.0, 60: 5.0, 120: 8.0}),
        ("DIFF(b)", {60: 3.0, 120: 3.0}),
        ("IF(b >= 5, a, 9)", {0: 9.0, 120: 2.0}),
        ("IF(b > 2, IF(a > 1, 7, 8), 0)", {0: 0.0, 120: 7.0}),
        ("a + b", {0: 3.0, 120: 10.0}),
        ("1 + 2", 3.0),
    ],
)
def test_metric_math_has_a_value_where_its_series_have_one(expression: str, value: Any) -> None:
    known: dict[str, Any] = {
        "a": {0: 1.0, 120: 2.0},
        "b": {0: 2.0, 60: 5.0, 120: 8.0},
        "zero": {0: 0.0},
    }
    assert calculate(expression, known, GRID) == value


def test_a_period_has_the_statistic_of_its_data_and_of_its_dimensions_alone() -> None:
    metrics = Metrics()
    metrics.put("N", "M", 1, 10, Queue="jobs")
    metrics.put("N", "M", 59, 20, Queue="jobs")
    metrics.put("N", "M", 60, 5, Queue="jobs")
    metrics.put("N", "M", 30, 99, Queue="mail")
    metric = {
        "Namespace": "N",
        "MetricName": "M",
        "Dimensions": [{"Name": "Queue", "Value": "jobs"}],
    }
    assert metrics.series(metric, 60, "Sum") == {0: 30, 60: 5}
    assert metrics.series(metric, 60, "Maximum") == {0: 20, 60: 5}
    assert metrics.series(metric, 60, "Average") == {0: 15, 60: 5}


def test_the_period_that_is_not_over_does_not_count() -> None:
    alarm = {
        "Namespace": "N",
        "MetricName": "M",
        "Statistic": "Sum",
        "Period": 60,
        "EvaluationPeriods": 1,
        "Threshold": 10,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",
    }
    metrics = Metrics()
    metrics.put("N", "M", 601, 10)
    assert evaluate(alarm, metrics, 659) == OK
    assert evaluate(alarm, metrics, 660) == ALARM


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        ('ALARM("a") OR ALARM("b")', ALARM),
        ('ALARM("a") AND ALARM("b")', OK),
        ('ALARM("a") AND NOT ALARM("b")', ALARM),
        ('INSUFFICIENT_DATA("c") AND (OK("b") OR OK("a"))', ALARM),
    ],
)
def test_a_composite_alarm_follows_its_rule(rule: str, state: str) -> None:
    assert composite(rule, {"a": ALARM, "b": OK, "c": INSUFFICIENT}) == state
