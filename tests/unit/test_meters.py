"""OpenTelemetry gets the same figures, if the project has a meter provider."""

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData

from sqs_broker.observers import instruments as of
from sqs_broker.observers.figures import Figures, Sample
from sqs_broker.observers.instruments import OF_QUEUES
from sqs_broker.observers.metering import Metering, metering_for
from sqs_broker.observers.meters import Meters, attributes_of
from sqs_broker.options import MetricsOptions
from sqs_broker.rules.facts import Facts
from sqs_broker.worker.metrics import MEASURED
from tests.unit.conftest import MakeDelivery
from tests.unit.test_metering import CASES, ENDED, NOW, RECEIVED, SENT, STARTED


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def meters(reader: InMemoryMetricReader) -> Meters:
    return Meters(MeterProvider([reader], shutdown_on_exit=False).get_meter("tests"))


def points(reader: InMemoryMetricReader) -> dict[tuple[str, frozenset[Any]], Any]:
    """The value of each series; of a histogram, the sum."""
    found = {}
    data = reader.get_metrics_data()
    for metric in _metrics(data):
        for point in metric.data.data_points:
            value = point.sum if hasattr(point, "sum") else point.value
            found[metric.name, frozenset(point.attributes.items())] = value
    return found


def _metrics(data: MetricsData | None) -> list[Any]:
    if data is None:
        return []
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return [metric for scope in scopes for metric in scope.metrics]


@pytest.fixture
def message(make_delivery: MakeDelivery) -> Callable[..., Facts]:
    def make(*, started: bool = True, **changes: Any) -> Facts:
        delivery = make_delivery(**{"enqueued_at": SENT, "received_at": RECEIVED} | changes)
        return Facts(delivery, "register", "id-1", None, STARTED if started else None)

    return make


def test_both_ways_out_have_the_same_figures(
    reader: InMemoryMetricReader, meters: Meters, message: Callable[..., Facts]
) -> None:
    figures = Figures()
    metering = Metering([figures, meters], clock=lambda: ENDED, wall_clock=lambda: NOW)
    for step, _ in CASES.values():
        step(metering, message)
    expected = {}
    for each in figures.samples():
        attributes = frozenset(attributes_of(each.instrument, each.labels).items())
        value: Any = each.value
        expected[each.instrument.name, attributes] = getattr(value, "total", value)
    assert points(reader) == expected


def test_names_units_and_buckets_arrive(reader: InMemoryMetricReader, meters: Meters) -> None:
    meters.record(of.RUN, ("jobs", "register", ""), 0.3)
    (found,) = _metrics(reader.get_metrics_data())
    assert (found.name, found.unit, found.description) == (of.RUN.name, "s", of.RUN.what)
    assert tuple(found.data.data_points[0].explicit_bounds) == of.RUN.buckets


def test_a_label_without_a_value_is_left_out_and_the_system_is_named(
    reader: InMemoryMetricReader, meters: Meters
) -> None:
    meters.record(of.RUN, ("jobs", "register", ""), 0.3)
    ((_, attributes),) = points(reader)
    assert dict(attributes) == {
        "messaging.system": "aws_sqs",
        "messaging.destination.name": "jobs",
        "sqs_broker.task": "register",
    }


def test_the_state_of_a_worker_is_read_when_the_provider_collects(
    reader: InMemoryMetricReader, meters: Meters
) -> None:
    state = [[Sample(of.BUSY, (), 3), Sample(of.CONTROL_LOST, (), 5)], [Sample(of.BUSY, (), 0)]]
    now = state[0]
    meters.watch(MEASURED, lambda: now)
    named = {name: value for (name, _), value in points(reader).items()}
    assert named == {"sqs_broker.pool.busy": 3, "sqs_broker.control.lost": 5}
    now = state[1]
    assert {name: value for (name, _), value in points(reader).items()}["sqs_broker.pool.busy"] == 0


def test_nothing_is_counted_unless_an_option_says_so() -> None:
    assert metering_for(MetricsOptions()) is None
    assert metering_for(MetricsOptions(opentelemetry=True)) is not None
    assert metering_for(MetricsOptions(port=9464)) is not None


def test_all_connections_of_a_process_have_one_observer() -> None:
    options = MetricsOptions(port=9464, opentelemetry=True)
    assert metering_for(options) is metering_for(MetricsOptions(port=9464, opentelemetry=True))


def test_the_state_of_queues_is_flower_s() -> None:
    assert not set(MEASURED) & set(OF_QUEUES)
