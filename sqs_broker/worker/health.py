"""Reports whether a worker is healthy, in a small file that its main process keeps writing.

    {"healthy": true, "text": "polling", "pid": 1, "at": "2026-11-24T12:00:00+00:00", …}

A worker is healthy if its event loop runs, and it polls or all its slots run tasks within their
limits. A worker is also healthy during a pause or an outage of SQS, because a restart would not
help. A worker that is unhealthy for too long ends, so that its supervisor starts another.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from celery import bootsteps
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker import state

from sqs_broker.machine import files, threads
from sqs_broker.machine.health_file import Report
from sqs_broker.machine.textless import textless
from sqs_broker.options import Options
from sqs_broker.rules.lease import LIMIT_MARGIN
from sqs_broker.rules.policy import LONGEST_WAIT
from sqs_broker.worker.defaults import is_elsewhere

logger = logging.getLogger(__name__)

#: Seconds between two looks, and between two writes.
EVERY = 5.0

#: The exit status of a worker that was unhealthy for too long (EX_TEMPFAIL of sysexits.h). A worker
#: ends with it for no other reason.
EXIT_STATUS = 75

#: Seconds that receiving may stand still before it is a fault.
STALL = 60.0

#: If a message waits for this part of its longest wait while no task runs, the pool is stuck. The
#: part is less than 1, because after its longest wait a message is released, and the wait of the
#: next one begins at zero.
STUCK = 2 / 3


@dataclass(frozen=True)
class Vitals:
    """The state of a worker at one instant."""

    silence: float = 0.0
    """Seconds since the last heartbeat of the event loop."""
    is_solo: bool = False
    """Whether tasks run on the event loop, so that it normally stops for them."""
    running: Sequence[str] = ()
    """The name of each task that runs within its limits."""
    overrun: Sequence[str] = ()
    """The name of each task that runs beyond its hard time limit."""
    faults: Sequence[str] = ()
    """Why receivers will not receive any more."""
    is_polling: bool = False
    """Whether a receive call is open."""
    is_due: bool = False
    """Whether there is enough room for a receive call."""
    held: int = 0
    """Deliveries in flight."""
    started: int = 0
    """Tasks that have started since the worker started."""
    pauses: Sequence[str] = ()
    """Why receiving is paused on purpose."""


class Judge:
    """Turns the vitals of one worker, taken regularly, into reports. Some states are a fault only
    if they last."""

    def __init__(self, longest_wait: float = LONGEST_WAIT) -> None:
        """`longest_wait`: seconds after which a waiting message is released."""
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
            yield f"the event loop has not responded for {vitals.silence:.0f} s"

    def _of_the_pool(self, vitals: Vitals, now: float) -> Iterator[str]:
        if vitals.overrun:
            yield "past the hard time limit: " + ", ".join(vitals.overrun)
        if self._lasts("idle", vitals.is_due and not vitals.is_polling, now, STALL):
            yield "the worker has room for messages but sends no receive call"
        progress, self._started = vitals.started > self._started, vitals.started
        waits = vitals.held > 0 and not (vitals.running or vitals.overrun or progress)
        if self._lasts("stuck", waits, now, STUCK * self._longest_wait):
            yield f"{vitals.held} messages wait, but no task starts"

    def _lasts(self, name: str, holds: bool, now: float, patience: float) -> bool:
        if not holds:
            self._since.pop(name, None)
            return False
        return now - self._since.setdefault(name, now) > patience


class Patience:
    """How long a worker may be unhealthy: `seconds`, or for ever if that is 0."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def is_over(self, report: Report, now: float) -> bool:
        """Whether the worker has been unhealthy at each look for so long. `now`: monotonic
        seconds."""
        if report.healthy:
            self._since = None
        elif self._since is None:
            self._since = now
        return (
            bool(self._seconds) and self._since is not None and now - self._since >= self._seconds
        )


def vitals_of(consumer: Any) -> Vitals:
    """The vitals of this process's worker. Thread-safe."""
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
        pauses=sorted(channel.deliveries.pauses),
    )


def _active() -> list[Any]:
    for _ in range(10):
        try:
            return list(state.active_requests)
        except RuntimeError:
            continue  # The event loop changed the set during the copy.
    return []


class Health(bootsteps.StartStopStep):
    """Looks at the worker in a thread of its own. Writes the file, if the option `health_file` is
    set, and ends a worker that was unhealthy for `unhealthy_exit` seconds."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        if not self.include_if(consumer):
            return
        given = Options.read(consumer.app.conf.broker_transport_options)
        self._path = Path(given.health_file) if given.health_file else None
        self._longest_wait = given.policy.longest_wait
        self._unhealthy_exit = given.unhealthy_exit
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last = Report(True, "")
        #: The class of the exception that the latest write raised; None if it raised none.
        self._fault: str | None = None

    def include_if(self, consumer: Any) -> bool:
        """Whether this worker is one of this broker."""
        return not is_elsewhere(consumer.app)

    def start(self, consumer: Any) -> None:
        """Start to look. Raises NoThread: without the file a healthy worker would seem dead."""
        self._stopping = threading.Event()
        self._thread = threads.insist(self._run, "sqs-health", consumer, self._stopping)

    def stop(self, consumer: Any) -> None:
        """Stop writing and remove the file, which stays only if the worker was killed."""
        self._stopping.set()
        if self._thread is None:
            return
        self._thread.join(EVERY)
        with suppress(OSError):  # If it cannot be removed, it could not be written either.
            if self._path is not None:
                self._path.unlink(missing_ok=True)

    def _run(self, consumer: Any, stopping: threading.Event) -> None:
        judge, patience = Judge(self._longest_wait), Patience(self._unhealthy_exit)
        while not stopping.is_set():
            try:
                vitals, now = vitals_of(consumer), monotonic()
                report = judge(vitals, now)
                self._log_change(report)
                if patience.is_over(report, now):
                    self._give_up(consumer, report)
                    patience = Patience(0)
                if self._path is not None:
                    write(self._path, report, vitals)
                    self._log_whole()
            except Exception as exc:
                # Broad on purpose: without this thread a healthy worker would seem dead.
                self._log_broken(exc)
            stopping.wait(EVERY)

    def _log_broken(self, exc: Exception) -> None:
        error = type(exc).__name__
        if self._fault == error:
            return
        self._fault = error
        logger.error(
            "Could not write the health file (%s); trying again. Health checks fail meanwhile.",
            error,
            # The stack helps only if this is a fault of the code.
            exc_info=None if isinstance(exc, OSError) else textless(exc),
            extra={"event": "health.broken", "error": error},
        )

    def _log_whole(self) -> None:
        if self._fault is not None:
            self._fault = None
            logger.info("The health file is written again.", extra={"event": "health.whole"})

    def _give_up(self, consumer: Any, report: Report) -> None:
        logger.critical(
            "The worker was not healthy for %g s, and ends with exit status %d: %s.",
            self._unhealthy_exit,
            EXIT_STATUS,
            report.text,
            extra={"event": "health.exit", "reason": report.text, "seconds": self._unhealthy_exit},
        )
        consumer.give_up(EXIT_STATUS)

    def _log_change(self, report: Report) -> None:
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
    """Replace the file in one step: a reader sees the old content or the new one."""
    content = {
        "healthy": report.healthy,
        "text": report.text,
        "pid": os.getpid(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        # The same clock for all processes of a machine (Linux, macOS), and never set back.
        "monotonic": monotonic(),
        "running": len(vitals.running),
        "held": vitals.held,
    }
    files.replace(path, json.dumps(content) + "\n", files.PUBLIC)
