"""Passes plain messages (sqs_broker/worker/plain.py) from the inbox to the pool, and ends them: all
messages of a receive, or of a job, in one step.

Each step is the same as that of a Request, in the same order: observers, Celery's state, events.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.worker import state
from celery.worker.request import create_request_cls
from kombu.utils.imports import symbol_by_name

from sqs_broker.control.dispatcher import send_all
from sqs_broker.limits import BATCH
from sqs_broker.machine.inbox import Arrived
from sqs_broker.rules.admission import Admitted, admit
from sqs_broker.rules.canvas import Canvas
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.forecast import Job
from sqs_broker.rules.outcomes import Succeeded
from sqs_broker.worker.batches import Batches
from sqs_broker.worker.plain import (
    Kind,
    Plain,
    is_plain_message,
    is_plain_task,
    is_plain_worker,
    log_received,
    logs_accepted,
    logs_received,
)
from sqs_broker.worker.request import log_unreported
from sqs_broker.worker.singles import submit

#: Seconds until a run that has succeeded is reported, at most.
GATHERING = 0.005

#: A message whose run has succeeded, and what Celery's trace returned for it.
End = tuple[Plain, Any]


class Lane:
    """The plain messages of one consumer. Used on its event loop only."""

    def __init__(self, consumer: Any, canvas: Canvas, batches: Batches) -> None:
        self._consumer = consumer
        self._canvas = canvas
        self._batches = batches
        self._kinds: dict[str, Kind] = {}
        self._logs_received = False
        #: Runs that have succeeded, until the next report, and whether a timer will call it.
        self._gathered: list[End] = []
        self._is_due = False
        #: Messages that were taken, and of which the observers have not heard yet.
        self._untold: list[Plain] = []

    def refresh(self) -> None:
        """Find out whose messages can be plain. Celery sets up its strategies at the same time."""
        self._kinds = {}
        if logs_accepted():
            return
        self._logs_received = logs_received()
        app = self._consumer.app
        self._kinds = {n: self._kind(task) for n, task in app.tasks.items() if is_plain_task(task)}

    def take(self, arrived: list[Arrived]) -> list[Arrived]:
        """Take the plain messages, and return the others."""
        if not self._kinds or not is_plain_worker(self._consumer):
            return arrived
        left: list[Arrived] = []
        taken: dict[str, list[Plain]] = defaultdict(list)
        channel, tasks = self._consumer.task_consumer.channel, self._consumer.app.tasks
        for queue, content in arrived:
            plain = self._read(channel, tasks, queue, content)
            if plain is None:
                left.append((queue, content))
            else:
                taken[plain.name].append(plain)
        for name, plains in taken.items():
            self._batches.take_plain(name, self._accept(plains))
            self._tell()
        return left

    def _read(
        self, channel: Any, tasks: Mapping[str, Any], queue: str, content: Any
    ) -> Plain | None:
        """The message, if it is plain and may run."""
        if type(content) is not dict:
            return None  # Of the control plane.
        try:
            headers = content["headers"]
            kind = self._kinds.get(headers["task"])
            if (
                kind is None
                or not channel.deliveries.consumes(queue)
                or not is_plain_message(headers)
                or self._consumer.task_buckets[headers["task"]]
            ):
                return None
            plain = Plain(kind, channel, content)
            if not channel.deliveries.holds(plain.tag):
                return None
            match admit(plain, tasks, self._canvas):
                case Admitted(_, headers) if not any(headers["timelimit"]):
                    plain.headers.update(headers)
                    return plain
        except Exception:
            # Broad on purpose: then the other way handles it, and what it raises.
            return None
        return None

    def _accept(self, plains: Sequence[Plain]) -> Sequence[Plain]:
        """Tell everybody of these messages. Returns those that go on."""
        deliveries = plains[0].channel.deliveries
        for plain in plains:
            plain.channel.plain[plain.tag] = plain
        if deliveries.is_traced:
            plains = [
                plain
                for plain in plains
                if self._takes([plain], partial(deliveries.admitted, plain.tag, plain.headers))
            ]
        else:
            self._untold += plains
        if not self._takes(plains, partial(self._announce, plains)):
            return []
        for plain in plains:
            state.task_reserved(plain)
        return plains

    def _tell(self) -> None:
        """Tell the observers that messages were received: before anything else that they hear of
        them, but after their job was written. Its process works meanwhile."""
        if self._untold:
            untold, self._untold = self._untold, []
            deliveries = untold[0].channel.deliveries
            deliveries.admitted_many([(plain.tag, plain.headers) for plain in untold])

    def _takes(self, plains: Sequence[Plain], step: Callable[[], None]) -> bool:
        """Whether a step for these messages succeeds. Otherwise they end."""
        try:
            step()
        except Exception as exc:
            # Broad on purpose: an exception here ends the worker, and would end the next one.
            for plain in plains:
                self._consumer.end(plain.full().message, untaken(exc), exc)
            return False
        return True

    def _announce(self, plains: Sequence[Plain]) -> None:
        if self._logs_received:
            for plain in plains:
                log_received(plain)
        if plains and plains[0].kind.has_events and (eventer := self._eventer(plains[0])):
            received = [
                {
                    "uuid": plain.id,
                    "name": plain.kind.task.name,
                    "args": plain.headers.get("argsrepr", ""),
                    "kwargs": plain.headers.get("kwargsrepr", ""),
                    "root_id": plain.headers["root_id"],
                    "parent_id": plain.headers["parent_id"],
                    "retries": plain.headers["retries"],
                    "eta": None,
                    "expires": None,
                }
                for plain in plains
            ]
            send_all(eventer, "task-received", received)

    # A job

    def hand_over(self, plains: Sequence[Plain]) -> list[Plain]:
        """Those whose deliveries have not ended, so that they go to the pool."""
        tags = [plain.tag for plain in plains]
        held = plains[0].channel.deliveries.hand_over_many(tags)
        if all(held):
            return list(plains)
        for plain, is_held in zip(plains, held, strict=True):
            if not is_held:
                self._forget(plain)
        return [plain for plain, is_held in zip(plains, held, strict=True) if is_held]

    def accepted(self, plains: Sequence[Plain], pid: int, time_accepted: float) -> None:
        """A pool process runs their job now: see `Request.on_accepted`."""
        self._tell()
        first, count = plains[0], len(plains)
        began_at = time.time() - (monotonic() - time_accepted)
        for plain in plains:
            plain.worker_pid, plain.time_start = pid, began_at
        job = Job((pid, time_accepted), 1 if first.task.many is None else BATCH)
        tags = [plain.tag for plain in plains]
        leases = first.channel.deliveries.started_many(tags, first.hard_time_limit, job)
        for plain, lease in zip(plains, leases, strict=True):
            plain.begin(lease)
            state.requests[plain.id] = plain
            state.active_requests.add(plain)
        if eventer := self._eventer(first):
            send_all(eventer, "task-started", [{"uuid": plain.id} for plain in plains])
        state.total_count[first.name] += count
        state.all_total_count[0] += count

    def succeeded(self, plains: Sequence[Plain], traced: Sequence[Any]) -> None:
        """Their runs have succeeded: see Celery's `Request.on_success`."""
        ends = list(zip(plains, traced, strict=True))
        for plain, (_, result, _) in ends:
            _note(plain, result)
        self._end(ends)

    def _end(self, ends: Sequence[End]) -> None:
        """End the deliveries of messages that succeeded, and send their events."""
        try:
            for channel in {plain.channel for plain, _ in ends}:
                of_it = [plain.tag for plain, _ in ends if plain.channel is channel]
                channel.deliveries.end_messages(of_it)
        finally:
            for plain, _ in ends:
                plain.channel.plain.pop(plain.tag, None)
        heard = [end for end in ends if end[0].kind.has_events and self._eventer(end[0])]
        if heard:
            ended = [
                {"uuid": plain.id, "result": result, "runtime": seconds}
                for plain, (_, result, seconds) in heard
            ]
            send_all(self._eventer(heard[0][0]), "task-succeeded", ended)

    # A message that has a job of its own

    def start(self, plain: Plain, pool: Any) -> Any:
        """Pass it to the pool. Raises TaskRevokedError if its delivery has ended."""
        if plain.channel.deliveries.hand_over(plain.tag):
            return submit(plain, pool)
        self._forget(plain)
        raise TaskRevokedError(plain.id)

    def ended(self, plain: Plain, traced: Any) -> None:
        """Its run has succeeded. While others wait for a process, several ends are reported
        together, because each report takes time from all of them."""
        _note(plain, traced[1])
        self._gathered.append((plain, traced))
        if len(self._gathered) >= BATCH or not _may_gather():
            self._report()
        elif not self._is_due:
            self._is_due = True
            self._consumer.hub.call_later(GATHERING, self.report)

    def report(self) -> None:
        """Report the runs that have succeeded."""
        self._is_due = False
        self._report()

    def _report(self) -> None:
        ends, self._gathered = self._gathered, []
        try:
            self._end(ends)
        except Exception as exc:
            # Broad on purpose: the pool and the timer would print the text of the exception.
            for plain, _ in ends:
                with suppress(Exception):
                    log_unreported(plain, exc)
                    # Otherwise it keeps its slot for as long as its lease is extended.
                    plain.channel.deliveries.end(plain.tag, Succeeded(), plain.headers)

    def _eventer(self, plain: Plain) -> Any:
        """Sends the events of messages like this; None if nobody wants them."""
        eventer = self._consumer.event_dispatcher
        return eventer if eventer and eventer.enabled and plain.task.send_events else None

    @staticmethod
    def _forget(plain: Plain) -> None:
        """Its delivery has ended without Celery: see `Request.revoked`."""
        plain.channel.plain.pop(plain.tag, None)
        state.task_ready(plain)

    # Its Request

    def _kind(self, task: Any) -> Kind:
        consumer = self._consumer
        eventer = consumer.event_dispatcher
        made = create_request_cls(
            symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, eventer,
            app=consumer.app,
        )  # fmt: skip

        def request_of(plain: Plain) -> Any:
            return self._request_of(plain, made)

        return Kind(
            task=task,
            app=consumer.app,
            hostname=consumer.hostname,
            lane=self,
            request_of=request_of,
            has_events=bool(eventer and eventer.enabled),
            is_suspect=issubclass(TimeLimitExceeded, task.suspect_on),
        )

    def _request_of(self, plain: Plain, made: Any) -> Any:
        """A Request in the state of a plain message, in its place."""
        self._tell()
        channel, consumer = plain.channel, self._consumer
        message = channel.Message(plain.content, channel=channel)
        message.happened = plain.happened
        if plain.time_start is not None:
            message.policy, message.is_suspect = plain.policy, plain.is_suspect
        channel.qos.append(message, plain.tag)
        channel.plain.pop(plain.tag, None)
        request = made(
            message,
            on_ack=partial(consumer.call_soon_ack, message.ack_log_error),
            on_reject=partial(consumer.call_soon_ack, message.reject_log_error),
            app=consumer.app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            task=plain.task,
            connection_errors=consumer.connection_errors,
            body=message.body,
            headers=message.headers,
            utc=consumer.app.uses_utc_timezone(),
        )
        plain.hand_on(request)
        return request


def _note(plain: Plain, result: Any) -> None:
    """Its run has ended, for Celery and for whoever ends its delivery."""
    plain.happened = Succeeded(result if isinstance(result, str) else None)
    state.task_ready(plain, successful=True)


def _may_gather() -> bool:
    """Whether a task of this worker waits for a process, and the worker does not stop."""
    return len(state.reserved_requests) > len(state.active_requests) and state.should_stop is None
