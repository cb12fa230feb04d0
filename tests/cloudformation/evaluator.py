"""Evaluates CloudWatch alarms by CloudWatch's rules, over metrics in memory.

Sources:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-evaluation.html
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-combining.html
"""

import ast
import itertools
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OK, ALARM, INSUFFICIENT = "OK", "ALARM", "INSUFFICIENT_DATA"

#: Data points that are retrieved beyond the evaluation periods: the documentation's examples have
#: five for three.
MORE = 2

#: A value for the beginning of each period that has one.
Series = dict[int, float]
Value = Series | float

STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "Sum": sum,
    "Maximum": max,
    "Minimum": min,
    "Average": lambda values: sum(values) / len(values),
    "SampleCount": len,
}

BREACHES = {
    "GreaterThanOrEqualToThreshold": operator.ge,
    "GreaterThanThreshold": operator.gt,
    "LessThanOrEqualToThreshold": operator.le,
    "LessThanThreshold": operator.lt,
}


@dataclass
class Metrics:
    """The data of all metrics. Times are seconds."""

    values: dict[Any, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def put(self, namespace: str, name: str, at: float, *values: float, **dimensions: str) -> None:
        """Add data."""
        key = (namespace, name, tuple(sorted(dimensions.items())))
        self.values[key] += [(at, value) for value in values]

    def put_line(self, line: Mapping[str, Any]) -> None:
        """Add the data of a line in the embedded metric format."""
        at = line["_aws"]["Timestamp"] / 1000
        for directive in line["_aws"]["CloudWatchMetrics"]:
            for names in directive["Dimensions"]:
                dimensions = {name: line[name] for name in names}
                for metric in directive["Metrics"]:
                    value = line[metric["Name"]]
                    values = value if isinstance(value, list) else [value]
                    self.put(directive["Namespace"], metric["Name"], at, *values, **dimensions)

    def series(self, metric: Mapping[str, Any], period: int, statistic: str) -> Series:
        """A metric, as one value for each period that has data."""
        dimensions = {each["Name"]: each["Value"] for each in metric.get("Dimensions", ())}
        key = (metric["Namespace"], metric["MetricName"], tuple(sorted(dimensions.items())))
        grouped: dict[int, list[float]] = defaultdict(list)
        for at, value in self.values.get(key, ()):
            grouped[int(at // period) * period].append(value)
        return {start: STATISTICS[statistic](values) for start, values in grouped.items()}


def evaluate(alarm: Mapping[str, Any], metrics: Metrics, now: float, state: str = OK) -> str:
    """The state of an alarm, as `describe_alarms` returns it, at a time; `state`: the one of
    before."""
    period, series = _series_of(alarm, metrics, now)
    periods = int(alarm["EvaluationPeriods"])
    last = int(now // period) * period
    # The present period is not over.
    starts = [last - number * period for number in range(periods + MORE, 0, -1)]
    breaches = BREACHES[alarm["ComparisonOperator"]]
    points = [
        breaches(series[start], float(alarm["Threshold"])) if start in series else None
        for start in starts
    ]
    return state_of(
        points,
        periods=periods,
        to_alarm=int(alarm.get("DatapointsToAlarm") or periods),
        missing=alarm.get("TreatMissingData") or "missing",
        state=state,
    )


def state_of(
    points: Sequence[bool | None], *, periods: int, to_alarm: int, missing: str, state: str
) -> str:
    """The state of an alarm from the data points of its evaluation range, the oldest first: whether
    each of them breaches; None if it is missing."""
    latest = list(points[-periods:])
    present = [each for each in points if each is not None]
    if None in latest and len(present) >= periods:
        # Enough is there without the missing ones.
        latest = list(present[-periods:])
    elif None in latest:
        latest = list(present)
        absent = periods - len(present)
        if missing == "breaching":
            latest += [True] * absent
        elif missing == "notBreaching":
            latest += [False] * absent
        elif not present:
            return state if missing == "ignore" else INSUFFICIENT
        elif sum(map(bool, present)) < to_alarm and all(present):
            # Only breaching points, but too few of them.
            return state if missing == "ignore" else ALARM
    return ALARM if sum(map(bool, latest)) >= to_alarm else OK


def composite(rule: str, states: Mapping[str, str]) -> str:
    """The state of a composite alarm, from its rule and the states of alarms by name."""
    text = re.sub(
        r"(ALARM|OK|INSUFFICIENT_DATA)\(\"([^\"]+)\"\)",
        lambda match: str(states[match[2]] == match[1]),
        rule,
    )
    for word in ("AND", "OR", "NOT"):
        text = re.sub(rf"\b{word}\b", word.lower(), text)
    return ALARM if _boolean(ast.parse(text, mode="eval").body) else OK


def _boolean(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.UnaryOp):
        return not _boolean(node.operand)
    assert isinstance(node, ast.BoolOp), ast.dump(node)
    values = [_boolean(each) for each in node.values]
    return all(values) if isinstance(node.op, ast.And) else any(values)


# Metric math --------------------------------------------------------------------------------------


def _series_of(alarm: Mapping[str, Any], metrics: Metrics, now: float) -> tuple[int, Series]:
    if not alarm.get("Metrics"):
        period = int(alarm["Period"])
        return period, metrics.series(alarm, period, alarm["Statistic"])
    queries = alarm["Metrics"]
    stats = {each["Id"]: each["MetricStat"] for each in queries if each.get("MetricStat")}
    (period,) = {int(stat["Period"]) for stat in stats.values()}
    known: dict[str, Value] = {
        id_: metrics.series(stat["Metric"], period, stat["Stat"]) for id_, stat in stats.items()
    }
    (expression,) = [each["Expression"] for each in queries if each.get("Expression")]
    last = int(now // period) * period
    count = int(alarm["EvaluationPeriods"]) + MORE
    grid = [last - number * period for number in range(count, 0, -1)]
    return period, as_series(calculate(expression, known, grid), grid)


def as_series(value: Value, grid: Sequence[int]) -> Series:
    """A number, as the same number in each period."""
    return value if isinstance(value, dict) else dict.fromkeys(grid, value)


def calculate(expression: str, known: Mapping[str, Value], grid: Sequence[int]) -> Value:
    """The value of an expression of metric math; `grid`: the periods of the range."""
    return _Calculation(known, grid).value(ast.parse(expression, mode="eval").body)


class _Calculation:
    def __init__(self, known: Mapping[str, Value], grid: Sequence[int]) -> None:
        self._known, self._grid = known, grid

    def value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]  # the expressions have only numbers
        if isinstance(node, ast.Name):
            return self._known[node.id]
        if isinstance(node, ast.BinOp):
            return combine(_OPERATORS[type(node.op)], self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Compare):
            (comparison,), (right,) = node.ops, node.comparators
            compare = _OPERATORS[type(comparison)]
            return combine(compare, self.value(node.left), self.value(right))
        assert isinstance(node, ast.Call), ast.dump(node)
        assert isinstance(node.func, ast.Name), ast.dump(node)
        return {"IF": self._if, "FILL": self._fill, "MAX": self._max, "DIFF": self._diff}[
            node.func.id
        ](*node.args)

    def _if(self, condition: ast.expr, yes: ast.expr, no: ast.expr) -> Value:
        found, first, second = self.value(condition), self.value(yes), self.value(no)
        if not isinstance(found, dict):
            return first if found else second
        chosen = {}
        for start, holds in found.items():
            value = first if holds else second
            if not isinstance(value, dict):
                chosen[start] = value
            elif start in value:
                chosen[start] = value[start]
        return chosen

    def _fill(self, series: ast.expr, filler: ast.expr) -> Value:
        found, value = self.value(series), self.value(filler)
        assert isinstance(found, dict)
        assert isinstance(value, float)
        return dict.fromkeys(self._grid, value) | found

    def _max(self, many: ast.expr) -> Value:
        assert isinstance(many, ast.List), "MAX of one series is one number"
        all_ = [as_series(self.value(each), self._grid) for each in many.elts]
        return {
            start: max(series[start] for series in all_ if start in series)
            for start in set().union(*all_)
        }

    def _diff(self, series: ast.expr) -> Value:
        found = self.value(series)
        assert isinstance(found, dict)
        starts = sorted(found)
        return {
            later: found[later] - found[earlier] for earlier, later in itertools.pairwise(starts)
        }


def combine(how: Callable[[float, float], float | None], left: Value, right: Value) -> Value:
    """Two series have a value only where both have one."""
    if not isinstance(left, dict) and not isinstance(right, dict):
        found = how(left, right)
        assert found is not None
        return float(found)
    starts = set(left if isinstance(left, dict) else right)  # type: ignore[arg-type]  # one is
    if isinstance(left, dict) and isinstance(right, dict):
        starts &= set(right)
    combined = {}
    for start in starts:
        one = left[start] if isinstance(left, dict) else left
        other = right[start] if isinstance(right, dict) else right
        if (value := how(one, other)) is not None:
            combined[start] = float(value)
    return combined


def _divide(left: float, right: float) -> float | None:
    return left / right if right else None


_OPERATORS: Mapping[Any, Callable[[float, float], float | None]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
}
