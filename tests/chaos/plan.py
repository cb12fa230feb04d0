"""What happens when: a list of strikes that a seed gives, the same each time."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqs_broker.options import BOTO3, CURL
from tests.faults import proxy
from tests.faults.proxy import Fault

#: Workers by pool, a slot each.
POOLS = ("prefork", "prefork", "prefork", "threads")

#: What calls SQS in each of them, if they are of this project.
BOTH_CLIENTS = (CURL, BOTO3, BOTO3, CURL)

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
GROUP = "worker and its pool are asked to stop (SIGTERM to each process)"
ROLL = "worker restarted in turn with all others while messages wait"
DEPLOY = "all workers replaced in turn by a release with a new task"
EARLY = "message of the new task sent before every worker has it"
UNKNOWN = "worker receives a task that it does not have"
OLD_WORKER = "worker of an older commit replaced"

#: The task that only the next release has, and the one that fails in each run (releases/).
NEW_TASK = "later"
FAILING_TASK = "fail"

#: Failed runs after which a message of the failing task is dead-lettered.
MOST_RUNS = 3

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
    groups: int
    """Stops of a worker by a signal to each of its processes."""
    rolls: int
    deploys: int
    """At most one."""
    new: int
    """Messages of the task that the deploy brings."""
    failing: int
    """Messages of a task that fails in each run."""
    attempts: int
    """Attempts that any other message may have."""
    rounds: int
    """Of every fault of every call."""
    mongo: Mapping[str, tuple[int, float]]
    """Of each kind of trouble with MongoDB: how often it comes, and for how many seconds."""
    minimum: float
    """The part of what was planned that has to land."""
    clients: Sequence[str] = BOTH_CLIENTS
    """What calls SQS in each worker of this project."""

    @property
    def is_exact(self) -> bool:
        """Whether a failing message has exactly as many failed runs as it may: it has more if
        MongoDB, which counts them, is away, or if a worker is killed before it has told it."""
        return not (self.kills or self.main_kills or self.child_kills or self.stops or self.mongo)


FULL = Scale(
    messages=4_500, seconds=360, drain=200,
    restarts=12, kills=5, main_kills=3, child_kills=24, stops=6, rounds=6,
    groups=8, rolls=2, deploys=1, new=60, failing=60, attempts=500,
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
    groups=2, rolls=1, deploys=1, new=12, failing=12, attempts=500,
    mongo={
        STOP_MONGO: (1, 3), RESTART_MONGO: (1, 1), SWALLOW_MONGO: (1, 3),
        FAILOVER: (1, 1), STEP_DOWN: (1, 0), ROLL_BACK: (1, 2),
        STANDALONE: (1, 3), STANDALONES: (1, 3), MOVE: (1, 0),
        BLOCK: (1, 3), REVOKE: (1, 3), NO_MAJORITY: (1, 3),
    },
    minimum=0.5,
)  # fmt: skip

#: Workers come and go, and nothing else goes wrong. So no good message may use up an attempt.
DEPLOYS = Scale(
    messages=400, seconds=60, drain=90,
    restarts=4, kills=0, main_kills=0, child_kills=0, stops=0, rounds=0,
    groups=6, rolls=2, deploys=1, new=30, failing=30, attempts=3,
    mongo={},
    minimum=0.5,
)  # fmt: skip

#: The kinds of trouble with MongoDB, each of which lands as often as it is planned: there is always
#: a MongoDB to be troubled.
MONGO = tuple(FULL.mongo)

#: The kinds that land as often as they are planned: the others need a worker in a certain state.
CERTAIN = (*MONGO, DEPLOY)

#: Seconds of messages that come at once when a rolling restart begins.
BURST = 12.0

#: Seconds between the first message of the new task and the first worker that has it.
LEAD = 3.0


def schedule(seed: int, scale: Scale, *, has_old: bool = False) -> list[Strike]:
    """Every strike of a run, in order. The same seed and scale give the same ones. `has_old`:
    whether workers of an older commit take part, until the deploy."""
    chance = random.Random(seed)
    strikes = [*_of_sqs(chance, scale), *_of_mongo(chance, scale), *_of_workers(chance, scale)]
    strikes += [
        # Else before messages wait, or those of the new task would wait until all workers have it.
        Strike(scale.seconds * (0.5 if has_old else 0.02), DEPLOY, seconds=LEAD)
        for _ in range(scale.deploys)
    ]
    return sorted(strikes, key=lambda strike: strike.at)


def planned(strikes: list[Strike]) -> Counter[str]:
    """How much is to land of each kind: a strike, or of a rolling restart each worker."""
    counts = Counter(strike.kind for strike in strikes)
    if ROLL in counts:
        counts[ROLL] *= len(POOLS)
    return counts


def least(expected: Mapping[str, int], scale: Scale) -> dict[str, int]:
    """How many strikes of each kind have to land, or the run has failed."""
    return {
        kind: count if kind in CERTAIN else int(count * scale.minimum)
        for kind, count in expected.items()
    }


def _of_sqs(chance: random.Random, scale: Scale) -> Iterator[Strike]:
    for call in CALLS if scale.rounds else ():
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
        GROUP: scale.groups,
    }
    for kind, count in counts.items():
        slots = range(len(POOLS)) if kind in (KILL_WORKER, STOP_WORKER, GROUP) else prefork
        for _ in range(count):
            at, slot = chance.uniform(0, scale.seconds * 0.9), chance.choice(list(slots))
            yield Strike(at, kind, slot, chance.uniform(*STOPPED))
    # Rolling: one after the other, evenly.
    for number in range(scale.restarts):
        at = scale.seconds * (number + 0.5) / scale.restarts
        yield Strike(at, RESTART, number % len(POOLS))
    for number in range(scale.rolls):
        yield Strike(scale.seconds * (0.3 + 0.4 * number / scale.rolls), ROLL)
