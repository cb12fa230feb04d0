"""A worker on SQS in memory: receivers, leases, transport, consumer, Celery's strategies and trace,
and the settler are the real ones. Its pool is a class of the test's.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from celery import Celery
from celery.concurrency.base import BasePool
from celery.result import allow_join_result

from sqs_broker.observers.observer import Observer
from sqs_broker.options import Options
from sqs_broker.rules.attempts import Record
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import Happened, Outcome
from sqs_broker.testing import Clock, FakeSqs, MemoryAttempts
from sqs_broker.worker.loop import Loop

#: Seconds that nothing here comes near to.
DEADLINE = 30.0


class Outcomes(Observer):
    """The outcome of each message, by SQS's MessageId."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.by_id: dict[str, Outcome] = {}
        self.on_change = on_change

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        self.by_id[message.delivery.message_id] = outcome
        self.on_change()


class ControlDatabase:
    """The control database of a worker, as far as attempts go."""

    def __init__(self) -> None:
        self.memory = MemoryAttempts()

    def attempts(self, message_ids: Sequence[str]) -> dict[str, Record]:
        return dict(self.memory.read(message_ids))

    def add_attempts(self, changes: Mapping[str, Record]) -> dict[str, Record]:
        self.memory.add(changes)
        return dict(changes)

    def close(self) -> None:
        """Does nothing."""


def new_sqs(clock: Clock) -> FakeSqs:
    """A server with one queue, whose long polls stay open until something comes."""
    fake = FakeSqs(clock, holds_polls=True)
    fake.create_queue("jobs", dead_letters="jobs-dlq", visibility_timeout=60)
    return fake


class InMemoryWorker:
    """Runs what is put on its queue, for an app whose options reach `fake`, and has its own time:
    SQS's is `clock`. `events` takes its events."""

    def __init__(
        self,
        celery_app: Celery,
        fake: FakeSqs,
        clock: Clock,
        outcomes: Outcomes,
        pool: type[BasePool],
        events: Any = None,
    ) -> None:
        self.fake = fake
        self.options = Options.read(celery_app.conf.broker_transport_options)
        self.clock = clock
        self.outcomes = outcomes
        self.url = fake.options().queue("jobs").url
        # The pool's base forbids its process to wait for results, for good.
        with allow_join_result():
            controller = celery_app.WorkController(pool_cls=pool, concurrency=1)
        self.pool = controller.pool
        self.consumer = consumer = controller.consumer
        consumer.event_dispatcher = events
        consumer.update_strategies()
        consumer.connection = consumer.connect()
        consumer.task_consumer = celery_app.amqp.TaskConsumer(
            consumer.connection, on_decode_error=consumer.on_decode_error
        )
        consumer.task_consumer.on_message = consumer.create_task_handler()
        self.deliveries = consumer.task_consumer.channel.deliveries
        self.deliveries.attach(pool_has_processes=True, on_lease_lost=lambda _: None)
        consumer.task_consumer.qos(prefetch_count=100)
        consumer.task_consumer.consume()
        outcomes.on_change = consumer.connection.transport.inbox.wake
        self._loop = Loop(consumer.hub, "test.error")

    def receive(self, bodies: Sequence[str], *, receives: int = 0) -> list[Outcome]:
        """What becomes of messages that appear at the same time, in order. Each was received so
        often before."""
        ids = [self.fake.put(self.url, body, delay=1, receives=receives) for body in bodies]
        self.clock.advance(1)
        return self.outcomes_of(ids)

    def outcomes_of(self, ids: Sequence[str]) -> list[Outcome]:
        """What becomes of messages that are on the queue."""
        self.turn_until(lambda: self.outcomes.by_id.keys() >= set(ids))
        # Before more time passes: SQS's clock is the test's, and the settler's the machine's.
        assert self.deliveries.flush(DEADLINE)
        return [self.outcomes.by_id.pop(id_) for id_ in ids]

    def turn_until(self, condition: Callable[[], bool]) -> None:
        """Run the event loop until the condition is true."""
        deadline = monotonic() + DEADLINE
        while not condition():
            assert monotonic() < deadline, "it did not become true in time"
            next(self._loop)

    def close(self) -> None:
        """End its threads."""
        self.fake.end_polls()
        self.consumer.connection.close()
        self.consumer.hub.close()
