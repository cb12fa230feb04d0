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

from sqs_broker.machine import files
from tests.chaos import dead_letters
from tests.chaos.fleet import Fleet, Release
from tests.chaos.plan import (
    DUPLICATE,
    EARLY,
    NEW_TASK,
    OLD_WORKER,
    POOLS,
    ROLL,
    UNKNOWN,
    Scale,
    least,
    planned,
    schedule,
)
from tests.chaos.sides import COUNTED, RUNS, Effects, Side
from tests.chaos.stage import Stage, standing
from tests.chaos.strikes import Strikes, nothing_left_broken
from tests.chaos.traffic import TWICE, Traffic
from tests.services import wait_until

#: Seconds for the first workers to be ready, and for the last ones to stop.
READY, STOPPED = 60, 40

#: Seconds in which a worker that is not deaf asks SQS at least once.
HEARS = 20

#: The release of each worker at the start, if there is an older commit.
MIXED = (Release.OLD, Release.NOW, Release.NOW, Release.OLD)

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
    new_messages: int = 0
    """Messages of the new task, each of which is one more in the count."""
    failing: int = 0
    """Messages that are to fail."""
    is_exact: bool = False
    """Whether each of those has to have exactly MOST_RUNS failed runs, and not more."""
    has_old: bool = False
    """Whether workers of an older commit took part. They may count in another way."""
    users: int = 0
    count: int = 0
    new: int = 0
    undone: list[str] = field(default_factory=list)
    """Messages without an effect when the run was over."""
    lost: int = 0
    """Of those, how many are in no queue either."""
    doubled: list[str] = field(default_factory=list)
    doubled_sent_twice: int = 0
    longest_wait: float = 0.0
    """Seconds from sent to done, of the slowest message."""
    left: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Messages in the queue: visible, in flight, delayed."""
    dead_lettered: list[str] = field(default_factory=list)
    """Messages in the dead-letter queue that were not to fail, with their reasons."""
    runs: dict[str, int] = field(default_factory=dict)
    """Of each message that was to fail and was dead-lettered."""
    retried: list[str] = field(default_factory=list)
    """Messages that were not to fail, and used up an attempt. Each as often as it did."""
    miscounted: list[str] = field(default_factory=list)
    """Messages that were to fail, and have another number of failed runs than they may have."""
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
        count = self.messages + self.new_messages
        checks = {
            f"{self.users} users of {self.messages}": self.users != self.messages,
            f"the count is {self.count}, not {count}": self.count != count,
            f"{self.new} of {self.new_messages} by the new task": self.new != self.new_messages,
            f"dead-lettered, but could run: {self.dead_lettered[:5]}": bool(self.dead_lettered),
            f"{len(self.runs)} of {self.failing} failing messages were dead-lettered": len(
                self.runs
            )
            != self.failing,
            f"numbers of failed runs: {self.miscounted[:5]}": bool(self.miscounted),
            f"used up an attempt: {self.retried[:5]}": self.is_exact and bool(self.retried),
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
    side_class: type[Side],
    seed: int,
    scale: Scale,
    directory: Path,
    say: Callable[[str], None],
    old: Path | None = None,
) -> Result:
    """Put one side through the schedule of a seed. `old`: a checkout of an older commit, of which
    some workers are until the deploy."""
    result = Result(side_class.name, seed, scale.messages)
    if side_class.has_releases:
        result.new_messages, result.failing = scale.new, scale.failing
        result.has_old = old is not None
        result.is_exact = scale.is_exact and not result.has_old
    started = time.monotonic()
    files.create(directory / RUNS, files.PRIVATE).close()
    with standing(directory, side_class.writes) as stage, nothing_left_broken(stage):
        side = side_class(stage, scale, old)
        releases = MIXED if result.has_old else (Release.NOW,) * len(POOLS)
        fleet = Fleet(POOLS, side.command, directory, uuid.uuid4().hex, releases)
        try:
            _go(stage, side, fleet, scale, result, say)
        finally:
            fleet.stop(STOPPED)
        result.statuses = dict(fleet.statuses)
        with suppress(TimeoutError):
            wait_until(lambda: not fleet.strays(), HEARS, "the end of every process")
        result.strays = fleet.strays()
        _read_logs(fleet.logs(), result)
        if UNKNOWN in result.planned:
            result.landed[UNKNOWN] = result.events.get("task.unknown", 0)
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
    strikes_planned = schedule(result.seed, scale, has_old=result.has_old)
    bursts = tuple(strike.at for strike in strikes_planned if strike.kind == ROLL)
    traffic = Traffic(
        side.doors(), scale.messages, scale.seconds, result.seed, result.failing, bursts
    )

    def send_new() -> None:
        traffic.start_new(result.new_messages, fleet.has_new_task)

    # An older commit may dead-letter at once what it does not know.
    strikes = Strikes(stage, fleet, side, strikes_planned, send_new, result.has_old)
    traffic.start()
    strikes.start()
    deadline = time.monotonic() + scale.seconds + scale.drain
    traffic.wait(deadline - time.monotonic())
    strikes.wait(deadline - time.monotonic())
    is_sent = traffic.wait(deadline - time.monotonic())  # What the deploy has begun, too.
    say(f"{side.name}: all is sent; {sum(strikes.landed.values())} strikes have landed")
    is_over = is_sent and _is_drained(stage, deadline)
    say(f"{side.name}: {'the queue is empty' if is_over else 'something is left'}")
    result.deaf = _deaf(stage, fleet)
    _count(side, traffic, result)
    result.left = {"queue": stage.queues.counts()}
    dead = dead_letters.read(stage, is_exact=result.is_exact)
    result.dead_lettered, result.runs = dead.could_run, dead.runs
    result.miscounted = [] if result.has_old else dead.miscounted
    here = sum(map(sum, result.left.values())) + len(dead.could_run)
    result.lost = max(0, len(result.undone) - here)
    result.ends = dict(fleet.ends)
    landed = strikes.landed + traffic.landed
    expected = planned(strikes.planned)
    expected[DUPLICATE] = 2 * scale.messages // TWICE
    if result.has_old:
        expected[OLD_WORKER] = MIXED.count(Release.OLD)
    elif result.new_messages:
        expected[EARLY] = result.new_messages
        expected[UNKNOWN] = len(POOLS) // 2
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
    result.undone = sorted(
        id_
        for id_ in traffic.sent_at
        if not effects.times[id_] and not dead_letters.is_to_fail(id_)
    )
    result.doubled = sorted(id_ for id_, times in effects.times.items() if times > 1)
    twice = {order.id for order in traffic.orders() if order.is_twice}
    result.doubled_sent_twice = len(twice & set(result.doubled))
    by_task: Counter[str] = Counter()
    for id_, times in effects.times.items():
        by_task[id_.partition("-")[0]] += times
    result.users = by_task["registerUser"]
    result.new = by_task[NEW_TASK]
    result.count = sum(by_task[task] for task in COUNTED)
    result.count += max(0, effects.times["the running count"] - 1)
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
                    id_ = str(content.get("message_id"))
                    if content.get("event") == "message.retry" and not dead_letters.is_to_fail(id_):
                        result.retried.append(f"{id_}: {content.get('error')}")
                    deliveries = content.get("deliveries") or 0
                    result.most_deliveries = max(result.most_deliveries, deliveries)
                    continue
            if line.startswith("Traceback"):
                events["a traceback"] += 1
    result.events = dict(events)
