"""Who is measured, how each is started, and what its messages look like."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from bench import bodies, node
from bench.bodies import Body
from bench.doors import DOORS, MIXED
from devstack import ports, sqs
from devstack.sqs import QueuePair


@dataclass(frozen=True)
class Place:
    """Where a worker finds its servers."""

    sqs_endpoint: str
    """The proxy's URL."""
    queues: QueuePair
    mongo_uri: str
    others: tuple[QueuePair, ...] = ()
    """Queues that it receives from, too, and that are empty."""

    @property
    def queue(self) -> str:
        """Its name."""
        return self.queues.url.rsplit("/", 1)[-1]


# By identity: its settings are a mapping, which has no hash.
@dataclass(frozen=True, eq=False)
class Candidate:
    """A consumer with its settings."""

    name: str
    arguments: tuple[str, ...] = ()
    """Of its command line."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it has in place of its defaults."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for its tasks."""
    slots: int | None = None
    """Tasks at a time; None where nobody said."""
    door: str | None = None
    """Whose messages it gets (bench/doors.py); None where they are its own `body`."""

    def lacks(self, why_no_node: str | None) -> str | None:
        """Why it cannot run here; None where it can."""
        return None

    def body(self, task: str, queue: str) -> Body:
        """Makes its messages."""
        return bodies.plain(task, queue)

    def command(self) -> list[str]:
        """Starts it."""
        raise NotImplementedError

    def environment(self, place: Place, task: str) -> dict[str, str]:
        """What its process needs beyond PATH and HOME."""
        return {
            "AWS_REGION": sqs.REGION,
            "AWS_DEFAULT_REGION": sqs.REGION,
            "AWS_ACCESS_KEY_ID": sqs.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": sqs.ACCESS_KEY,
            "AWS_ENDPOINT_URL": place.sqs_endpoint,
            "AWS_SQS_QUEUE_URL": place.queues.url,
            "AWS_SQS_DLQ_URL": place.queues.dead_letter_url,
            "MONGO_URI": place.mongo_uri,
            "BENCH_TASK": task,
            **self.variables,
        }


class Ours(Candidate):
    """This project as it ships: celeryconfig.py with nothing set but addresses."""

    def body(self, task: str, queue: str) -> Body:
        return bodies.celery(task, queue)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "bench.ours", "worker", *self.arguments]

    def environment(self, place: Place, task: str) -> dict[str, str]:
        others = {
            pair.url.rsplit("/", 1)[-1]: {"url": pair.url, "dead_letter_url": pair.dead_letter_url}
            for pair in place.others
        }
        more = {"SQS_QUEUES": json.dumps(others)} if others else {}
        return super().environment(place, task) | more | dict(self.settings)


class Measured(Ours):
    """The same, with `/metrics` for Prometheus."""

    def environment(self, place: Place, task: str) -> dict[str, str]:
        port = str(ports.preferred_or_any(None))
        return super().environment(place, task) | {"WORKER_METRICS_PORT": port}


class Traced(Ours):
    """The same, with the spans of OpenTelemetry."""

    def lacks(self, why_no_node: str | None) -> str | None:
        is_there = importlib.util.find_spec("opentelemetry.sdk") is not None
        return None if is_there else "opentelemetry-sdk is not installed (dependency group test)"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "bench.traced", "worker", *self.arguments]

    def environment(self, place: Place, task: str) -> dict[str, str]:
        return super().environment(place, task) | {"TRACING": "true"}


