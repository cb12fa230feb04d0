"""Whether a worker does its work: its main process keeps writing a small file, anybody can read it.

    {"healthy": true, "text": "polling", "pid": 1, "at": "2026-11-24T12:00:00+00:00", …}

Healthy is a worker that polls, or whose slots are all taken by tasks within their limits, while its
event loop turns. An outage of SQS, or a pause, is said and is healthy: no restart would mend it.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from celery import bootsteps
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker import state

from sqs_broker.machine import files, threads
from sqs_broker.options import Options
from sqs_broker.rules.lease import LIMIT_MARGIN
from sqs_broker.rules.policy import LONGEST_WAIT

logger = logging.getLogger(__name__)

#: Seconds between two writes.
EVERY = 5.0

#: Seconds without a write after which the file says nothing any more.
STALE = 30.0

#: Seconds for which what should go on may stand still.
STALL = 60.0

#: The part of its longest wait after which a message that waits, while nothing runs, says that the
#: pool is stuck. Less than all of it: then it is handed back, and the next one has not waited yet.
STUCK = 2 / 3


@dataclass(frozen=True)
class Vitals:
    """What is seen of a worker at one instant."""

    silence: float = 0.0
    """Seconds since the event loop turned."""
    is_solo: bool = False
    """Whether tasks run on the event loop, and rightly keep it silent."""
    running: Sequence[str] = ()
    """The task's name for each that runs within its limits."""
    overrun: Sequence[str] = ()
    """The same for those past their hard limit."""
    faults: Sequence[str] = ()
    """Why receivers will not receive any more."""
    is_polling: bool = False
    """Whether a receive call is open."""
    is_due: bool = False
    """Whether there is room for a receive that is worth its call."""
    held: int = 0
    """Deliveries in flight."""
    started: int = 0
    """Tasks that have started since the worker did."""
    pauses: Sequence[str] = ()
    """Why nothing is received on purpose."""


@dataclass(frozen=True)
class Report:
    """Whether a worker is healthy, and one line that says why."""

    healthy: bool
    text: str


class Judge:
    """Judges vitals that are taken one after the other: some are a fault only if they last."""

    def __init__(self, longest_wait: float = LONGEST_WAIT) -> None:
        """`longest_wait`: seconds after which what waits is handed back."""
        self._longest_wait = longest_wait
        self._since: dict[str, float] = {}
        self._started = 0

    def __call__(self, vitals: Vitals, now: float) -> Report:
        faults = [*self._of_the_loop(vitals), *vitals.faults, *self._of_the_pool(vitals, now)]
        if faults:
            return Report(False, "; ".join(faults))
        if vitals.pauses:
            return Report(True, "paused: " + ", ".join(vitals.pauses))
        if vitals.running:
            return Report(True, f"busy with {len(vitals.running)} tasks")
        return Report(True, "polling" if vitals.is_polling else "waiting")

    def _of_the_loop(self, vitals: Vitals) -> Iterator[str]:
        if vitals.silence > STALL and not (vitals.is_solo and vitals.running):
            yield f"the event loop is silent for {vitals.silence:.0f} s"

    def _of_the_pool(self, vitals: Vitals, now: float) -> Iterator[str]:
        if vitals.overrun:
            yield "past the hard time limit: " + ", ".join(vitals.overrun)
        if self._lasts("idle", vitals.is_due and not vitals.is_polling, now, STALL):
            yield "there is room for messages, and nobody asks SQS"
        progress, self._started = vitals.started > self._started, vitals.started
        waits = vitals.held > 0 and not (vitals.running or vitals.overrun or progress)
        if self._lasts("stuck", waits, now, STUCK * self._longest_wait):
            yield f"{vitals.held} messages are here, and no task starts"

    def _lasts(self, name: str, holds: bool, now: float, patience: float) -> bool:
        if not holds:
            self._since.pop(name, None)
            return False
        return now - self._since.setdefault(name, now) > patience


