"""SQS as a kombu transport: `virtual.Transport` with one inbox in place of polling.

The receivers' threads fill the inbox, and the event loop empties it. Nothing sleeps.
"""

import logging
import socket
from collections.abc import Callable
from functools import cached_property
from time import monotonic
from typing import Any

from kombu.transport import virtual

from sqs_broker.control.connection import ControlConnection
from sqs_broker.control.planes import attempts_for
from sqs_broker.control.waiting import Read
from sqs_broker.errors import ConfigurationError
from sqs_broker.machine.inbox import Arrived, Inbox
from sqs_broker.machine.textless import textless
from sqs_broker.observers.log import MessageLog
from sqs_broker.observers.metering import metering_for
from sqs_broker.observers.observer import Observers
from sqs_broker.options import Options
from sqs_broker.rules.attempts import AttemptStore
from sqs_broker.rules.faults import untaken
from sqs_broker.rules.outcomes import Happened, NotStarted
from sqs_broker.rules.stock_options import RETRY_POLICY
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import Unreached
from sqs_broker.sqs.sender import Sender, sender_for
from sqs_broker.worker.channel import Channel

logger = logging.getLogger(__name__)


#: The hosts in a `broker_url` that name none: of `install`, and of kombu for `sqs://`.
NO_HOSTS = (None, "", "amazon", "localhost")

#: Seconds between two heartbeats of the event loop.
BEAT = 1.0


class Transport(virtual.Transport):
    """kombu's transport for SQS: `broker_transport = "sqs_broker:Transport"`, `broker_url =
    "sqs://"`."""

    Channel = Channel
    #: Measures the silence of the event loop and the age of events, in seconds.
    clock: Callable[[], float] = staticmethod(monotonic)
    default_port = None
    driver_type = "sqs"
    driver_name = "sqs"
    # Not every OSError: if a fork or a file operation fails on the event loop, no connection is
    # lost.
    connection_errors = (*virtual.Transport.connection_errors, Unreached, ConnectionError)
    # `asynchronous` makes Celery run its event loop (celery 5.7 worker/worker.py).
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset({"direct", "topic", "fanout"})
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        _check_url(client)
        given = client.transport_options
        self.options = Options.read({n: v for n, v in given.items() if n not in RETRY_POLICY})
        metering = metering_for(self.options.metrics)
        own = [MessageLog()] if metering is None else [MessageLog(), metering]
        self.observers = Observers([*own, *self.options.observers])
        self.sqs = driver_for(self.options)
        self.control = ControlConnection(self.options, lambda: self.inbox, lambda: self.clock())
        self._beat_at: float | None = None
        #: Takes the messages that need no message of kombu, and returns the others
        #: (sqs_broker/worker/lane.py).
        self.take_plain: Callable[[list[Arrived]], list[Arrived]] = lambda arrived: arrived

    @cached_property
    def sender(self) -> Sender:
        """Sends task messages. All transports of this process with these options share it."""
        return sender_for(self.options)

    @cached_property
    def inbox(self) -> Inbox:
        """Received messages, until the event loop takes them."""
        return Inbox()

    def attempts(self) -> AttemptStore | None:
        """The store of failed runs; None without a control plane."""
        return attempts_for(self.options.control_options())

    def driver_version(self) -> str:
        """The version of boto3, for `celery report`."""
        from sqs_broker.sqs.boto import VERSION

        return VERSION

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Deliver messages on the event loop as soon as a receiver has put them into the inbox."""
        loop.add_reader(self.inbox.fileno(), self._deliver_arrived)
        # The first beat is now, so that a loop that hangs before its first turn is noticed.
        self._beat()
        loop.call_repeatedly(BEAT, self._beat)

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message that arrives within `timeout` seconds. Raises socket.timeout if none
        does. For consumers without Celery's event loop.
        """
        if not self.inbox.wait(timeout):
            raise socket.timeout  # noqa: UP041 - the name kombu's callers know it by
        # One at a time, because kombu counts replies by calls (kombu 5.7 pidbox.py `_collect`).
        if (arrived := self.inbox.take_one()) is not None:
            self._hand_over(*arrived)

    def close_connection(self, connection: Any) -> None:
        """Close the channels, which release and settle their messages, then the inbox."""
        super().close_connection(connection)
        self.control.close()
        if "inbox" in vars(self):
            self.inbox.close()

    def silence(self) -> float:
        """Seconds since the last heartbeat of the event loop; 0 if there is no event loop."""
        return 0.0 if self._beat_at is None else self.clock() - self._beat_at

    def _beat(self) -> None:
        self._beat_at = self.clock()
        self.control.retry_readers()

    def _deliver_arrived(self) -> None:
        for queue, arrived in self.take_plain(self.inbox.take_all()):
            try:
                self._hand_over(queue, arrived)
            except Exception as exc:
                # Broad on purpose: an exception in a hub callback ends the worker or is lost
                # (kombu 5.7 asynchronous/hub.py).
                logger.error(
                    "Could not deliver a message of the control plane to its consumer.",
                    exc_info=textless(exc),
                    extra={"event": "deliver.failed", "queue": queue},
                )

    def _hand_over(self, queue: str, arrived: Any) -> None:
        if isinstance(arrived, Read):
            self.control.deliver(queue, arrived)
        else:
            self._hand_over_task(queue, arrived)

    def _hand_over_task(self, queue: str, payload: dict[str, Any]) -> None:
        tag = payload["properties"]["delivery_tag"]
        callback = self._callbacks.get(queue)
        if callback is None:
            self._end(tag, NotStarted())
            return
        if not any(channel.deliveries.holds(tag) for channel in self.channels):
            return  # It lost its lease or was released while it waited in the inbox.
        try:
            callback(payload)
        except Exception as exc:
            # Broad on purpose: the other messages must still be delivered.
            logger.error(
                "Could not deliver a message to the worker's consumer.",
                exc_info=textless(exc),
                extra={"event": "deliver.failed", "queue": queue},
            )
            self._end(tag, untaken(exc))

    def _end(self, tag: str, happened: Happened) -> None:
        for channel in self.channels:
            channel.deliveries.end_unstarted(tag, happened)


def _check_url(client: Any) -> None:
    """Raise ConfigurationError if `broker_url` has what kombu's SQS transport takes from it. This
    one takes it from the options."""
    if client.userid or client.password:
        raise ConfigurationError(
            "broker_url has credentials. Set `credentials` in broker_transport_options instead, "
            'and broker_url = "sqs://".'
        )
    if client.port or client.hostname not in NO_HOSTS:
        raise ConfigurationError(
            "broker_url names a host. Set `endpoint_url` in broker_transport_options instead, and "
            'broker_url = "sqs://".'
        )
