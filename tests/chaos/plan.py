"""What happens when: a list of strikes that a seed gives, the same each time."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
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
FAILOVER = "MongoDB's primary is killed during a write (kill -9)"
STEP_DOWN = "MongoDB's primary steps down during a write"
STANDALONE = "MongoDB's primary restarts as a standalone"
STANDALONES = "every member of MongoDB restarts as a standalone"
MOVE = "MongoDB's primary comes back at another address"
BLOCK = "MongoDB refuses writes (setUserWriteBlockMode)"
REVOKE = "MongoDB's user has lost its rights"
NO_MAJORITY = "MongoDB's secondaries are stopped: no majority"
ROLL_BACK = "MongoDB's primary is killed, and its last writes are rolled back"
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
    mongo: Mapping[str, tuple[int, float]]
    """Of each kind of trouble with MongoDB: how often it comes, and for how many seconds."""
    minimum: float
    """The part of what was planned that has to land."""


FULL = Scale(
    messages=4_500, seconds=360, drain=200,
    restarts=12, kills=5, main_kills=3, child_kills=24, stops=6, rounds=6,
    mongo={
        STOP_MONGO: (1, 12), RESTART_MONGO: (1, 12), SWALLOW_MONGO: (1, 12),
        FAILOVER: (3, 4), STEP_DOWN: (3, 2), ROLL_BACK: (2, 4),
        STANDALONE: (1, 15), STANDALONES: (1, 15), MOVE: (1, 2),
        BLOCK: (1, 10), REVOKE: (1, 10), NO_MAJORITY: (1, 10),
    },
    minimum=0.6,
)  # fmt: skip

SHORT = Scale(
    messages=600, seconds=60, drain=90,
    restarts=2, kills=2, main_kills=2, child_kills=3, stops=2, rounds=1,
    mongo={
        STOP_MONGO: (1, 3), RESTART_MONGO: (1, 1), SWALLOW_MONGO: (1, 3),
        FAILOVER: (1, 1), STEP_DOWN: (1, 0), ROLL_BACK: (1, 2),
        STANDALONE: (1, 3), STANDALONES: (1, 3), MOVE: (1, 0),
        BLOCK: (1, 3), REVOKE: (1, 3), NO_MAJORITY: (1, 3),
    },
    minimum=0.5,
)  # fmt: skip

#: The kinds of trouble with MongoDB, each of which lands as often as it is planned: there is always
#: a MongoDB to be troubled.
MONGO = tuple(FULL.mongo)


def schedule(seed: int, scale: Scale) -> list[Strike]:
    """Every strike of a run, in order. The same seed and scale give the same ones."""
    chance = random.Random(seed)
    strikes = [*_of_sqs(chance, scale), *_of_mongo(chance, scale), *_of_workers(chance, scale)]
    return sorted(strikes, key=lambda strike: strike.at)


def planned(strikes: list[Strike]) -> Counter[str]:
    """How many strikes there are of each kind."""
    return Counter(strike.kind for strike in strikes)


def least(expected: Mapping[str, int], scale: Scale) -> dict[str, int]:
    """How many strikes of each kind have to land, or the run has failed."""
    return {
        # MongoDB is always there to be struck.
        kind: count if kind in MONGO else int(count * scale.minimum)
        for kind, count in expected.items()
    }


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


def _of_mongo(chance: random.Random, scale: Scale) -> Iterator[Strike]:
    """One after the other, with equal pauses between them."""
    kinds = [kind for kind, (times, _) in scale.mongo.items() for _ in range(times)]
    chance.shuffle(kinds)
    pause = (scale.seconds - sum(scale.mongo[kind][1] for kind in kinds)) / (len(kinds) + 1)
    at = pause
    for kind in kinds:
        seconds = scale.mongo[kind][1]
        yield Strike(at, kind, seconds=seconds)
        at += seconds + pause


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