class Alone(Ours):
    """The broker of this project in another project."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "bench.alone", "worker", *self.arguments]


class Stock(Candidate):
    """celery[sqs] and kombu 5.7."""

    def body(self, task: str, queue: str) -> Body:
        return bodies.stock_celery(task, queue)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "bench.stock", "worker", *self.arguments]

    def environment(self, place: Place, task: str) -> dict[str, str]:
        transport = {
            "region": sqs.REGION,
            "is_secure": False,
            "visibility_timeout": 60,
            "predefined_queues": {place.queue: {"url": place.queues.url}},
            **self.settings.get("broker_transport_options", {}),
        }
        settings = {**self.settings, "broker_transport_options": transport}
        address = urlsplit(place.sqs_endpoint).netloc
        return super().environment(place, task) | {
            "BENCH_STOCK": json.dumps(settings),
            # The address in it is kombu's way to a server that is not AWS.
            "BENCH_BROKER": f"sqs://{sqs.ACCESS_KEY}:{sqs.ACCESS_KEY}@{address}",
        }


class SqsConsumer(Candidate):
    """BBC's sqs-consumer."""

    def lacks(self, why_no_node: str | None) -> str | None:
        return why_no_node

    def command(self) -> list[str]:
        return node.command("consumer.mjs")


class Dramatiq(Candidate):
    """dramatiq with dramatiq-sqs."""

    def lacks(self, why_no_node: str | None) -> str | None:
        is_there = importlib.util.find_spec("dramatiq_sqs") is not None
        return None if is_there else "dramatiq-sqs is not installed (dependency group bench)"

    def body(self, task: str, queue: str) -> Body:
        return bodies.dramatiq(task, queue)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "dramatiq", "bench.actors", *self.arguments]

    def environment(self, place: Place, task: str) -> dict[str, str]:
        return super().environment(place, task) | {"BENCH_QUEUE": place.queue}


class Bare(Candidate):
    """boto3 and eight threads."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.bare", *self.arguments]


_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")
#: What is published for throughput on SQS, with the prefetch that measured best.
_BEST: Mapping[str, Any] = {
    "worker_prefetch_multiplier": 4,
    "worker_enable_remote_control": False,
    "broker_transport_options": {"polling_interval": 0, "wait_time_seconds": 20},
}
_THREADS = ("-P", "threads", "-c", "8")

OURS = Ours("this project")
OURS_8 = Ours("this project, 8 processes", ("-c", "8"), slots=8)
OURS_THREADS = Ours("this project, 8 threads", _THREADS, slots=8)
#: registerUser may do ten messages in one job, with one write; here each is a job of its own.
OURS_ALONE = Ours("this project, without batches", settings={"BENCH_BATCHES": "off"})
#: Each door's messages as its own producer sends them, with the time limits of its settings.
OURS_BY_DOOR = tuple(Ours(f"this project, door: {door}", door=door) for door in (*DOORS, MIXED))
#: What every language can send.
OURS_JSON = next(each for each in OURS_BY_DOOR if each.door == "plain JSON")
STOCK_PRODUCER = Stock(
    "a stock producer", settings={"task_time_limit": 30, "task_soft_time_limit": 25}
)
OURS_WITHOUT_EVENTS = Ours("this project, events off", settings={"BENCH_EVENTS": "off"})
OURS_WITHOUT_LINES = Ours("this project, no log lines", settings={"LOG_LEVEL": "WARNING"})
OURS_WITH_METRICS = Measured("this project, with metrics")
OURS_WITH_TRACES = Traced("this project, with traces")
ALONE_8 = Alone("this project's broker, 8 processes", ("-c", "8"), slots=8)
#: The yardstick of the ratios.
STOCK_BEST = Stock("stock Celery, best settings", ("-c", "8", *_QUIET), _BEST, slots=8)
STOCK_THREADS = Stock("stock Celery, 8 threads", (*_THREADS, *_QUIET), _BEST, slots=8)
STOCK_DEFAULTS = Stock("stock Celery, defaults")
SQS_CONSUMER = SqsConsumer("sqs-consumer")
DRAMATIQ = Dramatiq("dramatiq-sqs, 8 threads", ("-p", "1", "-t", "8"), slots=8)
#: The practical limit: what the calls alone cost.
BARE = Bare("bare boto3 loop", ("message",))
BARE_BULK = Bare("bare loop, bulk writes", ("batch",))

EVERYONE: tuple[Candidate, ...] = (
    OURS, OURS_8, OURS_THREADS, OURS_ALONE, STOCK_BEST, STOCK_THREADS, STOCK_DEFAULTS,
    SQS_CONSUMER, DRAMATIQ, BARE, BARE_BULK,
)  # fmt: skip
