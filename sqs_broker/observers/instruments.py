"""What is measured: the name, unit, labels and buckets of each figure of a process.

Names, units and buckets are those of OpenTelemetry's messaging conventions, which are in
development: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/
What they lack begins with `sqs_broker`. docs/metrics.md lists all of them.

No label has an id or what a user typed: each is a name of the configuration or of the code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

#: The labels, by OpenTelemetry's names.
QUEUE = "messaging.destination.name"
ACTION = "messaging.operation.name"
ERROR = "error.type"
TASK = "sqs_broker.task"
RESULT = "sqs_broker.result"
REASON = "sqs_broker.reason"
OUTCOME = "sqs_broker.outcome"
STATE = "sqs_broker.state"

#: OpenTelemetry's buckets for messaging, in seconds.
SHORT = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

#: Up to a day, in seconds. A message can wait for longer than OpenTelemetry's buckets reach.
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
        21600.0, 86400.0)  # fmt: skip

ATTEMPTS = (1.0, 2.0, 3.0, 5.0, 10.0)


class Kind(Enum):
    """How the values of a figure belong together."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


@dataclass(frozen=True, eq=False)
class Instrument:
    """One figure."""

    name: str
    """Its name in OpenTelemetry."""
    kind: Kind
    unit: str
    """A unit of UCUM: `s`, or what is counted in braces."""
    what: str
    """What it counts or measures, in one sentence."""
    labels: tuple[str, ...] = ()
    buckets: Sequence[float] = ()
    """Upper bounds of a histogram, without the last one, which is infinite."""

    @property
    def prometheus(self) -> str:
        """Its name in Prometheus, by the rules of OpenTelemetry: with the unit, and with `_total`
        if it is a counter.
        https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/"""
        unit = "_seconds" if self.unit == "s" else ""
        total = "_total" if self.kind is Kind.COUNTER else ""
        return f"{prometheus(self.name)}{unit}{total}"


def prometheus(name: str) -> str:
    """A name or a label of OpenTelemetry in Prometheus."""
    return name.replace(".", "_")


def _counter(name: str, unit: str, what: str, *labels: str) -> Instrument:
    return Instrument(name, Kind.COUNTER, unit, what, labels)


def _histogram(
    name: str, unit: str, buckets: Sequence[float], what: str, *labels: str
) -> Instrument:
    return Instrument(name, Kind.HISTOGRAM, unit, what, labels, buckets)


def _gauge(name: str, unit: str, what: str, *labels: str) -> Instrument:
    return Instrument(name, Kind.GAUGE, unit, what, labels)


# What happens to messages

SENT = _counter(
    "messaging.client.sent.messages",
    "{message}",
    "Messages that this process and its pool sent and SQS accepted, without copies of messages.",
    QUEUE,
)
CONSUMED = _counter(
    "messaging.client.consumed.messages", "{message}", "Messages that receives returned.", QUEUE
)
STARTED = _counter(
    "sqs_broker.messages.started", "{message}", "Runs of a task that began.", QUEUE, TASK
)
DONE = _counter(
    "sqs_broker.messages.done",
    "{message}",
    "Runs that succeeded, by the class of their result.",
    QUEUE,
    TASK,
    RESULT,
)
DISCARDED = _counter(
    "sqs_broker.messages.discarded",
    "{message}",
    "Messages that were revoked, before or while they ran, or that had expired.",
    QUEUE,
    REASON,
)
RETRIED = _counter(
    "sqs_broker.messages.retried", "{message}", "Attempts that are followed by another.", QUEUE,
    ERROR,
)  # fmt: skip
DEAD_LETTERED = _counter(
    "sqs_broker.messages.dead_lettered",
    "{message}",
    "Messages that go to the dead-letter queue.",
    QUEUE,
    REASON,
    ERROR,
)
RELEASED = _counter(
    "sqs_broker.messages.released",
    "{message}",
    "Messages that were released, which is no attempt.",
    QUEUE,
    REASON,
)
POSTPONED = _counter(
    "sqs_broker.messages.postponed",
    "{message}",
    "Messages that are replaced by a delayed copy, which is no attempt.",
    QUEUE,
)
LOST = _counter(
    "sqs_broker.leases.lost", "{lease}", "Leases that were lost: the message comes again.", QUEUE,
    REASON,
)  # fmt: skip
SETTLED = _counter(
    "sqs_broker.settlements",
    "{message}",
    "Outcomes that SQS accepted, or, with an error, that it never will.",
    QUEUE,
    OUTCOME,
    ERROR,
)
ATTEMPT = _histogram(
    "sqs_broker.message.attempts",
    "{attempt}",
    ATTEMPTS,
    "The number of the attempt, of each run that ended.",
    QUEUE,
    OUTCOME,
)

