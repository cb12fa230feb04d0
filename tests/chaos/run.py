"""One run of one side: what was sent, what went wrong, and what is left at the end."""

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pymongo.errors import PyMongoError

from tests.chaos.fleet import Fleet
from tests.chaos.plan import DUPLICATE, POOLS, Scale, least, planned, schedule
from tests.chaos.sides import Effects, Side
from tests.chaos.stage import Stage, standing
from tests.chaos.strikes import Strikes, nothing_left_broken
from tests.chaos.traffic import TWICE, Traffic
from tests.services import wait_until

#: Seconds for the first workers to be ready, and for the last ones to stop.
READY, STOPPED = 60, 40

#: Seconds in which a worker that is not deaf asks SQS at least once.
HEARS = 20

#: Seconds between two looks at what is left.
LOOK = 0.5


@dataclass
class Result:
    """What was seen."""

    side: str
    seed: int
    messages: int
    seconds: float = 0.0
    planned: dict[str, int] = field(default_factory=dict)
    landed: dict[str, int] = field(default_factory=dict)
    minimum: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, float] = field(default_factory=dict)
    """The longest, in seconds."""
    not_recovered: dict[str, int] = field(default_factory=dict)
    users: int = 0
    count: int = 0
    undone: list[str] = field(default_factory=list)
    """Messages without an effect when the run was over."""
    lost: int = 0
    """Of those, how many are in no queue either."""
    doubled: list[str] = field(default_factory=list)
    doubled_sent_twice: int = 0
    longest_wait: float = 0.0
    """Seconds from sent to done, of the slowest message."""
    left: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Messages in each queue: visible, in flight, delayed."""
    deaf: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    """How workers ended during the run."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Exit statuses when the run was over."""
    strays: list[int] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    """Lines of the workers' logs by their event."""
    most_deliveries: int = 0
    """Of one message, as the workers' logs have it."""

    def faults(self) -> list[str]:
        """Why the run failed; empty where every promise was kept."""
        short = [
            f"too few of «{kind}» landed: {self.landed.get(kind, 0)} of {least}"
            for kind, least in self.minimum.items()
            if self.landed.get(kind, 0) < least
        ]
        checks = {
            f"{self.users} users of {self.messages}": self.users != self.messages,
            f"the count is {self.count}, not {self.messages}": self.count != self.messages,
            f"not done: {self.undone[:5]}": bool(self.undone),
            f"lost: {self.lost}": self.lost > 0,
            f"doubled: {self.doubled[:5]}": bool(self.doubled),
            f"left in the queues: {self.left}": any(any(counts) for counts in self.left.values()),
            f"deaf: {self.deaf}": bool(self.deaf),
            f"workers that ended by themselves: {self.ends}": self.ends.get("by itself", 0) > 0,
            f"exit statuses at the end: {self.statuses}": set(self.statuses) != {"0"},
            f"stray processes: {self.strays}": bool(self.strays),
            f"not recovered from: {self.not_recovered}": bool(self.not_recovered),
        }
        return [*short, *(text for text, is_fault in checks.items() if is_fault)]


def run(
    side_class: type[Side], seed: int, scale: Scale, directory: Path, say: Callable[[str], None]
) -> Result:
    """Put one side through the schedule of a seed."""
    result = Result(side_class.name, seed, scale.messages)
    started = time.monotonic()
    with standing(directory, side_class.writes) as stage, nothing_left_broken(stage):
        side = side_class(stage)
        fleet = Fleet(POOLS, side.command, directory, uuid.uuid4().hex)
        try:
            _go(stage, side, fleet, scale, result, say)
        finally:
            fleet.stop(STOPPED)
        result.statuses = dict(fleet.statuses)
        with suppress(TimeoutError):
            wait_until(lambda: not fleet.strays(), HEARS, "the end of every process")
        result.strays = fleet.strays()
        _read_logs(fleet.logs(), result)
    result.seconds = time.monotonic() - started
    return result