def look(consumer: Any) -> Vitals:
    """The vitals of the worker of this process. Thread-safe."""
    channel = consumer.task_consumer.channel
    leases, receivers = channel.deliveries.leases, channel.deliveries.receivers
    requests = _active()
    overrun = [request for request in requests if request.overrun() > LIMIT_MARGIN]
    return Vitals(
        silence=channel.connection.silence(),
        is_solo=isinstance(consumer.pool, SoloPool),
        running=[request.name for request in requests if request not in overrun],
        overrun=[request.name for request in overrun],
        faults=[fault for receiver in receivers if (fault := receiver.fault())],
        is_polling=any(receiver.is_polling for receiver in receivers),
        is_due=bool(receivers) and leases.is_worth_a_receive(),
        held=len(leases),
        started=state.all_total_count[0],
        pauses=sorted(leases.pauses),
    )


def _active() -> list[Any]:
    for _ in range(10):
        try:
            return list(state.active_requests)
        except RuntimeError:
            continue  # The event loop changed it meanwhile.
    return []


class HealthFile(bootsteps.StartStopStep):
    """Writes the file from a thread of its own, where the option `health_file` names one."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        given = Options.read(consumer.app.conf.broker_transport_options)
        self._path = Path(given.health_file) if given.health_file else None
        self._longest_wait = given.policy.longest_wait
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last = Report(True, "")

    def start(self, consumer: Any) -> None:
        """Begin. Raises NoThread: without the file a healthy worker would look dead."""
        if self._path is None:
            return
        self._stopping = threading.Event()
        self._thread = threads.insist(self._run, "sqs-health", consumer, self._path, self._stopping)

    def stop(self, consumer: Any) -> None:
        """End; a worker that stops in order leaves no file."""
        self._stopping.set()
        if self._path is None or self._thread is None:
            return
        self._thread.join(EVERY)
        self._path.unlink(missing_ok=True)

    def _run(self, consumer: Any, path: Path, stopping: threading.Event) -> None:
        judge = Judge(self._longest_wait)
        while not stopping.is_set():
            try:
                vitals = look(consumer)
                report = judge(vitals, monotonic())
                self._say(report)
                write(path, report, vitals)
            except Exception:
                # Broad on purpose: without this thread a healthy worker would look dead.
                logger.exception(
                    "The health file could not be written.", extra={"event": "health.broken"}
                )
            stopping.wait(EVERY)

    def _say(self, report: Report) -> None:
        if report.healthy != self._last.healthy:
            text, event = (
                ("healthy again", "regained") if report.healthy else ("not healthy", "lost")
            )
            logger.log(
                logging.INFO if report.healthy else logging.ERROR,
                "The worker is %s: %s.",
                text,
                report.text,
                extra={"event": f"health.{event}", "reason": report.text},
            )
        self._last = report


def write(path: Path, report: Report, vitals: Vitals) -> None:
    """Replace the file: whoever reads it sees the old one or the new one."""
    told = asdict(report) | {
        "pid": os.getpid(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        # Of the machine and not of a process (Linux, macOS), and no clock is set back.
        "monotonic": monotonic(),
        "running": len(vitals.running),
        "held": vitals.held,
    }
    files.replace(path, json.dumps(told) + "\n", files.PUBLIC)


def read(path: Path) -> Report:
    """What the file says, if its worker still writes it."""
    try:
        told = json.loads(path.read_text())
        age, pid, report = monotonic() - told["monotonic"], told["pid"], _report(told)
    except FileNotFoundError:
        return Report(False, f"no worker writes {path}")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return Report(False, f"{path} cannot be read ({type(exc).__name__})")
    if not _is_alive(pid):
        return Report(False, f"the worker (process {pid}) is gone; it was: {report.text}")
    if not 0 <= age <= STALE:
        return Report(False, f"the worker says nothing since {told['at']}; it was: {report.text}")
    return report


def _report(told: Any) -> Report:
    return Report(told["healthy"] is True, str(told["text"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is another user's.
    return True
