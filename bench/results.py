"""Everything a run measured, as it is written to JSON and read back for the documents."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from sqs_broker.machine import files


@dataclass(frozen=True)
class Round:
    """What happened in one window of time."""

    seconds: float
    deleted: int
    """Messages."""
    calls: dict[str, int]
    """Of SQS, by API action."""
    commands: dict[str, int]
    """Of MongoDB, by name."""
    worker_cpu: float | None
    """CPU seconds of the worker and its pool."""
    proxy_cpu: float | None
    server_cpu: float | None
    memory: int | None
    """Bytes of the worker and its pool (proportional set size)."""
    stored: int = 0
    """Users; 0 where the work stores none."""
    database_cpu: float | None = None
    rest_cpu: float | None = None
    """CPU seconds of all that is none of these: of other programs, and of the benchmark itself."""

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.deleted / self.seconds

    @property
    def a_cpu_second(self) -> float | None:
        """Messages for each CPU second of the workers."""
        return self.deleted / self.worker_cpu if self.worker_cpu else None

    def calls_a_message(self, word: str = "") -> float:
        """Calls whose action starts so, for each deleted message."""
        return sum(n for action, n in self.calls.items() if action.startswith(word)) / self.deleted

    @property
    def trips_a_message(self) -> float:
        """Round trips to MongoDB for each message: for each stored one, where the work stores,
        since those that are stored and not deleted yet come and go."""
        return sum(self.commands.values()) / (self.stored or self.deleted)

    @property
    def cpu_a_thousand(self) -> float | None:
        """The worker's CPU seconds for a thousand messages."""
        return None if self.worker_cpu is None else self.worker_cpu / self.deleted * 1000


@dataclass(frozen=True)
class Throughput:
    """A consumer on a full queue."""

    config: str
    task: str
    added_ms: float
    workers: int
    backlog: int
    """Messages in the queue before the worker starts, at the most."""
    rounds: list[Round] = field(default_factory=list)
    queues: int = 1
    """Queues that the worker receives from."""

    @property
    def rate(self) -> float:
        """Messages a second: the median of the rounds."""
        return median(each.rate for each in self.rounds)

    def median(self, figure: Callable[[Round], float | None]) -> float | None:
        """Of this figure of each round; None where no round has it."""
        known = [value for each in self.rounds if (value := figure(each)) is not None]
        return median(known) if known else None

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest rate."""
        rates = [each.rate for each in self.rounds]
        return min(rates), max(rates)


@dataclass(frozen=True)
class Latency:
    """From sent to stored, in milliseconds, at a share of what the consumer can carry."""

    config: str
    added_ms: float
    load: float
    """1 is the consumer's throughput."""
    rate: float
    """Messages a second that were sent."""
    sent: int
    stored: int
    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class Load:
    """A worker while messages come at a steady rate that it can carry."""

    config: str
    added_ms: float
    asked: float
    """Messages a second that were to be sent."""
    seconds: float
    sent: int
    deleted: int
    calls: dict[str, int]
    """Of SQS, by API action, the sender's not included."""
    commands: dict[str, int]
    """Of MongoDB, by name."""
    worker_cpu: float | None
    database_cpu: float | None
    log_bytes: int
    """That the worker wrote to its log."""
    p50: float | None
    """Milliseconds from sent to stored, like p99."""
    p99: float | None

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.deleted / self.seconds

    @property
    def calls_a_second(self) -> float:
        return sum(self.calls.values()) / self.seconds

    @property
    def commands_a_second(self) -> float:
        return sum(self.commands.values()) / self.seconds


@dataclass(frozen=True)
class Storage:
    """What users take in MongoDB. Bytes."""

    users: int
    data: int
    """Without compression."""
    files: int
    """The collection on the disk, compressed."""
    indexes: int
    """All indexes on the disk."""


@dataclass(frozen=True)
class Quiet:
    """A worker while no message comes, or none ends."""

    config: str
    state: str
    """`idle`, or `full`: every slot has a long task and the window is full."""
    seconds: float
    cores: float | None
    calls_an_hour: float
    memory: int | None


@dataclass(frozen=True)
class Recovery:
    """What `kill -9` of a worker left, and another worker stored."""

    config: str
    visibility_timeout: int
    left: int
    """Messages that the killed worker had received and not deleted."""
    seconds: float
    """From the kill until the last of them was stored."""


@dataclass(frozen=True)
class Events:
    """A steady flow of tasks, each of which makes three events."""

    config: str
    rate: float
    """Events a second that were to be made."""
    seconds: float
    sent: int
    """Tasks."""
    settled: int
    """Tasks done by the end of the flow."""
    cores: float | None
    """Of the worker and its pool."""
    commands_a_second: float
    """Of MongoDB, the listener's included."""
    heard: int | None = None
    """Task events that a listener got; None where nobody listened."""
    lag_p99: float | None = None
    """Milliseconds from an event to the listener."""


