"""Sends Celery's events without work on the event loop: the writing thread makes JSON of them."""

from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.options import Kind


class Dispatcher(EventDispatcher):
    """Celery's dispatcher, but without kombu's producer, which would encode each event in the
    publishing thread: in a worker, on the event loop."""

    def _publish(self, event: Any, producer: Any, routing_key: str, *args: Any, **kw: Any) -> None:
        control = getattr(producer and producer.channel.connection, "control", None)
        if control is None:
            super()._publish(event, producer, routing_key, *args, **kw)
            return
        # No copy is needed: Celery does not change an event, or a list of them, after this call.
        control.send(Kind.EVENTS, Broadcast(self.exchange.name, routing_key, self.headers, event))


class Events(CeleryEvents):
    """Celery's events with this dispatcher. Set by `events_cls`."""

    dispatcher_cls = Dispatcher
