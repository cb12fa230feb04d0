"""Celery's consumer, which passes to a task only messages that can run.

Celery's own handlers for other messages log the whole body (celery 5.7
worker/consumer/consumer.py, `dump_body`), so each handler is replaced.
"""

import gc
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import signals
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer

from sqs_broker.control import worker as control_plane
from sqs_broker.control.planes import check_driver
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options
from sqs_broker.rules.admission import Admitted, admit
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.outcomes import Happened, Refused, UnknownTask
from sqs_broker.rules.routes import refuse_circle
from sqs_broker.worker.batches import Batches
from sqs_broker.worker.channel import Message
from sqs_broker.worker.defaults import is_elsewhere
from sqs_broker.worker.lane import GATHERING, Lane
from sqs_broker.worker.loop import Hub
from sqs_broker.worker.mixing import refuse
from sqs_broker.worker.plain import Plain
from sqs_broker.worker.refusals import Refusals
from sqs_broker.worker.shutdown import Shutdown

logger = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """Celery's consumer, for this broker."""

    _was_ready = False

    def __init__(
        self,
        on_task_request: Callable[[Any], Any],
        *args: Any,
        controller: Any = None,
        prefetch_multiplier: int = 1,
        **kwargs: Any,
    ) -> None:
        self._multiplier = prefetch_multiplier
        # For Celery the prefetch count is how many tasks run at a time. The leases decide how many
        # messages are held, with the multiplier as a limit.
        kwargs["initial_prefetch_count"] = controller.max_concurrency or controller.concurrency
        super().__init__(
            on_task_request, *args, controller=controller, prefetch_multiplier=1, **kwargs
        )
        if self.hub is None:
            raise ConfigurationError(
                "The SQS transport needs an event loop, and this pool (gevent, eventlet) has none. "
                "Use --pool=prefork, threads or solo."
            )
        refuse(self.app.tasks.values())
        _refuse_time_limits(controller, self.app.conf)
        options = Options.read(self.app.conf.broker_transport_options)
        check_driver(options.control_options())
        self._canvas = options.canvas
        refuse_circle(options)
        # Before the pool creates its processes, so that they keep sharing this memory.
        _freeze_garbage_collector()
        self._shutdown = Shutdown(self)
        semaphore = self.controller.semaphore if self.pool.uses_semaphore else None
        process = partial(self._process, semaphore)
        self._batches = Batches(
            self.pool,
            alone=process if semaphore is None else partial(semaphore.acquire, process),
            process=process,
            semaphore=semaphore,
            soon=self.hub.call_soon,
            later=self.hub.call_later,
            ended_lately=lambda: self.task_consumer.channel.deliveries.leases.ended_lately,
        )
        self.on_task_request: Callable[[Any], Any] = self._batches.take
        self.lane = Lane(self, self._canvas, self._batches)

    def update_strategies(self) -> None:
        """Set up what handles the messages of each task."""
        super().update_strategies()
        self.lane.refresh()

    def on_close(self) -> None:
        """Forget the messages that wait for the pool: the closed connection ended their leases."""
        self.lane.report()
        self._batches.clear()
        super().on_close()

    def on_ready(self) -> None:
        """Prepare for messages, which the worker accepts from now on."""
        self.task_consumer.channel.deliveries.attach(
            # Only a pool of processes uses a semaphore (celery 5.7 concurrency/base.py).
            pool_has_processes=self.pool.uses_semaphore,
            on_lease_lost=self._on_lease_lost,
            on_given_up=partial(self.hub.call_soon, self._give_up_run),
        )
        self._shutdown.listen()
        if self.connection is not None:
            self.connection.transport.take_plain = self.lane.take
            control_plane.attach(self)
            self.connection.transport.observers.add(
                Refusals(lambda: self.event_dispatcher, self.hub.call_soon)
            )
        super().on_ready()
        if not self._was_ready:
            self._was_ready = True
            _freeze_garbage_collector()

    def close(self) -> None:
        """Let running tasks finish. Celery calls this first when a worker stops, while the pool and
        the event loop still work (celery 5.7 worker/worker.py, `signal_consumer_close`)."""
        self._shutdown.drain()

    def on_send_event_buffered(self) -> None:
        """Send the events of tasks that the dispatcher gathers from now on, all at once. Called on
        any thread."""
        self.hub.call_soon(self._send_events_later)

    def _send_events_later(self) -> None:
        self.hub.call_later(GATHERING, self._send_events)

    def _send_events(self) -> None:
        if self.event_dispatcher:
            self.event_dispatcher.flush()

    def shutdown(self) -> None:
        """Do the last step of a stop."""
        self._send_events()
        super().shutdown()
        self._shutdown.finish()

    def give_up(self, status: int) -> None:
        """Stop at once, as after a second signal, and end the process with this exit status. May be
        called on any thread. Does nothing if the worker already stops."""
        self._shutdown.give_up(status)

    def loop_args(self) -> tuple[Any, ...]:
        """The arguments of Celery's loop, with a hub whose loop continues if a callback fails. The
        loop begins to receive."""
        if self.task_consumer is not None:
            self.task_consumer.channel.deliveries.limit(self._multiplier)
        return tuple(Hub(arg) if arg is self.hub else arg for arg in super().loop_args())

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """The function that handles each task message. It never raises."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Message) -> None:
            try:
                if self._admit(message):
                    handle(message)
            except Exception as exc:
                # Broad on purpose: an exception here ends the worker, and would end the next one.
                self.end(message, untaken(exc), exc)

        return on_task_received

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Refuse a message whose content cannot be decoded."""
        self._refuse(message, "the content of the message is not accepted", exc)

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Refuse a message without the name of a task."""
        self._refuse(message, "the message is not a task message", None)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """End a message whose task was removed after the message was admitted."""
        self.end(message, UnknownTask(message.headers["task"]), exc)
        self._send_unknown(message, message.headers["task"], exc)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Refuse a message from which Celery cannot create a request."""
        self._refuse(message, "the message is not a valid task message", exc)

    def _admit(self, message: Message) -> bool:
        match admit(message, self.app.tasks, self._canvas):
            case Admitted(_, headers):
                message.headers.update(headers)
                message.channel.deliveries.admitted(message.delivery_tag, message.headers)
                return True
            case UnknownTask(name) as unknown:
                self.end(message, unknown, KeyError(name))
                self._send_unknown(message, name, KeyError(name))
            case refused:
                self.end(message, refused, None)
        return False

    def _send_unknown(self, message: Message, name: str, exc: Exception) -> None:
        signals.task_unknown.send(
            sender=self,
            message=message,
            exc=exc,
            name=name,
            id=message.headers["id"],
        )

    def _process(self, semaphore: Any, request: Any) -> None:
        """Pass a request to the pool. Never raises: if a process has become free, the caller must
        still handle the result of that process (billiard 4.3 pool.py, `on_ready`)."""
        try:
            self.controller._process_task(request)
        except Exception as exc:
            # Broad on purpose: `not_taken` turns each exception into an end of the delivery.
            if semaphore is not None:
                # Later, because `release` runs the next waiting request.
                self.hub.call_soon(semaphore.release)
            request.not_taken(exc)

    def _on_lease_lost(self, tag: str) -> None:
        """Called on the heartbeat's thread. Only the event loop may use the requests."""
        # Only a pool of processes can end a task (celery 5.7 concurrency/base.py).
        if self.pool.uses_semaphore:
            self.hub.call_soon(self._cancel_if_wanted, tag)

    def _give_up_run(self, tag: str, happened: Happened) -> None:
        for request in tuple(state.active_requests):
            if _tag_of(request) == tag:
                request.given_up(happened)

    def _cancel_if_wanted(self, tag: str) -> None:
        # Found by tag, not by id: the redelivery has the same id and may be here already.
        for request in tuple(state.reserved_requests):
            if _tag_of(request) == tag and request.task.policy.cancel_on_lease_loss:
                # Not a revoke, which would also discard the redelivery.
                request.cancel(self.pool, emit_retry=False)

    def _refuse(self, message: Message, reason: str, exc: Exception | None) -> None:
        self.end(message, untaken(exc, reason) if exc else Refused(reason), exc)

    def end(self, message: Message, happened: Happened, exc: Exception | None) -> None:
        """End a message that does not get to a task."""
        comes_again = isinstance(happened, UnknownTask) and message.has_grace
        message.note(happened)
        message.reject_log_error(logger, self.connection_errors)
        for request in tuple(state.reserved_requests):
            if not isinstance(request, Plain) and request.message is message:
                state.task_ready(request)  # Otherwise Celery keeps it for ever.
        if isinstance(happened, Refused | UnknownTask) and not comes_again:
            signals.task_rejected.send(sender=self, message=message, exc=exc)


