"""Figures as a test reads them."""

from collections.abc import Iterable

from sqs_broker.observers.figures import Histogram, Sample
from sqs_broker.observers.instruments import Instrument

#: A series: its instrument, and the values of its labels.
Series = tuple[Instrument, tuple[str, ...]]


def counted(samples: Iterable[Sample]) -> dict[Series, float]:
    """The value of each series; of a histogram, the sum of its values."""
    return {
        (each.instrument, each.labels): each.value.total
        if isinstance(each.value, Histogram)
        else each.value
        for each in samples
    }
