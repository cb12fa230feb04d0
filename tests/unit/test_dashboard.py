"""infra/dashboard.yaml: JSON that CloudWatch can draw, of metrics that somebody emits."""

import itertools
import json
from typing import Any

import pytest

from infra.templates import read
from sqs_broker.observers.metrics import DIMENSION, NAMESPACE, UNITS
from tests.cloudformation.rules import EMITTED

BODY, NAMES = read("dashboard")["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
WIDGETS: list[dict[str, Any]] = json.loads(BODY)["widgets"]

#: CloudWatch's grid has so many columns.
COLUMNS = 24


def metrics(widget: dict[str, Any]) -> list[list[Any]]:
    return [each for each in widget["properties"]["metrics"] if isinstance(each[0], str)]


@pytest.mark.parametrize("widget", WIDGETS, ids=lambda each: each["properties"]["title"])
def test_each_widget_draws_metrics_that_somebody_emits(widget: dict[str, Any]) -> None:
    assert metrics(widget)
    for namespace, name, dimension, value, *_ in metrics(widget):
        assert name in EMITTED[namespace]
        assert dimension == (DIMENSION if namespace == NAMESPACE else "QueueName")
        assert value.strip("${}") in NAMES


@pytest.mark.parametrize("widget", WIDGETS, ids=lambda each: each["properties"]["title"])
def test_expressions_use_metrics_of_their_widget(widget: dict[str, Any]) -> None:
    given = widget["properties"]["metrics"]
    expressions = [each[0]["expression"] for each in given if isinstance(each[0], dict)]
    ids = [each[-1]["id"] for each in metrics(widget) if "id" in each[-1]]
    for each in ids:
        assert any(each in expression for expression in expressions)
    # A query without an expression would be drawn for each of them.
    assert bool(ids) == bool(expressions)


def test_the_calls_to_sqs_for_each_message_are_drawn() -> None:
    queries = [query for widget in WIDGETS for query in widget["properties"]["metrics"]]
    ids = {query[-1].get("id"): query[:2] for query in queries}
    assert ids["calls"] == [NAMESPACE, "Calls"]
    assert ids["deleted"] == ["AWS/SQS", "NumberOfMessagesDeleted"]
    expressions = [query[0]["expression"] for query in queries if isinstance(query[0], dict)]
    assert "IF(deleted > 0, calls / deleted, 0)" in expressions


def test_no_two_widgets_overlap_and_none_leaves_the_grid() -> None:
    cells = [
        {
            (x, y)
            for x in range(each["x"], each["x"] + each["width"])
            for y in range(each["y"], each["y"] + each["height"])
        }
        for each in WIDGETS
    ]
    assert max(x for found in cells for x, _ in found) < COLUMNS
    for one, other in itertools.combinations(cells, 2):
        assert not one & other


def test_every_metric_of_the_consumers_is_drawn_but_for_what_a_function_alone_counts() -> None:
    drawn = {each[1] for widget in WIDGETS for each in metrics(widget) if each[0] == NAMESPACE}
    assert set(UNITS) - drawn == {"UnreadableRecords"}