# How long it takes

IN_QUEUE = _histogram(
    "sqs_broker.message.queue.duration",
    "s",
    LONG,
    "From sent to received, of messages that were received for the first time.",
    QUEUE,
)
IN_WORKER = _histogram(
    "sqs_broker.message.wait.duration", "s", SHORT, "From received to started.", QUEUE
)
RUN = _histogram(
    "messaging.process.duration", "s", SHORT, "From started to the end of the run.", QUEUE, TASK,
    ERROR,
)  # fmt: skip
WHOLE = _histogram(
    "sqs_broker.message.duration",
    "s",
    LONG,
    "From sent to done, of messages that succeeded, with all attempts.",
    QUEUE,
)

# SQS

CALL = _histogram(
    "messaging.client.operation.duration",
    "s",
    SHORT,
    "Calls to SQS. A receive call lasts as long as its poll.",
    QUEUE,
    ACTION,
    ERROR,
)
RECEIVES = _counter(
    "sqs_broker.receives",
    "{call}",
    "Receive calls that SQS answered: empty, partial, or full, which is as many as asked for.",
    QUEUE,
    STATE,
)

# The state of a worker

IN_FLIGHT = _gauge("sqs_broker.messages.in_flight", "{message}", "Messages in hand.", QUEUE)
OLDEST = _gauge(
    "sqs_broker.messages.oldest.age",
    "s",
    "Since the oldest message in hand was sent, with all attempts. 0 without one.",
    QUEUE,
)
WINDOW = _gauge("sqs_broker.window", "{message}", "The most messages that may be in hand.")
WAITING = _gauge(
    "sqs_broker.settlements.waiting", "{message}", "Outcomes that are not yet reported to SQS."
)
BUSY = _gauge("sqs_broker.pool.busy", "{message}", "Messages that run.")
POOL = _gauge("sqs_broker.pool.size", "{run}", "Runs that the pool does at a time.")
PAUSED = _gauge(
    "sqs_broker.paused", "1", "1 while nothing is received, for this reason; 0 after it.", REASON
)
LAG = _gauge(
    "sqs_broker.loop.lag",
    "s",
    "By how much the heartbeat of the event loop, one a second, is late.",
)
CONTROL_LOST = _counter(
    "sqs_broker.control.lost", "{event}", "Events and replies that were never written."
)

# The state of a queue, which Flower asks for

DEPTH = _gauge(
    "sqs_broker.queue.messages",
    "{message}",
    "Messages of a queue, as SQS counts them: visible, in flight, delayed.",
    QUEUE,
    STATE,
)
DEAD_LETTERS = _gauge(
    "sqs_broker.queue.dead_letters",
    "{message}",
    "Messages in the dead-letter queue of a queue: visible, in flight, delayed.",
    QUEUE,
    STATE,
)
QUEUE_AGE = _gauge(
    "sqs_broker.queue.oldest.age",
    "s",
    "Since the oldest message of a queue was sent, as CloudWatch knows it.",
    QUEUE,
)
READ = _gauge(
    "sqs_broker.queue.readable", "1", "1 if SQS counted the messages of a queue; else 0.", QUEUE
)

QUEUE_PAUSED = _gauge(
    "sqs_broker.queue.paused",
    "1",
    "1 while an operator has paused a queue, else 0; missing if that is not known.",
    QUEUE,
)

#: Those that Flower has.
OF_QUEUES = (DEPTH, DEAD_LETTERS, QUEUE_AGE, READ, QUEUE_PAUSED)


def _all() -> Iterator[Instrument]:
    for value in list(globals().values()):
        if isinstance(value, Instrument):
            yield value


#: All of them, in the order of this file.
ALL = tuple(_all())
