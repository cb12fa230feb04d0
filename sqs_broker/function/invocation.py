"""One invocation of the function: from the records of its event to the answer.

The rules are those of the worker: `arrive`, `admit`, `happened`, `decide`, and `Reporter.tell`.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from celery.exceptions import TimeLimitExceeded

from sqs_broker.errors import ConfigurationError
from sqs_broker.function.event import MalformedEvent, Unreadable
from sqs_broker.function.message import Message, message_of
from sqs_broker.function.report import Report
from sqs_broker.function.sandbox import Sandbox
from sqs_broker.function.service import ServiceAway
from sqs_broker.function.time_limit import HardLimit, Limits, Watch
from sqs_broker.limits import BATCH
from sqs_broker.observers.metrics import Metrics
from sqs_broker.rules.happened import Suspected, happened
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import (
    Happened,
    Interrupted,
    NotStarted,
    Postponed,
    Released,
    Retry,
    RetryAsked,
    Succeeded,
    decide,
    retry_delay,
)
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.sqs.records import records_of
from sqs_broker.worker.run import failure_of, failures_of

logger = logging.getLogger(__name__)

#: Seconds before the end of the invocation at which a running task is stopped. In the rest the
#: service is asked whether it works (3 s), failed runs are recorded (2 s), and the outcomes are
#: reported.
STOP_BEFORE = 7.0

#: Seconds after that until it is stopped by force.
PATIENCE = 1.0

#: Seconds before the end of the invocation at which the process ends, if the task cannot be
#: stopped. In the rest failed runs are recorded (2 s), and the outcomes are reported.
END_BEFORE = 4.0

#: Seconds that a task must have to be started.
LEAST_RUN = 2.0

#: Most messages of one job of a task with `many`, as in the worker.
LARGEST = 2 * BATCH

#: Seconds until a message runs again that failed because of an outage that is over.
RUN_AGAIN_AFTER = 2


class Invocation:
    """Handles the records of one event, once."""

    def __init__(
        self, sandbox: Sandbox, records: Sequence[Delivery | Unreadable], ends_at: float
    ) -> None:
        """`ends_at`: when Lambda ends the function, by the clock of the sandbox."""
        self._sandbox = sandbox
        self._records = records
        self._ends_at = ends_at
        self._waiting: list[Message] = []
        self._running: Sequence[Message] = ()
        self._report = Report(
            sandbox, ends_at, lambda delivery: self._metrics_of(delivery).count("SettleFailures")
        )
        #: The queues and message groups in which a message comes again.
        self._blocked: set[tuple[str, str]] = set()
        self._metrics: dict[str, Metrics] = {}
        self._lock = threading.Lock()
        self._has_ended = False
        self._has_run = False
        self._watch = Watch(self._end_the_process)

    def run(self) -> dict[str, Any]:
        """Handle the records, and return Lambda's answer. Raises as `Function` says."""
        is_too_short = not self._has_time()
        try:
            self._arrive()
            if self._sandbox.outage.is_on:
                self._sandbox.outage.check()
            while (job := self._next_job()) is not None:
                self._run(job)
            self._hand_back()
        finally:
            self._report.send()
            self._write_metrics()
        self._raise_if_failed(is_too_short)
        return {"batchItemFailures": [{"itemIdentifier": id_} for id_ in self._come_again()]}

    # Arrival

    def _arrive(self) -> None:
        deliveries = []
        for record in self._records:
            if isinstance(record, Unreadable):
                self._refuse(record)
            elif record.queue not in self._sandbox.options.queues:
                self._refuse(Unreadable("its queue is not configured", record.message_id))
            else:
                deliveries.append(record)
        received = [(delivery.message_id, delivery.count) for delivery in deliveries]
        records = records_of(received, self._sandbox.attempts)
        for delivery in deliveries:
            known = replace(delivery, record=records.get(delivery.message_id))
            self._waiting.append(self._read(known))

    def _read(self, delivery: Delivery) -> Message:
        message = message_of(delivery, self._sandbox)
        self._metrics_of(delivery).received(message.facts, self._sandbox.wall_clock())
        if message.admitted is not None:
            if (tracing := self._sandbox.options.tracing) is not None:
                tracing.delivered(message.facts, message.arrival.headers or {})
            self._sandbox.observers.received(message.facts)
        return message

    def _refuse(self, record: Unreadable) -> None:
        self._metrics_of(None).count("UnreadableRecords")
        logger.error(
            "A record of the event cannot be handled: %s. SQS delivers its message again.",
            record.why,
            extra={
                "event": "function.unreadable",
                "reason": record.why,
                "sqs_message_id": record.message_id,
            },
        )

    # Runs

    def _next_job(self) -> list[Message] | None:
        """The messages that run next, in one job. None if none can be started any more."""
        while self._waiting and not self._sandbox.outage.is_on:
            message = self._waiting.pop(0)
            if self._is_blocked(message):
                self._end(message, NotStarted())
            elif message.ended is not None:
                self._end(message, message.ended)
            elif not self._may_start_after_reports():
                self._waiting.insert(0, message)
                return None
            else:
                return [message, *self._sharing(message)]
        return None

    def _sharing(self, first: Message) -> list[Message]:
        """Take the messages that run in the same job as the first one."""
        if not first.may_share:
            return []
        others = [
            message for message in self._waiting if message.may_share and message.task is first.task
        ][: LARGEST - 1]
        self._waiting = [message for message in self._waiting if message not in others]
        return others

    def _may_start_after_reports(self) -> bool:
        # A report may take seconds, so it comes before the look at the time.
        if self._has_time():
            self._report.send_if_due()
        return self._has_time()

    def _has_time(self) -> bool:
        return self._left() >= STOP_BEFORE + LEAST_RUN

    def _is_blocked(self, message: Message) -> bool:
        # The messages behind one that comes again must come after it:
        # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
        return (message.delivery.queue, message.delivery.group) in self._blocked

    def _run(self, job: Sequence[Message]) -> None:
        task = job[0].task
        job = [replace(message, started_at=self._sandbox.clock()) for message in job]
        for message in job:
            self._sandbox.observers.started(message.facts)
            if not task.acks_late:
                # As in a worker: the message is deleted before its task runs.
                self._end(message, Succeeded())
        if not task.acks_late:
            self._report.send()
        # After the report, which takes time.
        limits, is_cut = self._limits(job[0])
        started_at = self._sandbox.wall_clock()
        self._running = job
        failures = self._failures(job, limits)
        with self._lock:
            if self._has_ended:
                raise TimeLimitExceeded
            self._running = ()
        if task.acks_late:
            self._conclude(job, failures, started_at, is_cut and self._has_run)
        self._has_run = True

    def _limits(self, message: Message) -> tuple[Limits, bool]:
        """The limits of a run that starts now, and whether the end of the invocation comes before
        its own."""
        task, conf = message.task, self._sandbox.app.conf
        asked_hard, asked_soft = message.asked_limits
        hard = asked_hard or task.time_limit or conf.task_time_limit or inf
        soft = asked_soft or task.soft_time_limit or conf.task_soft_time_limit or inf
        stop_in = max(self._left() - STOP_BEFORE, 0)
        limits = Limits(
            soft=min(soft, stop_in),
            hard=min(hard, stop_in + PATIENCE),
            last=max(self._left() - END_BEFORE, 0),
        )
        return limits, stop_in < min(soft, hard)

    def _failures(self, job: Sequence[Message], limits: Limits) -> Sequence[BaseException | None]:
        """The exception with which each message of a job ended; None if it succeeded."""
        pairs = [(m.arrival, m.admitted) for m in job if m.admitted is not None]

        def work() -> Sequence[BaseException | None]:
            return failures_of(pairs) if len(pairs) > 1 else [failure_of(*pairs[0])]

        try:
            return self._watch.run(work, limits)
        except HardLimit:
            return [TimeLimitExceeded(limits.hard)] * len(job)
        except (Exception, SystemExit) as exc:
            # Broad on purpose: whatever ended the run ended the task, not the function.
            return [exc] * len(job)

    def _conclude(
        self,
        job: Sequence[Message],
        failures: Sequence[BaseException | None],
        started_at: float,
        is_cut: bool,
    ) -> None:
        """Decide what happened to the messages of a job. `is_cut`: whether the run had less time
        than its limits, because others ran before it."""
        outage, suspect_on = self._sandbox.outage, getattr(job[0].task, "suspect_on", ())
        suspects = [isinstance(exc, (Suspected, *suspect_on)) for exc in failures]
        if any(suspects):
            outage.check()
        is_of_outage = outage.is_on or outage.explains(started_at)
        for message, exc, is_suspect in zip(job, failures, suspects, strict=True):
            if is_suspect and is_of_outage:
                self._suspicion(message, exc).confirm(self._release_after(message))
            elif exc is not None and is_cut and self._watch.has_struck:
                self._end(message, Interrupted(_error_of(exc), 0))
            elif is_suspect:
                self._suspicion(message, exc).dismiss()
            else:
                self._end(message, happened(exc))

    def _suspicion(self, message: Message, exc: BaseException | None) -> Suspicion:
        asked = RetryAsked(exc.delay if isinstance(exc, Suspected) else None, _error_of(exc))
        return Suspicion(
            error=_error_of(exc),
            started_at=self._sandbox.clock(),
            retry_after=retry_delay(asked, message.delivery.attempt, message.task.policy),
            otherwise=happened(exc),
            conclude=lambda what: self._end(message, what),
            is_blameless=isinstance(exc, Suspected) and exc.is_blameless,
        )

    def _hand_back(self) -> None:
        """Release the messages that cannot start in this invocation."""
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            if message.ended is not None and not self._is_blocked(message):
                self._end(message, message.ended)
            else:
                after = self._release_after(message) if self._sandbox.outage.is_on else 0
                self._end(message, NotStarted(after))

    def _release_after(self, message: Message) -> int:
        outage = self._sandbox.outage
        if not outage.is_on:
            return RUN_AGAIN_AFTER
        longest = (message.policy or self._sandbox.options.policy).backoff_max
        return outage.release_after(message.delivery.deliveries, longest)

    # Ends

    def _end(self, message: Message, what: Happened) -> None:
        policy = message.policy or self._sandbox.options.policy
        outcome = decide(what, message.delivery, policy)
        if isinstance(outcome, Postponed) and message.delivery.group is not None:
            outcome = _in_place(outcome)
        self._sandbox.observers.ended(message.facts, what, outcome)
        now = self._sandbox.wall_clock()
        self._metrics_of(message.delivery).ended(message.facts, what, outcome, now)
        self._report.add(message.facts, outcome)
        if message.delivery.group is not None:
            self._report.send()
            if not self._report.is_gone(message.delivery):
                self._blocked.add((message.delivery.queue, message.delivery.group))

    # Answer

    def _come_again(self) -> list[str]:
        """The ids of the messages that Lambda must not delete, each once."""
        ids = dict.fromkeys(
            record.message_id
            for record in self._records
            if isinstance(record, Unreadable) or not self._report.is_gone(record)
        )
        return [id_ for id_ in ids if id_ is not None]

    def _raise_if_failed(self, is_too_short: bool) -> None:
        outage = self._sandbox.outage
        if outage.is_on:
            name, count = self._sandbox.service.name, len(self._come_again())
            logger.error(
                "%s is unavailable (%s); the invocation fails, so that Lambda runs fewer of them.",
                name,
                outage.error,
                extra={"event": "function.away", "error": outage.error, "count": count},
            )
            raise ServiceAway(f"{name} is unavailable ({outage.error}).")
        if is_too_short and self._come_again():
            raise ConfigurationError(
                f"An invocation needs at least {STOP_BEFORE + LEAST_RUN:.0f} s. Raise the timeout "
                "of the function."
            )
        if any(record.message_id is None for record in self._records):
            raise MalformedEvent("A record of the event has no messageId.")

    def _left(self) -> float:
        """Seconds until Lambda ends the function."""
        return self._ends_at - self._sandbox.clock()

    # Metrics

    def _metrics_of(self, delivery: Delivery | None) -> Metrics:
        queue = delivery.queue if delivery else next(iter(self._sandbox.options.queues))
        return self._metrics.setdefault(queue, Metrics(queue))

    def _write_metrics(self) -> None:
        metrics, self._metrics = self._metrics, {}
        for queue, each in metrics.items():
            each.count("ServiceAway", int(self._sandbox.outage.is_on))
            each.count("Calls", self._sandbox.calls.pop(queue, 0))
            self._sandbox.write(each.line(self._sandbox.wall_clock()))

    # The end of the process

    def _end_the_process(self) -> None:
        """Called in a thread, if a task runs on after its limits. Ends every message of the event,
        then this process with the task."""
        with self._lock:
            if not self._running:
                return  # It has ended in this moment.
            self._has_ended = True
        task = self._running[0].task
        logger.error(
            "A task cannot be stopped, so this process ends before the function does.",
            extra={"event": "function.stuck", "task": task.name},
        )
        try:
            if task.acks_late:
                for message in self._running:
                    self._end(message, happened(TimeLimitExceeded()))
            self._hand_back()
            self._report.send()
            self._write_metrics()
        finally:
            self._sandbox.end()


def _in_place(outcome: Postponed) -> Retry | Released:
    """The outcome without a copy, which would be behind the others of its group."""
    if outcome.error is None:
        return Released(outcome.delay)
    return Retry(outcome.delay, outcome.error)


def _error_of(exc: BaseException | None) -> str:
    return exc.error if isinstance(exc, Suspected) else type(exc).__name__
