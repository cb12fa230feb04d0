"""The probe project on kombu's own SQS transport."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu import Exchange, Queue

from tests.probe.project import ProbeProject


class StockProject(ProbeProject):
    """The same tasks and the same settings of Celery, without `sqs_broker`.

    The transport has what its documentation recommends: queues by name, long polls, and no pause
    between them (kombu 5.7 transport/SQS/__init__.py, "polling_interval").
    """

    def _default_transport(self) -> dict[str, Any]:
        return {
            "region": self.queues.region,
            "endpoint_url": self.queues.endpoint_url,
            "predefined_queues": {self.queues.name: {"url": self.queues.url}},
            "wait_time_seconds": 1,
            "polling_interval": 0,
        }

    def _write(self, settings: Any) -> None:
        transport = {k: v for k, v in settings["transport"].items() if k != "endpoint_url"}
        url = broker_url(settings["transport"]["endpoint_url"])
        super()._write({**settings, "transport": transport, "broker_url": url})

    def _write_broker(self, package: Path) -> None:
        package.mkdir()
        shutil.copy(Path(__file__).with_name("stock.py"), package / "__init__.py")

    def _make_producer(self) -> Celery:
        producer = Celery("producer", set_as_current=False)
        producer.conf.update(
            broker_url=broker_url(self.queues.endpoint_url),
            broker_transport_options={
                k: v for k, v in self.transport.items() if k != "endpoint_url"
            },
            task_queues=[Queue(self.queues.name, Exchange(""), routing_key=self.queues.name)],
            task_default_queue=self.queues.name,
            task_default_exchange="",
            task_default_routing_key=self.queues.name,
            task_create_missing_queues=False,
            task_ignore_result=True,
        )
        return producer


def broker_url(endpoint_url: str) -> str:
    """kombu's way to name an endpoint, with credentials that the test server believes."""
    address = urlsplit(endpoint_url)
    return f"sqs://test:test@{address.hostname}:{address.port}"