def _go(
    stage: Stage,
    side: Side,
    fleet: Fleet,
    scale: Scale,
    result: Result,
    say: Callable[[str], None],
) -> None:
    fleet.start()
    wait_until(
        lambda: all(slot.is_ready() for slot in fleet.slots), READY, "workers that are ready"
    )
    say(f"{side.name}: {len(fleet.slots)} workers are ready")
    traffic = Traffic(side.doors(), scale.messages, scale.seconds, result.seed)
    strikes = Strikes(stage, fleet, side, schedule(result.seed, scale))
    traffic.start()
    strikes.start()
    deadline = time.monotonic() + scale.seconds + scale.drain
    is_sent = traffic.wait(deadline - time.monotonic())
    strikes.wait(deadline - time.monotonic())
    say(f"{side.name}: all is sent; {sum(strikes.landed.values())} strikes have landed")
    is_over = is_sent and _is_drained(stage, deadline)
    say(f"{side.name}: {'the queue is empty' if is_over else 'something is left'}")
    result.deaf = _deaf(stage, fleet)
    _count(side, traffic, result)
    result.left = {"queue": stage.queues.counts(), "dead letters": _dead_letters(stage)}
    result.lost = max(0, len(result.undone) - sum(map(sum, result.left.values())))
    result.ends = dict(fleet.ends)
    landed = strikes.landed + traffic.landed
    expected = planned(strikes.planned)
    expected[DUPLICATE] = 2 * scale.messages // TWICE
    for strike in strikes.planned:
        if strike.call:
            # In a short run each fault of each call comes once, and not all of them can land.
            expected[f"{strike.call}: any fault"] += 1
            landed[f"{strike.call}: any fault"] = sum(
                n for kind, n in strikes.landed.items() if kind.startswith(f"{strike.call}: ")
            )
    result.planned, result.landed = dict(expected), dict(landed)
    result.minimum = least(expected, scale)
    result.recovery = {kind: max(took) for kind, took in strikes.recovered.items()}
    result.not_recovered = dict(strikes.never)


def _is_drained(stage: Stage, deadline: float) -> bool:
    """Whether the queue came to be empty, and stayed so for a moment."""
    empty_since: float | None = None
    while time.monotonic() < deadline:
        now = time.monotonic()
        if not stage.queues.is_empty():
            empty_since = None
        elif now - (empty_since := empty_since or now) > 2:
            return True
        time.sleep(LOOK)
    return False


def _dead_letters(stage: Stage) -> tuple[int, int, int]:
    attributes = stage.queues.client.get_queue_attributes(
        QueueUrl=stage.queues.dead_letter_url, AttributeNames=["All"]
    )["Attributes"]
    return (
        int(attributes["ApproximateNumberOfMessages"]),
        int(attributes["ApproximateNumberOfMessagesNotVisible"]),
        int(attributes["ApproximateNumberOfMessagesDelayed"]),
    )


def _deaf(stage: Stage, fleet: Fleet) -> list[str]:
    """The workers that do not ask SQS for messages any more."""
    before = [stage.proxies[slot.number].calls["ReceiveMessage"] for slot in fleet.slots]

    def silent() -> list[str]:
        return [
            f"w{slot.number} ({slot.pool})"
            for slot, calls in zip(fleet.slots, before, strict=True)
            if stage.proxies[slot.number].calls["ReceiveMessage"] <= calls
        ]

    with suppress(TimeoutError):
        wait_until(lambda: not silent(), HEARS, "a poll of every worker")
    return silent()


def _count(side: Side, traffic: Traffic, result: Result) -> None:
    effects = _effects(side)
    result.undone = sorted(id_ for id_ in traffic.sent_at if not effects.times[id_])
    result.doubled = sorted(id_ for id_, times in effects.times.items() if times > 1)
    twice = {order.id for order in traffic.orders() if order.is_twice}
    result.doubled_sent_twice = len(twice & set(result.doubled))
    by_task: Counter[str] = Counter()
    for id_, times in effects.times.items():
        by_task[id_.partition("-")[0]] += times
    result.users = by_task["registerUser"]
    result.count = by_task["increment"] + max(0, effects.times["the running count"] - 1)
    waits = [at - traffic.sent_at[id_] for id_, at in effects.last_at.items()]
    result.longest_wait = max(waits, default=0.0)


def _effects(side: Side) -> Effects:
    # MongoDB may need a moment after all it went through.
    for _ in range(10):
        with suppress(PyMongoError):
            return side.effects()
        time.sleep(1)
    return side.effects()


def _read_logs(logs: list[Path], result: Result) -> None:
    events: Counter[str] = Counter()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                if isinstance(content := json.loads(line), dict):
                    events[str(content.get("event"))] += 1
                    deliveries = content.get("deliveries") or 0
                    result.most_deliveries = max(result.most_deliveries, deliveries)
                    continue
            if line.startswith("Traceback"):
                events["a traceback"] += 1
    result.events = dict(events)
