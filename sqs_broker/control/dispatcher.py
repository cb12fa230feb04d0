"""Events leave Celery's loop as they are: the thread that writes them makes JSON of them."""

from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher

from sqs_broker.control.broadcast import Broadcast
from sqs_broker.options import Kind


class Dispatcher(EventDispatcher):
    """Celery's dispatcher without the way through kombu's producer, which encodes each message
    where it is published: in a worker, that is on the loop."""

    def _publish(self, event: Any, producer: Any, routing_key: str, *args: Any, **kw: Any) -> None:
        mailbox = getattr(producer and producer.channel.connection, "mailbox", None)
        if mailbox is None:
            super()._publish(event, producer, routing_key, *args, **kw)
            return
        # Celery gives an event away once it is published, and builds its lists anew.
        mailbox.send(Kind.EVENTS, Broadcast(self.exchange.name, routing_key, self.headers, event))


class Events(CeleryEvents):
    """Set by `events_cls`."""

    dispatcher_cls = Dispatcher
