"""Which messages are plain: no object of Celery or kombu is made for them unless something but
success happens to them.

A message is plain if all of this is true. Everything else has a Request on arrival.

    its task       has `acks_late`, this broker's Request, Celery's own strategy, no rate limit
    the message    is delivered for the first time, and is no copy; it has no eta, no expiry, no
                   stamps, no other name (`shadow`) and no lower time limit; it is not revoked; and
                   `admit` says that it may run
    the worker     has a pool of processes; nobody listens to the signal task_received, or reads
                   Celery's line "Task accepted" of the level DEBUG; and Celery does not hold back
                   messages after a reconnect (worker_enable_prefetch_count_reduction)

A plain message gets a Request as soon as anybody asks for what only a Request has: see `Plain`.
From then on it is as if it had one on arrival. That is so if its run fails or reaches a time limit,
if its process or its lease is lost, if it is revoked, if the worker ends its processes, and for
`inspect`.

Plain messages of a task with `many` share jobs (sqs_broker/worker/batches.py). Each other one has a
job of its own (sqs_broker/worker/singles.py).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

from celery import signals
from celery.app import trace as celery_trace
from celery.worker import request as celery_request
from celery.worker import state
from celery.worker import strategy as celery_strategy
from kombu.utils.imports import symbol_by_name

from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import Happened
from sqs_broker.rules.policy import Policy
from sqs_broker.rules.provenance import Provenance
from sqs_broker.worker.plain_jobs import request_of
from sqs_broker.worker.request import Request, hard_limit_of, limits_of, overrun_of


@dataclass(frozen=True)
class Kind:
    """What the plain messages of one task have in common, since Celery set up its strategies."""

    task: Any
    app: Any
    hostname: str
    lane: Any
    """Starts and ends them (sqs_broker/worker/lane.py)."""
    request_of: Any
    """Makes the Request of a Plain."""
    has_events: bool
    """Whether Celery sends the events of these messages at all."""
    is_suspect: bool
    """Whether an outage may be the cause if the task exceeds its hard time limit."""


class Plain:
    """One delivery of a plain message: Celery's worker and this broker see it as a request.

    It has itself what each message needs. For every other attribute it makes a Request, which takes
    its place in Celery's state. Used on the event loop, except for the attributes of `Taken` (see
    sqs_broker/sqs/deliveries.py) and for `overrun`, which make no Request.
    """

    __slots__ = (
        "__weakref__", "_lease", "_request", "channel", "content", "happened", "headers", "id",
        "job", "kind", "payload", "queue", "tag", "task", "time_start", "worker_pid",
    )  # fmt: skip

    time_limits = (None, None)
    stamps: Mapping[str, Any] = {}

    def __init__(self, kind: Kind, channel: Any, content: dict[str, Any]) -> None:
        self.kind = kind
        self.task = kind.task
        self.channel = channel
        #: What the receiver decoded: the payload of kombu's message.
        self.content = content
        self.headers = content["headers"]
        self.payload = content["body"]
        self.id: str = self.headers["id"]
        self.tag: str = content["properties"]["delivery_tag"]
        #: The queue that it came from.
        self.queue: str = content["properties"]["delivery_info"]["routing_key"]
        self.happened: Happened | None = None
        self.time_start: float | None = None
        self.worker_pid: int | None = None
        #: Refers to the job of the pool, once there is one.
        self.job: Any = None
        self._lease: Lease | None = None
        self._request: Any = None

    @property
    def name(self) -> str:
        """The name of its task."""
        return str(self.task.name)

    @property
    def lane(self) -> Any:
        """Starts and ends it with others."""
        return self.kind.lane

    @property
    def app(self) -> Any:
        """The app of the worker."""
        return self.kind.app

    @property
    def policy(self) -> Policy | None:
        """The policy of its task; None before it runs, as on a message of kombu."""
        return None if self.time_start is None else self.task.policy

    @property
    def is_suspect(self) -> bool:
        """Whether an outage may be the cause if the task exceeds its hard time limit."""
        return self.time_start is not None and self.kind.is_suspect

    @property
    def hard_time_limit(self) -> float | None:
        """Seconds that the task may run."""
        return hard_limit_of(self.task, self.app)

    def overrun(self) -> float:
        """Seconds that the task has run beyond its hard time limit; negative before the limit."""
        return overrun_of(self._lease, self.hard_time_limit)

    @property
    def is_light(self) -> bool:
        """Whether no Request has taken its place."""
        return self._request is None

    @property
    def body(self) -> Any:
        """The arguments of the task, for the pool: [args, kwargs, embed]."""
        return self.payload

    @property
    def request_dict(self) -> dict[str, Any]:
        """What the pool process makes the task's request of: the same as a Request has."""
        if self._request is not None:
            request: dict[str, Any] = self._request.request_dict
            return request
        args, kwargs, _ = self.payload
        parts = self.headers, self.content["properties"]
        return request_of(parts, args, kwargs, self.limits, self.kind.hostname)

    @property
    def limits(self) -> list[float | None]:
        """The hard and the soft limit of its run, in seconds."""
        return limits_of(self.task, self.app, self.time_limits)

    def execute_using_pool(self, pool: Any) -> Any:
        """Run it alone. Celery calls this for each request, once a process is free.

        Raises TaskRevokedError if it must not start."""
        if self._request is None and self.id not in state.revoked:
            return self.lane.start(self, pool)
        return self.full().execute_using_pool(pool)

    def shares(self, job: Any) -> None:
        """Record the job that it runs in."""
        self.job = None if job is None else ref(job)
        if self._request is not None:
            self._request.shares(job)

    def begin(self, lease: Lease | None) -> None:
        """Record its lease; None if the delivery has ended."""
        self._lease = lease

    def hand_on(self, request: Any) -> None:
        """Give a Request what has happened so far, and its place in Celery's state."""
        request.resumes(self.worker_pid, self.time_start, self._lease)
        request.shares(self.job and self.job())
        if state.requests.get(self.id) is self:
            state.requests[self.id] = request
        for requests in (state.active_requests, state.reserved_requests):
            if self in requests:
                requests.discard(self)
                requests.add(request)

    def full(self) -> Any:
        """The Request that takes its place."""
        if self._request is None:
            self._request = self.kind.request_of(self)
        return self._request

    def __getattr__(self, name: str) -> Any:
        """What only a Request has."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.full(), name)

    @property
    def eventer(self) -> Any:
        """What sends its events. Celery replaces it after a reconnect."""
        return self.full().eventer

    @eventer.setter
    def eventer(self, eventer: Any) -> None:
        self.full().eventer = eventer


def is_plain_task(task: Any) -> bool:
    """Whether messages of this task can be plain."""
    return (
        task.acks_late
        and symbol_by_name(task.Request) is Request
        and symbol_by_name(task.Strategy) is celery_strategy.default
    )


def is_plain_message(headers: Mapping[str, Any]) -> bool:
    """Whether a decoded message can be plain, by its headers."""
    provenance: Provenance = headers["delivery"]
    return (
        provenance.deliveries == 1
        and provenance.attempt == 1
        and headers["eta"] is None
        and headers["expires"] is None
        and not headers["stamped_headers"]
        and not headers["shadow"]
        and headers["id"] not in state.revoked
    )


def is_plain_worker(consumer: Any) -> bool:
    """Whether messages of this worker can be plain now."""
    return (
        # Only a pool of processes uses a semaphore (celery 5.7 concurrency/base.py).
        consumer.pool.uses_semaphore
        and not signals.task_received.receivers
        and not consumer.on_task_message
        and (not consumer.restart_count or consumer._maximum_prefetch_restored)
    )


def log_received(plain: Plain) -> None:
    """Write Celery's line "Task … received", as its strategy does (celery 5.7
    worker/strategy.py)."""
    facts = {
        "id": plain.id,
        "name": plain.name,
        "args": plain.headers.get("argsrepr", ""),
        "kwargs": plain.headers.get("kwargsrepr", ""),
        "eta": None,
    }
    celery_strategy.logger.info(celery_trace.LOG_RECEIVED, facts, extra={"data": facts})


def logs_received() -> bool:
    """Whether anybody reads that line."""
    return bool(celery_strategy.logger.isEnabledFor(logging.INFO))


def logs_accepted() -> bool:
    """Whether anybody reads Celery's line that a process has taken a task."""
    return bool(celery_request.logger.isEnabledFor(logging.DEBUG))
