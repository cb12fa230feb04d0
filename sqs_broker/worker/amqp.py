"""The part of a Celery app that sends task messages: how many calls may send at the same time, and
which destinations a call may name."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from inspect import signature
from typing import Any

import kombu
from celery import Celery, Task
from celery.app import amqp
from kombu.pools import ProducerPool

from sqs_broker.errors import PublishError
from sqs_broker.rules.decoding import PASSED_ON
from sqs_broker.rules.misspelling import nearest
from sqs_broker.worker.defaults import TRANSPORT, is_sqs
from sqs_broker.worker.transport import Transport

#: Calls of one process that may send at the same time.
CALLS = 1_000

#: The options of a call that no function of Celery names (celery 5.7 app/base.py, `send_task`).
UNNAMED = ("argsrepr", "kwargsrepr", "ignore_result")

#: Those of SQS.
OF_SQS = ("message_attributes", "MessageGroupId", "DelaySeconds", "delay_seconds",
          "MessageDeduplicationId")  # fmt: skip


class Connection(kombu.Connection):
    """kombu's connection, which uses this broker for a URL that begins with `sqs:`."""

    def __init__(
        self, hostname: Any = "localhost", *args: Any, transport: Any = None, **kwargs: Any
    ) -> None:
        if is_sqs(transport or hostname):
            # By name, as kombu keeps it: `inspect stats` shows it.
            transport = TRANSPORT
        super().__init__(hostname, *args, transport=transport, **kwargs)


class Producer(kombu.Producer):
    """kombu's producer. A message costs it no copy of a queue that is declared already."""

    def maybe_declare(self, entity: Any, *args: Any, **policy: Any) -> Any:
        """Declare an entity, unless it is declared."""
        # kombu's own function makes a copy of the entity before it looks (5.7 common.py).
        if entity and entity.can_cache_declaration and (transport := self.channel.connection):
            is_declared = hash(entity) in transport.client.declared_entities
            if is_declared:
                return False
        return super().maybe_declare(entity, *args, **policy)


class AMQP(amqp.AMQP):
    """Lends each call that sends a connection of its own.

    Celery's pools have `broker_pool_limit` connections, 10 by default, for all apps of a process. A
    call waits for a free one without a limit, so a silent SQS would delay others than those that
    send to it. Here a connection costs little: all of them share one client.
    """

    Connection = Connection
    #: Celery's older name.
    BrokerConnection = Connection
    Producer = Producer

    #: The process that opened the connections. A child of a fork does not use those of its parent.
    _pool_of: int | None = None

    @property
    def producer_pool(self) -> Any:
        """The connections that calls borrow. With another broker they are Celery's."""
        if self._pool_of != os.getpid():
            connection = self.app.connection_for_write()
            if not issubclass(connection.get_transport_cls(), Transport):
                return super().producer_pool
            self._lent = ProducerPool(connection.Pool(CALLS), limit=CALLS, Producer=Producer)
            self._pool_of = os.getpid()
        return self._lent

    @cached_property
    def send_task_message(self) -> Callable[..., Any]:
        """Celery's function that sends a task message. Raises PublishError for an `exchange` or a
        `routing_key` that Celery would ignore, and for an option that nothing reads and whose name
        is near to that of another one."""
        send: Callable[..., Any] = super().send_task_message
        known = frozenset((*_options_of_calls(send), *UNNAMED, *OF_SQS, *PASSED_ON))

        def checked(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if isinstance(producer.connection.transport, Transport):
                self._refuse_destination(options)
                if not message.headers.get("parent_id"):
                    _refuse_misspelt(options, known)
            return send(producer, name, message, **options)

        return checked

    def _refuse_destination(self, options: dict[str, Any]) -> None:
        """With a direct exchange Celery uses the name of the queue, unless a call has both of the
        other two (celery 5.7 app/amqp.py)."""
        exchange, key = options.get("exchange"), options.get("routing_key")
        if (exchange and key) or not (exchange or key):
            return
        queue = options.get("queue")
        if queue is None and exchange is None:
            queue = self.default_queue
        queue = self.queues[queue] if isinstance(queue, str) else queue
        known = getattr(queue, "exchange", None)
        if (options.get("exchange_type") or getattr(known, "type", "direct")) != "direct":
            return
        own = (getattr(known, "name", ""), getattr(queue, "name", ""))
        if getattr(exchange, "name", exchange) == own[0] or key in (own[1], _key_of(queue)):
            return
        what = "exchange" if exchange else "routing_key"
        raise PublishError(
            f"`{what}` names no queue: a message goes to the queue {own[1]!r} in any case. Name "
            "another one with `queue`, in the call or in task_routes."
        )


def _key_of(queue: Any) -> Any:
    return getattr(queue, "routing_key", None)


def _options_of_calls(send: Callable[..., Any]) -> Iterable[str]:
    """What Celery and kombu take as options of a call. Other names become properties of the
    message."""
    for function in (send, Celery.send_task, Task.apply_async, kombu.Producer.publish):
        yield from signature(function).parameters


def _refuse_misspelt(options: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in options.keys() - known:
        if near := nearest(name, known):
            raise PublishError(f"There is no option {name!r} of a call; did you mean {near!r}?")
