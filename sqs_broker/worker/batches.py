"""Gathers what waits for the pool: messages of a task that runs many at once become one job.

Nothing waits for a batch to fill. While the pool is busy messages gather, and a process that
becomes free takes ten of them, or up to twenty where so many wait for each. What failed before, or
lost its process, runs alone: so a message that takes its process along harms others once at the
most.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import fast_trace_task, trace_task_ret

from sqs_broker.limits import BATCH
from sqs_broker.worker.batch import Job, run
from sqs_broker.worker.request import HandedBack, say_unreported

#: Messages of one job at the most. The way of a job to its process and back costs the same for all.
LARGEST = 2 * BATCH


class Batches:
    """Between Celery's consumer and its pool. Used on the event loop alone.

    `alone` is Celery's own way for a request that may run now, `semaphore` counts the processes
    that are free (None for pools that queue by themselves), and `soon` calls back on the loop.
    """

    def __init__(
        self,
        pool: Any,
        alone: Callable[[Any], Any],
        process: Callable[[Any], Any],
        semaphore: Any,
        soon: Callable[..., Any],
    ) -> None:
        self._pool = pool
        self._alone = alone
        self._process = process
        self._semaphore = semaphore
        self._soon = soon
        self._waiting: dict[str, deque[Any]] = {}
        self._asked: dict[str, int] = {}

    def take(self, request: Any) -> None:
        """Run a request: alone, or with others of its task."""
        if not _may_share(request):
            self._alone(request)
            return
        waiting = self._waiting.setdefault(request.name, deque())
        waiting.append(request)
        if len(waiting) == 1:
            # In the next turn of the loop: what was received together is here by then.
            self._soon(self._ask, request.name)

    def clear(self) -> None:
        """Forget what waits: its leases went with the connection."""
        self._waiting.clear()
        self._asked.clear()

    def _ask(self, name: str) -> None:
        """Ask for as many processes as what waits can use."""
        while self._asked.get(name, 0) * BATCH < len(self._waiting.get(name, ())):
            self._asked[name] = self._asked.get(name, 0) + 1
            if self._semaphore is None:
                self._start(name)
            else:
                self._semaphore.acquire(self._start, name)

    def _start(self, name: str) -> None:
        """A process is free: give it the next batch."""
        self._asked[name] = max(self._asked.get(name, 0) - 1, 0)
        waiting = self._waiting.get(name, deque())
        requests = [waiting.popleft() for _ in range(self._size(len(waiting)))]
        # Celery settles and announces what was revoked when it is asked.
        requests = [request for request in requests if _may_start(request)]
        if len(requests) == 1:
            self._process(requests[0])
        elif requests:
            self._submit(requests)
        elif self._semaphore is not None:
            self._semaphore.release()
        if waiting:
            self._soon(self._ask, name)

    def _size(self, waiting: int) -> int:
        """Ten, or a process's share of what waits where that is more."""
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
                args=(trace, task.name, [Job(r.id, r.request_dict, *r.body) for r in requests]),
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
    """The callbacks of one job, for each of its requests: one that breaks leaves the others."""

    def __init__(self, requests: Sequence[Any]) -> None:
        self._requests = requests
        self._handed_back: set[Any] = set()

    def on_accepted(self, *args: Any, **kwargs: Any) -> None:
        self._each(lambda request: request.on_accepted(*args, **kwargs))
        if len(self._handed_back) == len(self._requests):
            # As a request by itself does: the threads pool starts nothing then.
            raise HandedBack(self._requests[0].id)

    def on_timeout(self, *args: Any, **kwargs: Any) -> None:
        self._each(lambda request: request.on_timeout(*args, **kwargs))

    def on_failure(self, *args: Any, **kwargs: Any) -> None:
        self._each(lambda request: request.on_failure(*args, **kwargs), is_end=True)

    def not_taken(self, exc: Exception) -> None:
        self._each(lambda request: request.not_taken(exc))

    def on_success(self, traced: Any, **kwargs: Any) -> None:
        if isinstance(traced, ExceptionInfo):
            # A pool of threads, or solo, whose job ended in a SystemExit (celery 5.7
            # concurrency/base.py, `apply_target`).
            self.on_failure(traced)
            return
        results = dict(zip(self._requests, traced, strict=True))
        self._each(lambda request: request.on_success(results[request], **kwargs), is_end=True)

    def _each(self, call: Callable[[Any], None], *, is_end: bool = False) -> None:
        for request in self._requests:
            if request in self._handed_back:
                continue
            try:
                call(request)
            except HandedBack:
                self._handed_back.add(request)
            except Exception as exc:
                # Broad on purpose, and MemoryError is one: the messages after this one have to
                # hear of it too.
                _unreported(request, exc, is_end=is_end)


def _may_start(request: Any) -> bool:
    try:
        return not request.revoked()
    except Exception as exc:
        # Broad on purpose: it was revoked or is expired, and that could not be stored.
        _unreported(request, exc, is_end=True)
        return False


def _unreported(request: Any, exc: Exception, *, is_end: bool) -> None:
    with suppress(Exception):
        say_unreported(request, exc)
        if is_end:
            # Else it would keep its slot as long as its lease may last.
            request.reject(requeue=True)


def _may_share(request: Any) -> bool:
    """Whether a request may run with others: a first delivery, with the limits of its task."""
    return (
        request.task.many is not None
        and request.task.acks_late
        and request.message.deliveries == 1
        and not any(request.time_limits)
    )
