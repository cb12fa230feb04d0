"""The part of a Celery app that sends task messages: how many calls may send at the same time."""

import os
from typing import Any

import kombu
from celery.app import amqp
from kombu.pools import ProducerPool

from sqs_broker.worker.defaults import is_sqs
from sqs_broker.worker.transport import Transport

#: Calls of one process that may send at the same time.
CALLS = 1_000


class Connection(kombu.Connection):
    """kombu's connection, which uses this broker for a URL that begins with `sqs:`."""

    def __init__(
        self, hostname: Any = "localhost", *args: Any, transport: Any = None, **kwargs: Any
    ) -> None:
        if not transport and is_sqs(hostname):
            transport = Transport
        super().__init__(hostname, *args, transport=transport, **kwargs)


class AMQP(amqp.AMQP):
    """Lends each call that sends a connection of its own.

    Celery's pools have `broker_pool_limit` connections, 10 by default, for all apps of a process. A
    call waits for a free one without a limit, so a silent SQS would delay others than those that
    send to it. Here a connection costs little: all of them share one client.
    """

    Connection = Connection
    #: Celery's older name.
    BrokerConnection = Connection

    #: The process that opened the connections. A child of a fork does not use those of its parent.
    _pool_of: int | None = None

    @property
    def producer_pool(self) -> Any:
        """The connections that calls borrow. With another broker they are Celery's."""
        if self._pool_of != os.getpid():
            connection = self.app.connection_for_write()
            if not issubclass(connection.get_transport_cls(), Transport):
                return super().producer_pool
            self._lent = ProducerPool(connection.Pool(CALLS), limit=CALLS)
            self._pool_of = os.getpid()
        return self._lent
