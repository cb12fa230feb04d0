"""What arrives at the worker: only what it can run gets to a task.

Celery's own handlers for what it cannot run log the whole body (celery 5.7
worker/consumer/consumer.py, `dump_body`), so each is replaced.
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
from sqs_broker.rules.routes import circle, told
from sqs_broker.worker.batches import Batches
from sqs_broker.worker.channel import Message
from sqs_broker.worker.loop import Hub
from sqs_broker.worker.shutdown import Shutdown

logger = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """Celery's consumer, for this broker: set by `worker_consumer`."""

    _was_ready = False

    def __init__(self, on_task_request: Callable[[Any], Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(on_task_request, *args, **kwargs)
        if self.hub is None:
            raise ConfigurationError(
                "This pool has no event loop for the SQS transport (gevent, eventlet). "
                "Use --pool=prefork, threads or solo."
            )
        options = Options.read(self.app.conf.broker_transport_options)
        check_driver(options.control)
        if found := circle(options):
            raise ConfigurationError(
                f"predefined_queues: {told(found)}. "
                "Name a queue as dead_letter_url that no worker receives."
            )
        # Before the pool makes its processes, which then share this memory for good.
        _keep_from_collections()
        self._shutdown = Shutdown(self)
        semaphore = self.controller.semaphore if self.pool.uses_semaphore else None
        process = partial(self._process, semaphore)
        self._batches = Batches(
            self.pool,
            alone=process if semaphore is None else partial(semaphore.acquire, process),
            process=process,
            semaphore=semaphore,
            soon=self.hub.call_soon,
        )
        self.on_task_request: Callable[[Any], Any] = self._batches.take

    def on_close(self) -> None:
        """The connection ends, and with it the leases of what waits for the pool."""
        self._batches.clear()
        super().on_close()

    def on_ready(self) -> None:
        """The worker takes messages now."""
        deliveries = self.task_consumer.channel.deliveries
        deliveries.on_lease_lost = self._on_lease_lost
        # Only a pool of processes has it (celery 5.7 concurrency/base.py).
        deliveries.pool_has_processes = self.pool.uses_semaphore
        self._shutdown.listen()
        if self.connection is not None:
            control_plane.attach(self)
        super().on_ready()
        if not self._was_ready:
            self._was_ready = True
            _keep_from_collections()

    def close(self) -> None:
        """Let what runs finish: Celery calls this first when a worker stops, while its pool and its
        event loop still work (celery 5.7 worker/worker.py, `signal_consumer_close`)."""
        self._shutdown.drain()

    def shutdown(self) -> None:
        """The last step of a stop."""
        super().shutdown()
        self._shutdown.finish()

    def loop_args(self) -> tuple[Any, ...]:
        """What Celery's loop is given: the hub, whose loop goes on where one callback fails."""
        return tuple(Hub(arg) if arg is self.hub else arg for arg in super().loop_args())

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """The function each task message goes through. It never raises."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Message) -> None:
            try:
                if self._admit(message):
                    handle(message)
            except Exception as exc:
                # Broad on purpose: an exception here ends the worker, and the next one too.
                self._end(message, untaken(exc), exc)

        return on_task_received

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """The body is of a kind that is not accepted."""
        self._refuse(message, "the content of the message is not accepted", exc)

    def on_unknown_message(self, body: object, message: Message) -> None:
        """The message names no task."""
        self._refuse(message, "the message is no task message", None)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """No task has this name: it went between two looks."""
        self._end(message, UnknownTask(message.headers["task"]), exc)
        self._say_unknown(message, exc)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Celery cannot make a request of the message."""
        self._refuse(message, "the message is no valid task message", exc)

    def _admit(self, message: Message) -> bool:
        match admit(message, self.app.tasks):
            case Admitted(_, headers):
                message.headers.update(headers)
                message.channel.deliveries.admitted(message.delivery_tag, message.headers)
                return True
            case UnknownTask(name) as unknown:
                self._end(message, unknown, KeyError(name))
                self._say_unknown(message, KeyError(name))
            case refused:
                self._end(message, refused, None)
        return False

    def _say_unknown(self, message: Message, exc: Exception) -> None:
        signals.task_unknown.send(
            sender=self,
            message=message,
            exc=exc,
            name=message.headers["task"],
            id=message.headers["id"],
        )

    def _process(self, semaphore: Any, request: Any) -> None:
        """Hand a request to the pool, and take what that raises: whoever calls this when a process
        becomes free has still to hear what that one has done (billiard 4.3 pool.py, `on_ready`)."""
        try:
            self.controller._process_task(request)
        except Exception as exc:
            # Broad on purpose: whatever it is, it is said by what becomes of the message.
            if semaphore is not None:
                # Later, for it calls the next one that waits.
                self.hub.call_soon(semaphore.release)
            request.not_taken(exc)

    def _on_lease_lost(self, tag: str) -> None:
        """Runs on the heartbeat's thread; the requests are the loop's."""
        # Only a pool of processes can end a task (celery 5.7 concurrency/base.py).
        if self.pool.uses_semaphore:
            self.hub.call_soon(self._cancel_where_wanted, tag)

    def _cancel_where_wanted(self, tag: str) -> None:
        # Not by the id, which the redelivery has too: it may be here already, in this one's place.
        for request in tuple(state.reserved_requests):
            if request.message.delivery_tag == tag and request.task.policy.cancel_on_lease_loss:
                # Never a revoke: the redelivery would be discarded.
                request.cancel(self.pool, emit_retry=False)

    def _refuse(self, message: Message, reason: str, exc: Exception | None) -> None:
        self._end(message, untaken(exc, reason) if exc else Refused(reason), exc)

    def _end(self, message: Message, happened: Happened, exc: Exception | None) -> None:
        """The end of a message that gets to no task."""
        message.note(happened)
        message.reject_log_error(logger, self.connection_errors)
        for request in tuple(state.reserved_requests):
            if request.message is message:
                state.task_ready(request)  # Else Celery would keep it for ever.
        if isinstance(happened, Refused | UnknownTask):
            signals.task_rejected.send(sender=self, message=message, exc=exc)


def _keep_from_collections() -> None:
    """Let the garbage collector leave alone what is here now: a worker has it until it ends, and to
    look through it stops every thread for a tenth of a second."""
    gc.collect()
    gc.freeze()
