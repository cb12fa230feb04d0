"""Who is measured, and how each is started."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from devstack import sqs
from devstack.sqs import QueuePair

#: The yardstick of the ratios in the table.
BEST_OF_STOCK = "stock, best settings"


@dataclass(frozen=True)
class Place:
    """Where a worker finds its servers."""

    sqs_endpoint: str
    """The proxy's URL."""
    queues: QueuePair
    mongo_uri: str


# By identity: its settings are a mapping, which has no hash.
@dataclass(frozen=True, eq=False)
class Candidate:
    """A broker with its settings."""

    name: str
    app: str
    arguments: tuple[str, ...] = ()
    """For `celery worker`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of stock Celery; ours has its defaults."""

    def environment(self, place: Place) -> dict[str, str]:
        """What the worker's process needs beyond PATH and HOME."""
        shared = {
            "AWS_REGION": sqs.REGION,
            "AWS_DEFAULT_REGION": sqs.REGION,
            "AWS_ACCESS_KEY_ID": sqs.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": sqs.ACCESS_KEY,
            "MONGO_URI": place.mongo_uri,
        }
        return shared | (self._ours(place) if self.app == "bench.ours" else self._stock(place))

    def _ours(self, place: Place) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": place.sqs_endpoint,
            "AWS_SQS_QUEUE_URL": place.queues.url,
            "AWS_SQS_DLQ_URL": place.queues.dead_letter_url,
        }

    def _stock(self, place: Place) -> dict[str, str]:
        url = place.queues.url
        transport = {
            "region": sqs.REGION,
            "is_secure": False,
            "visibility_timeout": 60,
            "predefined_queues": {url.rsplit("/", 1)[-1]: {"url": url}},
            **self.settings.get("broker_transport_options", {}),
        }
        settings = {**self.settings, "broker_transport_options": transport}
        address = urlsplit(place.sqs_endpoint).netloc
        return {
            "BENCH_STOCK": json.dumps(settings),
            # The address in it is kombu's way to a server that is not AWS.
            "BENCH_BROKER": f"sqs://{sqs.ACCESS_KEY}:{sqs.ACCESS_KEY}@{address}",
        }


CANDIDATES = (
    Candidate("this project", "bench.ours"),
    Candidate("this project, 8 processes", "bench.ours", ("-c", "8")),
    Candidate(
        BEST_OF_STOCK,
        "bench.stock",
        ("-c", "8", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        {
            "worker_prefetch_multiplier": 4,
            "worker_enable_remote_control": False,
            "broker_transport_options": {"polling_interval": 0, "wait_time_seconds": 20},
        },
    ),
    Candidate("stock, defaults", "bench.stock"),
)
