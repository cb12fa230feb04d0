"""Figures as text that Prometheus reads. Needs the package `prometheus_client`."""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from sqs_broker.observers.figures import Histogram, Sample
from sqs_broker.observers.instruments import Instrument, Kind, prometheus


def registry_of(read: Callable[[], Iterable[Sample]]) -> CollectorRegistry:
    """A registry with nothing but these samples, which are read at each request. It is not that of
    the process, so nothing of the project's is shown, and no setting for several processes of
    `prometheus_client` has an effect."""
    # Without this the registry would read the samples now, to learn their names.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(read))
    return registry


def text_of(samples: Iterable[Sample]) -> bytes:
    """These samples, in Prometheus's text format."""
    return generate_latest(registry_of(lambda: samples))


class _Samples:
    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        families: dict[Instrument, Metric] = {}
        for sample in self._read():
            instrument = sample.instrument
            family = families.setdefault(instrument, _family(instrument))
            _add(family, sample)
        yield from families.values()


def _family(instrument: Instrument) -> Metric:
    labels = [prometheus(label) for label in instrument.labels]
    of_kind: dict[Kind, type[Metric]] = {
        Kind.COUNTER: CounterMetricFamily,
        Kind.GAUGE: GaugeMetricFamily,
        Kind.HISTOGRAM: HistogramMetricFamily,
    }
    family = of_kind[instrument.kind]
    return family(instrument.prometheus, instrument.what, labels=labels)  # type: ignore[call-arg]  # those of the three


def _add(family: Metric, sample: Sample) -> None:
    labels, value = list(sample.labels), sample.value
    if isinstance(value, Histogram):
        assert isinstance(family, HistogramMetricFamily)
        bounds = [*map(floatToGoString, sample.instrument.buckets), "+Inf"]
        counts = accumulate(value.counts)
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), value.total)
    else:
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, value)