def _tag_of(request: Any) -> Any:
    """The tag of a request's delivery."""
    return request.tag if isinstance(request, Plain) else request.message.delivery_tag


def consumer_for(*args: Any, app: Any = None, **kwargs: Any) -> CeleryConsumer:
    """The consumer of a worker: Celery's own if the app uses another broker. Set by
    `worker_consumer`."""
    kind = CeleryConsumer if is_elsewhere(app) else Consumer
    return kind(*args, app=app, **kwargs)


def _freeze_garbage_collector() -> None:
    """Exclude all present objects from garbage collection. A worker keeps them until it ends, and
    to scan them would stop every thread for a tenth of a second."""
    gc.collect()
    gc.freeze()


def _refuse_time_limits(controller: Any, conf: Any) -> None:
    """Raise ConfigurationError if the command line sets a time limit. Celery gives it to the pool,
    and gives each job the limit of its task, which is that of the settings (celery 5.7
    worker/request.py). So it would have no effect, and the length of a lease would not fit."""
    for option, setting in (
        ("--time-limit", "task_time_limit"),
        ("--soft-time-limit", "task_soft_time_limit"),
    ):
        given = getattr(controller, setting.removeprefix("task_"), None)
        if given != getattr(conf, setting):
            raise ConfigurationError(
                f"{option}: the time limits of tasks and the leases of messages are settings, so "
                f"that they fit together. Set {setting} instead."
            )
