"""Carries strikes out, counts those that landed, and measures how long recovery took."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pymongo.errors import PyMongoError

from sqs_broker.machine import files
from tests.chaos import plan
from tests.chaos.fleet import Fleet, Release, Slot
from tests.chaos.outages import Outages
from tests.chaos.plan import CALLS, POOLS, PRODUCER, Strike
from tests.chaos.sides import CONCURRENCY, Side
from tests.chaos.stage import Stage

#: Seconds after which a recovery is not waited for any longer.
PATIENCE = 90

#: Seconds by which a fault may land later than planned.
LATEST = 15

#: What has one trouble at a time, beside each kind of call.
MONGODB = "MongoDB"

#: What replaces all workers, one after the other: twice at a time would leave none.
ROLLOUT = "rollout"

#: Seconds for which a rolling restart waits for messages that wait, before each worker.
BACKLOG = 3

#: Seconds for which a deploy waits until a message of its task has come to a worker without it.
UNMET = 40

#: Seconds between two looks.
LOOK = 0.1


@dataclass
class Strikes:
    """The strikes of a run, each on a thread of its own."""

    stage: Stage
    fleet: Fleet
    side: Side
    planned: list[Strike]
    on_deploy: Callable[[], None]
    """Called when a deploy begins, before any worker has the new task."""
    is_after_deploy: bool
    """Or when every worker has it."""
    outages: Outages = field(init=False)
    landed: Counter[str] = field(default_factory=Counter)
    recovered: dict[str, list[float]] = field(default_factory=dict)
    never: Counter[str] = field(default_factory=Counter)
    """Strikes that were not recovered from in time."""
    _stopped: set[int] = field(default_factory=set)
    """Slots whose worker is stopped and is to stay so: nothing else strikes it."""
    _lanes: dict[str, threading.Lock] = field(
        default_factory=lambda: {lane: threading.Lock() for lane in (*CALLS, MONGODB, ROLLOUT)}
    )
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.outages = Outages(self.stage, self.side)

    def start(self) -> None:
        """Strike from now on, each at its time."""
        started = time.monotonic()
        for strike in self.planned:
            thread = threading.Thread(target=self._run, args=(strike, started), daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, timeout: float) -> None:
        """Until all is over. Leaves nothing broken."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._ended.set()
        self.outages.close()

    def _run(self, strike: Strike, started: float) -> None:
        time.sleep(max(0.0, started + strike.at - time.monotonic()))
        how = {
            plan.RESTART: self._restart,
            plan.KILL_WORKER: self._kill_worker,
            plan.KILL_MAIN: self._kill_main,
            plan.KILL_CHILD: self._kill_child,
            plan.STOP_WORKER: self._stop_worker,
            plan.GROUP: self._ask_group,
            plan.ROLL: self._roll,
            plan.DEPLOY: self._deploy,
        } | dict.fromkeys(plan.MONGO, self._trouble_mongo)
        self._write_down("begins", strike)
        try:
            how.get(strike.kind, self._fail_calls)(strike)
        finally:
            self._write_down("ends", strike)

    def _write_down(self, what: str, strike: Strike) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        path = self.stage.directory / "strikes.log"
        with self._lock:
            before = path.read_text() if path.exists() else ""
            files.replace(path, f"{before}{at} {what} {strike.kind}\n", files.PRIVATE)

    # Workers --------------------------------------------------------------------------------------

    def _restart(self, strike: Strike) -> None:
        self._end(strike, signal.SIGTERM, group=False)

    def _kill_worker(self, strike: Strike) -> None:
        self._end(strike, signal.SIGKILL, group=True)

    def _kill_main(self, strike: Strike) -> None:
        self._end(strike, signal.SIGKILL, group=False)

    def _end(self, strike: Strike, number: signal.Signals, *, group: bool) -> None:
        self._end_by(strike, lambda slot: self.fleet.tell(slot, number, group=group))

    def _ask_group(self, strike: Strike) -> None:
        self._end_by(strike, self.fleet.ask_each)

    def _end_by(self, strike: Strike, end: Callable[[Slot], bool]) -> None:
        pools = ("prefork",) if strike.kind == plan.KILL_MAIN else POOLS
        if (slot := self._target(strike, *pools)) is None:
            return
        starts = slot.starts
        if end(slot):
            self._note(strike, lambda: slot.starts > starts and self._polls(slot))

    def _roll(self, strike: Strike) -> None:
        with self._lanes[ROLLOUT]:
            waited = [self._restart_before_messages(slot) for slot in self.fleet.slots]
        if count := sum(waited):
            self._note(strike, self._all_poll, count=count)

    def _restart_before_messages(self, slot: Slot) -> bool:
        """Restart a worker; whether messages waited when it was asked to stop."""
        has_messages = self._within(lambda: self.stage.queues.counts()[0] > 0, BACKLOG)
        return self._replace(slot) and has_messages

    def _deploy(self, strike: Strike) -> None:
        with self._lanes[ROLLOUT]:
            if not self.is_after_deploy and self.side.has_releases:
                self.on_deploy()
                self._ended.wait(strike.seconds)
                # They may wait behind others, or all workers for MongoDB.
                self._within(self.fleet.has_met_unknown_task, UNMET)
            for slot in self.fleet.slots:
                is_old = slot.runs == Release.OLD
                if self._replace(slot, Release.NEXT) and is_old:
                    self._count(plan.OLD_WORKER)
            is_deployed = self._within(self.fleet.has_new_task, PATIENCE)
            if self.is_after_deploy:
                self.on_deploy()
        if is_deployed:
            self._note(strike, self._all_poll)

    def _replace(self, slot: Slot, release: Release | None = None) -> bool:
        """Ask a worker to stop; whether another one was started in its place."""
        starts = self.fleet.replace(slot, release)
        return self._within(lambda: slot.starts > starts, PATIENCE)

    def _all_poll(self) -> bool:
        return all(self._polls(slot) for slot in self.fleet.slots)

    def _kill_child(self, strike: Strike) -> None:
        slot = self._target(strike, "prefork")
        if slot is None or not (children := slot.children()):
            return
        starts, child = slot.starts, children[0]

        def is_replaced() -> bool:
            others = [pid for pid in slot.children() if pid != child]
            return slot.starts > starts or len(others) >= CONCURRENCY

        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            self._note(strike, is_replaced)

    def _stop_worker(self, strike: Strike) -> None:
        if (slot := self._target(strike, *POOLS)) is None:
            return
        process = slot.process
        if process is None or not self.fleet.tell(slot, signal.SIGSTOP, group=True):
            return
        self._stopped.add(slot.number)
        time.sleep(strike.seconds)
        self._stopped.discard(slot.number)
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            self._note(strike, lambda: self._polls(slot))

    def _target(self, strike: Strike, *pools: str) -> Slot | None:
        """The worker that was meant, or the next one that is there to be struck; None where none
        is."""
        slots = self.fleet.slots
        order = [*slots[strike.slot :], *slots[: strike.slot]]
        found: list[Slot] = []

        def look() -> bool:
            free = [slot for slot in order if slot.number not in self._stopped]
            if strike.kind in (plan.RESTART, plan.GROUP):
                free = [slot for slot in free if not slot.is_expected_to_end]
            found.extend(s for s in free if s.pool in pools and s.is_running and s.is_ready())
            return bool(found)

        return found[0] if self._within(look, 15) else None

    def _polls(self, slot: Slot) -> bool:
        """Whether the worker of a slot asks SQS for messages."""
        calls = self.stage.proxies[slot.number].calls
        before = calls["ReceiveMessage"]
        return self._within(lambda: calls["ReceiveMessage"] > before, 20)

    # SQS ------------------------------------------------------------------------------------------

    def _fail_calls(self, strike: Strike) -> None:
        # One after the other: a proxy fails calls of a name in one way at a time.
        with self._lanes[strike.call]:
            count, calls = self._break_calls(strike)
        before = calls()
        if count:
            self._note(strike, lambda: calls() > before, count=count)

    def _break_calls(self, strike: Strike) -> tuple[int, Callable[[], int]]:
        """Let calls fail for as long as it was planned, and until one did; how many did, and a
        look at how many were made."""
        names = CALLS[strike.call]
        proxies = [self.stage.producer] if strike.call == "send" else self.stage.proxies[:PRODUCER]
        ways = [(proxy, name) for proxy in proxies for name in names]
        for proxy, name in ways:
            proxy.fail(name, strike.what, last=strike.times)

        def failed() -> int:
            return sum(proxy.failed[name] for proxy, name in ways)

        def calls() -> int:
            return sum(proxy.calls[name] for proxy, name in ways)

        self._within(lambda: failed() >= strike.times * len(proxies), strike.seconds)
        self._within(lambda: failed() > 0, LATEST)
        for proxy, name in ways:
            proxy.heal(name)
        return failed(), calls

    # MongoDB --------------------------------------------------------------------------------------

    def _trouble_mongo(self, strike: Strike) -> None:
        # One after the other, also where one took longer than planned.
        with self._lanes[MONGODB]:
            self._write_down("strikes", strike)
            has_landed = not self._ended.is_set() and self.outages.carry_out(strike)
        self._write_down("is undone" if has_landed else "had no effect", strike)
        if has_landed:
            self._note_progress(strike)

    def _note_progress(self, strike: Strike) -> None:
        before: list[int] = []

        def goes_on() -> bool:
            with suppress(PyMongoError):
                now = self.side.progress()
                before.append(now)
                return now > before[0]
            return False

        self._note(strike, goes_on)

    # What came of it ------------------------------------------------------------------------------

    def _count(self, kind: str) -> None:
        with self._lock:
            self.landed[kind] += 1

    def _note(self, strike: Strike, is_over: Callable[[], bool], count: int = 1) -> None:
        since = time.monotonic()
        with self._lock:
            self.landed[strike.kind] += count
        is_recovered = self._within(is_over, PATIENCE)
        with self._lock:
            if self._ended.is_set() and not is_recovered:
                return  # The run was over first.
            if is_recovered:
                took = self.recovered.setdefault(strike.kind, [])
                took.append(time.monotonic() - since)
            else:
                self.never[strike.kind] += 1

    def _within(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline or self._ended.wait(LOOK):
                return False
        return True


@contextmanager
def nothing_left_broken(stage: Stage) -> Iterator[None]:
    """Whatever happens, the servers answer again at the end."""
    try:
        yield
    finally:
        for proxy in stage.proxies:
            for names in CALLS.values():
                for name in names:
                    proxy.heal(name)
        for way in stage.mongo_proxies:
            way.heal()