@dataclass(frozen=True)
class Publishing:
    """Sending registrations from one process."""

    way: str
    messages: int
    seconds: float
    calls: dict[str, int]
    cpu: float | None = None
    """CPU seconds of the process."""

    @property
    def calls_a_message(self) -> float:
        return sum(self.calls.values()) / self.messages

    @property
    def cpu_us(self) -> float | None:
        """CPU microseconds for each message."""
        return None if self.cpu is None else self.cpu / self.messages * 1e6


@dataclass(frozen=True)
class FirstUse:
    """A process that imports the tasks and sends by `.delay`, with nothing added to a call. Medians
    of several processes."""

    imported: float
    """Seconds of the import."""
    first: float
    """Seconds of the first call."""
    later_us: float
    """CPU microseconds of a later call, of which one follows another."""


@dataclass(frozen=True)
class Requests:
    """Clients of an HTTP server that puts each registration on SQS before it answers."""

    way: str
    clients: int
    added_ms: float
    rate: float | None
    """Requests a second that were asked; None: each client asked again at once."""
    seconds: float
    accepted: int
    refused: int
    p50: float
    """Milliseconds, like p99."""
    p99: float
    calls_a_request: float
    cpu_ms: float | None
    """CPU milliseconds of the server's processes for each request."""
    processes: int = 1
    """Processes of the server."""

    @property
    def per_second(self) -> float:
        """Requests that were accepted each second."""
        return self.accepted / self.seconds

    @property
    def is_full(self) -> bool:
        """Whether one process got as many requests as it could answer."""
        return self.rate is None and self.processes == 1


@dataclass(frozen=True)
class Lone:
    """One request after the other, and one call to SQS after the other. Medians in milliseconds."""

    request_ms: float
    call_ms: float
    """`send_message` of boto3, through the same proxy."""


@dataclass(frozen=True)
class BatchSent:
    """One request with many registrations."""

    items: int
    accepted: int
    seconds: float
    calls: int
    most_open: int
    """Most calls that were open at the same time."""


@dataclass(frozen=True)
class Limits:
    """Of the proxy, with no delay, and of mongod."""

    calls_a_second: float
    """What eight clients got through it, sharing the machine with it."""
    calls_a_cpu_second: float | None
    """What one core that does nothing else could carry."""
    added_ms: float
    """What one call takes longer through it."""
    upsert_ms: float
    """What one upsert takes where nobody else writes: a worker's process waits so long for each."""


@dataclass
class Results:
    """A whole run."""

    at: str
    machine: str
    versions: dict[str, str]
    server: str
    rounds: int
    window: float
    """Seconds."""
    command: str
    limits: Limits | None = None
    throughput: list[Throughput] = field(default_factory=list)
    depths: list[Throughput] = field(default_factory=list)
    queues: list[Throughput] = field(default_factory=list)
    """One busy queue among some that are empty."""
    fleets: list[Throughput] = field(default_factory=list)
    """One worker, and several on one queue."""
    loads: list[Load] = field(default_factory=list)
    """One worker at several rates."""
    storage: Storage | None = None
    latency: list[Latency] = field(default_factory=list)
    quiet: list[Quiet] = field(default_factory=list)
    recovery: list[Recovery] = field(default_factory=list)
    publishing: list[Publishing] = field(default_factory=list)
    first_use: FirstUse | None = None
    events: list[Events] = field(default_factory=list)
    requests: list[Requests] = field(default_factory=list)
    lone: Lone | None = None
    batch: BatchSent | None = None
    skipped: list[str] = field(default_factory=list)
    """What was not measured, and why."""
    failed: list[str] = field(default_factory=list)
    seconds: float = 0

    def find(self, config: str, task: str, added_ms: float, workers: int = 1) -> Throughput | None:
        """The row of these, where it was measured."""
        for row in self.throughput:
            if (row.config, row.task, row.added_ms, row.workers) == (
                config, task, added_ms, workers,
            ):  # fmt: skip
                return row
        return None

    def full(self, way: str) -> Requests | None:
        """One process of a way of the API that got as many requests as it could answer, of most
        clients."""
        found = [each for each in self.requests if each.is_full and each.way == way]
        return max(found, key=lambda each: each.clients, default=None)

    def ratio(self, row: Throughput, to: str) -> float | None:
        """How many times the rate of another consumer at the same work."""
        other = self.find(to, row.task, row.added_ms, row.workers)
        return row.rate / other.rate if other else None


_ADAPTER = TypeAdapter(Results)


def load(path: Path) -> Results:
    """Read what `save` wrote. Raises pydantic's ValidationError where it is something else."""
    return _ADAPTER.validate_json(path.read_bytes())


def save(results: Results, path: Path) -> None:
    """Write it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, _ADAPTER.dump_json(results, indent=1) + b"\n", files.PUBLIC)


def difference(after: Counter[str], before: Counter[str]) -> dict[str, int]:
    """What was added, by name, without what was not."""
    return dict(after - before)
