"""What happens when: a list of strikes that a seed gives, the same each time."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.faults import proxy
from tests.faults.proxy import Fault

#: Workers by pool, a slot each.
POOLS = ("prefork", "prefork", "prefork", "threads")

#: Seconds of a lease, and those that a worker is stopped so that its leases run out.
VISIBILITY = 5
STOPPED = (7.0, 9.0)

RESTART = "worker restarted (SIGTERM)"
KILL_WORKER = "worker killed with its pool (kill -9)"
KILL_MAIN = "main process killed alone (kill -9)"
KILL_CHILD = "pool process killed (kill -9)"
STOP_WORKER = "worker stopped for longer than its leases (SIGSTOP)"
STOP_MONGO = "MongoDB stops answering (SIGSTOP)"
RESTART_MONGO = "MongoDB is shut down and started again"
SWALLOW_MONGO = "MongoDB is black-holed"
MONGO = (STOP_MONGO, RESTART_MONGO, SWALLOW_MONGO)
DUPLICATE = "message sent twice"

#: A kind of call by its names, of which stock kombu uses the first.
CALLS = {
    "receive": ("ReceiveMessage",),
    "delete": ("DeleteMessage", "DeleteMessageBatch"),
    "change of visibility": ("ChangeMessageVisibility", "ChangeMessageVisibilityBatch"),
    "send": ("SendMessage",),
}

FAULTS = {
    fault.name: fault
    for fault in (
        proxy.SERVER_ERROR,
        proxy.THROTTLED,
        proxy.EXPIRED,
        proxy.RESET,
        proxy.TRUNCATED,
        proxy.GARBLED,
        proxy.SILENT,
        proxy.LOST,
    )
}

#: The place of whoever sends, after the workers.
PRODUCER = len(POOLS)


@dataclass(frozen=True)
class Strike:
    """One thing that goes wrong."""

    at: float
    """Seconds after the start."""
    kind: str
    slot: int = 0
    seconds: float = 0.0
    call: str = ""
    fault: str = ""
    times: int = 1
    """Calls that fail, of each worker."""

    @property
    def what(self) -> Fault:
        return FAULTS[self.fault]


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    messages: int
    """Registrations, and as many increments."""
    seconds: float
    """For which messages come and things go wrong."""
    drain: float
    """Seconds that what is left may take."""
    restarts: int
    kills: int
    main_kills: int
    child_kills: int
    stops: int
    rounds: int
    """Of every fault of every call."""
    mongo: float
    """Seconds of each outage of MongoDB."""
    minimum: float
    """The part of what was planned that has to land."""


FULL = Scale(5_000, 280, 220, 12, 5, 3, 24, 6, 6, 12, 0.6)
SHORT = Scale(350, 28, 60, 2, 2, 2, 3, 2, 1, 3, 0.5)


def schedule(seed: int, scale: Scale) -> list[Strike]:
    """Every strike of a run, in order. The same seed and scale give the same ones."""
    chance = random.Random(seed)
    strikes = [*_of_sqs(chance, scale), *_of_mongo(scale), *_of_workers(chance, scale)]
    return sorted(strikes, key=lambda strike: strike.at)


def planned(strikes: list[Strike]) -> Counter[str]:
    """How many strikes there are of each kind."""
    return Counter(strike.kind for strike in strikes)


def _of_sqs(chance: random.Random, scale: Scale) -> Iterator[Strike]:
    for call in CALLS:
        faults = list(FAULTS) * scale.rounds
        chance.shuffle(faults)
        window = scale.seconds / len(faults)
        for number, fault in enumerate(faults):
            # One that never answers holds its caller up for long enough.
            times = 1 if fault == proxy.SILENT.name else chance.randint(1, 3)
            kind = f"{call}: {fault}"
            yield Strike(number * window, kind, 0, window * 0.95, call, fault, times)


def _of_mongo(scale: Scale) -> Iterator[Strike]:
    for part, kind in ((0.2, STOP_MONGO), (0.45, RESTART_MONGO), (0.7, SWALLOW_MONGO)):
        yield Strike(scale.seconds * part, kind, seconds=scale.mongo)


def _of_workers(chance: random.Random, scale: Scale) -> Iterator[Strike]:
    prefork = [slot for slot, pool in enumerate(POOLS) if pool == "prefork"]
    counts = {
        KILL_WORKER: scale.kills,
        KILL_MAIN: scale.main_kills,
        KILL_CHILD: scale.child_kills,
        STOP_WORKER: scale.stops,
    }
    for kind, count in counts.items():
        slots = range(len(POOLS)) if kind in (KILL_WORKER, STOP_WORKER) else prefork
        for _ in range(count):
            at, slot = chance.uniform(0, scale.seconds * 0.9), chance.choice(list(slots))
            yield Strike(at, kind, slot, chance.uniform(*STOPPED))
    # Rolling: one after the other, evenly.
    for number in range(scale.restarts):
        at = scale.seconds * (number + 0.5) / scale.restarts
        yield Strike(at, RESTART, number % len(POOLS))
