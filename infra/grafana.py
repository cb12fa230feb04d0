"""Makes deploy/prometheus/dashboard.json of the list of figures: python -m infra.grafana"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqs_broker.machine import files
from sqs_broker.observers.instruments import (
    ALL,
    OF_QUEUES,
    QUEUE,
    Instrument,
    Kind,
    prometheus,
)
from sqs_broker.worker.metrics import MEASURED

FILE = Path(__file__).parents[1] / "deploy/prometheus/dashboard.json"

#: Grafana's grid has so many columns. A panel takes half of them.
COLUMNS = 24
HEIGHT = 8

#: The quantiles of a histogram that are drawn.
QUANTILES = (0.5, 0.99)

STEPS = tuple(each for each in ALL if each not in MEASURED and each not in OF_QUEUES)

ROWS: dict[str, Sequence[Instrument]] = {
    "Queues (Flower)": OF_QUEUES,
    "Messages and calls": STEPS,
    "Workers": MEASURED,
}

#: The data source that is chosen in Grafana.
SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """A panel for each figure, by rows, for the queues that are chosen."""
    return {
        "uid": "sqs-broker",
        "title": "Celery on SQS",
        "tags": ["celery", "sqs"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source(), _queue()]},
        "panels": list(_panels()),
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _queue() -> dict[str, Any]:
    label = prometheus(QUEUE)
    return {
        "name": "queue",
        "label": "Queue",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f'label_values({{__name__=~"sqs_broker_.+"}}, {label})', "refId": "q"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[dict[str, Any]]:
    y = number = 0
    for title, instruments in ROWS.items():
        number += 1
        yield {"id": number, "type": "row", "title": title, "panels": [], "collapsed": False,
               "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}}  # fmt: skip
        y += 1
        for place, instrument in enumerate(instruments):
            number += 1
            width = COLUMNS // 2
            where = {"x": place % 2 * width, "y": y + place // 2 * HEIGHT, "w": width, "h": HEIGHT}
            yield _panel(number, instrument, where)
        y += (len(instruments) + 1) // 2 * HEIGHT


def _panel(number: int, instrument: Instrument, where: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": instrument.prometheus,
        "description": instrument.what,
        "datasource": SOURCE,
        "gridPos": where,
        "fieldConfig": {
            "defaults": {"unit": _unit(instrument), "min": 0, "custom": {"fillOpacity": 10}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for n, (expr, legend) in enumerate(_queries(instrument))
        ],
    }


def _unit(instrument: Instrument) -> str:
    if instrument.unit == "s":
        return "s"
    return "cps" if instrument.kind is Kind.COUNTER else "short"


def _queries(instrument: Instrument) -> Iterator[tuple[str, str]]:
    """The expressions, and how each series is named."""
    name = instrument.prometheus
    labels = [prometheus(label) for label in instrument.labels]
    chosen = f'{{{prometheus(QUEUE)}=~"$queue"}}' if QUEUE in instrument.labels else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    if instrument.kind is Kind.COUNTER:
        yield f"{_sum(labels)}(rate({name}{chosen}[$__rate_interval]))", legend or name
    elif instrument.kind is Kind.HISTOGRAM:
        buckets = f"rate({name}_bucket{chosen}[$__rate_interval])"
        for quantile in QUANTILES:
            found = f"histogram_quantile({quantile}, {_sum([*labels, 'le'])}({buckets}))"
            yield found, f"{quantile:.0%} {legend}"
    else:
        # The state of several workers: what is counted is added up, and of a time the longest.
        adds_up = instrument.unit.startswith("{") and instrument not in OF_QUEUES
        yield f"{_by('sum' if adds_up else 'max', labels)}({name}{chosen})", legend or name


def _sum(labels: Sequence[str]) -> str:
    return _by("sum", labels)


def _by(how: str, labels: Sequence[str]) -> str:
    return f"{how} by ({', '.join(labels)}) " if labels else how


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    files.replace(FILE, text().encode(), files.PUBLIC)
