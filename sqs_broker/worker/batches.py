"""Collects messages that wait for the pool: several messages of a task with `many` make one job.

Messages collect while the pool is busy. A process that becomes free takes ten of them, or up to
twenty if that many wait for each process. A batch waits for its twentieth message only while a
thousand messages end each second, and not longer than a hundredth of a second. A message runs
alone if it failed before, or if it is not known how an earlier delivery ended. So a message that
kills its process harms other messages only once.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.worker import state

from sqs_broker.limits import BATCH
from sqs_broker.worker.batch import Job, run
from sqs_broker.worker.plain import Plain
from sqs_broker.worker.plain_jobs import PlainJobs
from sqs_broker.worker.request import HandedBack, log_unreported

#: Most messages of one job. To send a job to its process and back costs the same for any number.
LARGEST = 2 * BATCH

#: If so many messages ended within the last span (`Leases.ended_lately`), a batch waits for its
#: twentieth message, for at most so many seconds. At such a rate the others come within this time.
#: One job in place of two saves about a millisecond of the CPU of a process.
MANY = 10 * BATCH
PATIENCE = 0.01


class Batches:
    """Passes requests from Celery's consumer to its pool. Used on the event loop only.

    `alone` runs one request as Celery does, once a process is free; `process` runs it at once.
    `semaphore` counts the free processes (None for pools that have their own queue). `soon`
    schedules a call on the event loop, and `later` one after some seconds. `ended_lately` returns
    how many messages ended within the last span.
    """

    def __init__(
        self,
        pool: Any,
        alone: Callable[[Any], Any],
        process: Callable[[Any], Any],
        semaphore: Any,
        soon: Callable[..., Any],
        later: Callable[..., Any],
        ended_lately: Callable[[], int],
    ) -> None:
        self._pool = pool
        self._alone = alone
        self._process = process
        self._semaphore = semaphore
        self._soon = soon
        self._later = later
        self._ended_lately = ended_lately
        self._waiting: dict[str, deque[Any]] = {}
        self._asked: dict[str, int] = {}
        #: The tasks whose next batch waits for more messages.
        self._filling: set[str] = set()

    def take(self, request: Any) -> None:
        """Run a request: alone, or with others of its task."""
        if not _may_share(request):
            self._alone(request)
            return
        self._collect(request.name, [request])

    def take_plain(self, name: str, plains: Sequence[Plain]) -> None:
        """Run plain messages of a task: with others of it, or each alone."""
        if plains and plains[0].task.many is None:
            for plain in plains:
                self._alone(plain)
        else:
            self._collect(name, plains, is_all=True)

    def _collect(self, name: str, requests: Sequence[Any], *, is_all: bool = False) -> None:
        """Let requests wait for a process. `is_all`: whether these are all that were received
        together."""
        waiting = self._waiting.setdefault(name, deque())
        before = len(waiting)
        waiting.extend(requests)
        if not before or before < LARGEST <= len(waiting):
            self._schedule(name, is_all=is_all)

    def _schedule(self, name: str, *, is_all: bool = False) -> None:
        if self._fills(name):
            if name not in self._filling:
                self._filling.add(name)
                self._later(PATIENCE, self._filled, name)
        elif is_all:
            self._ask_now(name)
        else:
            # In the loop's next turn, when all messages that were received together are here.
            self._soon(self._ask, name)

    def _fills(self, name: str) -> bool:
        """Whether the next batch of a task waits for more messages."""
        return len(self._waiting.get(name, ())) < LARGEST and self._is_fast()

    def _is_fast(self) -> bool:
        return self._ended_lately() >= MANY

    def _filled(self, name: str) -> None:
        if name in self._filling:
            self._filling.remove(name)
            self._ask(name)

    def clear(self) -> None:
        """Forget the waiting requests: the closed connection ended their leases."""
        self._waiting.clear()
        self._asked.clear()
        self._filling.clear()

    def _ask_now(self, name: str) -> None:
        try:
            self._ask(name)
        except Exception as exc:
            # Broad on purpose: the caller has more messages. The loop logs it.
            self._soon(_fail, exc)

    def _ask(self, name: str) -> None:
        """Ask for as many processes as the waiting requests can use."""
        size = LARGEST if self._is_fast() else BATCH
        while self._asked.get(name, 0) * size < len(self._waiting.get(name, ())):
            self._asked[name] = self._asked.get(name, 0) + 1
            if self._semaphore is None:
                self._start(name)
            else:
                self._semaphore.acquire(self._start, name)

    def _start(self, name: str) -> None:
        """Give the next batch to a process that is free."""
        self._asked[name] = max(self._asked.get(name, 0) - 1, 0)
        waiting = self._waiting.get(name, deque())
        requests = _may_start(_take_fairly(waiting, self._size(len(waiting))))
        if len(requests) == 1:
            self._process(requests[0])
        elif requests:
            self._submit(requests)
        elif self._semaphore is not None:
            self._semaphore.release()
        if waiting:
            self._schedule(name)

    def _size(self, waiting: int) -> int:
        """Messages of the next batch: ten, or an equal share for each process if that is more; all
        that wait if many end each second. At most twenty."""
        if self._is_fast():
            return min(waiting, LARGEST)
        share = waiting // max(int(self._pool.num_processes), 1)
        return min(waiting, max(BATCH, min(share, LARGEST)))

    def _submit(self, requests: Sequence[Any]) -> None:
        first = requests[0]
        task = first.task
        trace = fast_trace_task if task.app.use_fast_trace_task else trace_task_ret
        shared = _Shared(requests)
        try:
            result = self._pool.apply_async(
                run,
                args=(trace, task.name, _jobs_of(requests)),
                accept_callback=shared.on_accepted,
                timeout_callback=shared.on_timeout,
                callback=shared.on_success,
                error_callback=shared.on_failure,
                soft_timeout=task.soft_time_limit,
                timeout=task.time_limit,
                correlation_id=first.id,
            )
        except Exception as exc:
            # Broad on purpose: in the solo pool the job runs here, and an exception on the loop
            # ends the worker.
            if self._semaphore is not None:
                self._soon(self._semaphore.release)
            shared.not_taken(exc)
            return
        for request in requests:
            request.shares(result)


class _Shared:
    """The callbacks of one job: each calls all its requests, also if one of them raises."""

    def __init__(self, requests: Sequence[Any]) -> None:
        self._requests = requests
        self._handed_back: set[Any] = set()

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        light = _light(self._requests)
        if light:
            self._all(light, light[0].lane.accepted, pid, time_accepted)
        self._each(lambda request: request.on_accepted(pid, time_accepted), but=light)
        if len(self._handed_back) == len(self._requests):
            # As for a single request: then the threads pool does not start the job.
            raise HandedBack(self._requests[0].id)

    def on_timeout(self, *args: Any, **kwargs: Any) -> None:
        self._each(lambda request: request.on_timeout(*args, **kwargs))

    def on_failure(self, *args: Any, **kwargs: Any) -> None:
        self._each(lambda request: request.on_failure(*args, **kwargs), is_end=True)

    def not_taken(self, exc: Exception) -> None:
        self._each(lambda request: request.not_taken(exc))

    def on_success(self, traced: Any, **kwargs: Any) -> None:
        if isinstance(traced, ExceptionInfo):
            # In a pool of threads, or solo, the job ended in a SystemExit (celery 5.7
            # concurrency/base.py, `apply_target`).
            self.on_failure(traced)
            return
        results = dict(zip(self._requests, traced, strict=True))
        light = [plain for plain in _light(self._requests) if not results[plain][0]]
        if light:
            given = [results[plain] for plain in light]
            self._all(light, light[0].lane.succeeded, given, is_end=True)
        self._each(
            lambda request: request.on_success(results[request], **kwargs), but=light, is_end=True
        )

    def _all(
        self, plains: Sequence[Plain], call: Callable[..., None], *args: Any, is_end: bool = False
    ) -> None:
        try:
            call(plains, *args)
        except Exception as exc:
            # Broad on purpose, as below.
            for plain in plains:
                _unreported(plain, exc, is_end=is_end)

    def _each(
        self, call: Callable[[Any], None], *, but: Sequence[Any] = (), is_end: bool = False
    ) -> None:
        done = {*but, *self._handed_back}
        for request in self._requests:
            if request in done:
                continue
            try:
                call(request)
            except HandedBack:
                self._handed_back.add(request)
            except Exception as exc:
                # Broad on purpose, also for MemoryError: the other requests must still be called.
                _unreported(request, exc, is_end=is_end)


def _fail(exc: Exception) -> None:
    raise exc


def _jobs_of(requests: Sequence[Any]) -> Sequence[Job] | PlainJobs:
    """The messages as they go to their process."""
    first, light = requests[0], _light(requests)
    if len(light) == len(requests):
        return PlainJobs(light, first.limits, first.kind.hostname)
    return [Job(each.id, each.request_dict, *each.body) for each in requests]


def _light(requests: Sequence[Any]) -> list[Plain]:
    """The plain messages that no Request has replaced."""
    return [each for each in requests if isinstance(each, Plain) and each.is_light]


def _may_start(requests: Sequence[Any]) -> list[Any]:
    """Those that may start now. A revoked one is settled, and its event is sent."""
    light = _light(requests)
    held = light[0].lane.hand_over(light) if light else []
    # For a light one, `revoked` would only ask what is known already.
    known = {plain for plain in held if plain.id not in state.revoked} if state.revoked else {*held}
    if len(known) == len(requests):
        return list(requests)
    gone = {*light} - {*held}
    return [
        request
        for request in requests
        if request not in gone and (request in known or _is_wanted(request))
    ]


def _is_wanted(request: Any) -> bool:
    try:
        return not request.revoked()
    except Exception as exc:
        # Broad on purpose: the request was revoked or has expired, and storing that failed.
        _unreported(request, exc, is_end=True)
        return False


def _unreported(request: Any, exc: Exception, *, is_end: bool) -> None:
    with suppress(Exception):
        log_unreported(request, exc)
        if is_end:
            # Otherwise it keeps its slot for as long as its lease is extended.
            request.reject(requeue=True)


def _take_fairly(waiting: deque[Any], count: int) -> list[Any]:
    """Remove so many requests: the first of each queue, then the second of each, and so on. So a
    message of a quiet queue does not wait for all those of a busy one."""
    queues = [_queue_of(request) for request in waiting] if count < len(waiting) else []
    if len({*queues}) <= 1:
        return [waiting.popleft() for _ in range(count)]
    turns: Counter[Any] = Counter()
    turn_of: list[int] = []
    for queue in queues:
        turn_of.append(turns[queue])
        turns[queue] += 1
    first = set(sorted(range(len(queues)), key=turn_of.__getitem__)[:count])
    taken = [request for place, request in enumerate(waiting) if place in first]
    left = [request for place, request in enumerate(waiting) if place not in first]
    waiting.clear()
    waiting.extend(left)
    return taken


def _queue_of(request: Any) -> Any:
    if isinstance(request, Plain):
        return request.queue
    return request.message.delivery_info.get("routing_key")


def _may_share(request: Any) -> bool:
    """Whether a request may run with others: it has the limits of its task, no earlier run failed,
    and it is known how each earlier delivery ended."""
    return (
        request.task.many is not None
        and request.task.acks_late
        and request.message.may_share
        and not any(request.time_limits)
    )
