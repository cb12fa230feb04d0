"""Sends Celery's events with little work on the loop: the writing thread makes JSON of them."""

from collections.abc import Sequence
from time import time
from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset

from sqs_broker.control.broadcast import MOST_TOGETHER, Broadcast
from sqs_broker.options import Kind

#: The group of the events of tasks, and what their names begin with.
TASK, OF_A_TASK = "task", "task-"

#: Seconds at whose multiples clocks are put forward or back, at the most often.
QUARTER = 900


class Dispatcher(EventDispatcher):
    """Celery's dispatcher, but without kombu's producer, which would encode each event in the
    publishing thread: in a worker, on the event loop.

    A worker sends three events for each message, those of a job at once. It asks the loop for one
    flush, not for one after each event, and for the offset of local time once in a quarter of an
    hour.
    """

    def __init__(self, *args: Any, buffer_limit: int = MOST_TOGETHER, **options: Any) -> None:
        self._is_flush_due = False
        self._offset, self._offset_until = 0.0, float("-inf")
        super().__init__(*args, buffer_limit=buffer_limit, **options)

    def send(self, type: str, *args: Any, **fields: Any) -> None:
        """Send an event, as Celery's dispatcher does."""
        is_plain = not args and "Event" not in fields and "utcoffset" not in fields
        if not (is_plain and type.startswith(OF_A_TASK) and TASK in self.buffer_group):
            super().send(type, *args, **fields)
        elif self._wants_tasks:
            for name in ("blind", "retry", "retry_policy"):
                fields.pop(name, None)  # Celery ignores them for an event that is gathered.
            self._gather(type, [fields])

    def send_all(self, type: str, each: Sequence[dict[str, Any]]) -> None:
        """Send an event of a task with each of these fields, as `send` does. No field may have the
        name of a parameter of Celery's `send`."""
        if TASK not in self.buffer_group:
            for fields in each:
                self.send(type, **fields)
        elif each and self._wants_tasks:
            self._gather(type, each)

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send the events that were gathered."""
        # First: what another thread adds from now on asks for a flush of its own.
        self._is_flush_due = False
        super().flush(errors, groups)

    @property
    def _wants_tasks(self) -> bool:
        return self.enabled and (not self.groups or TASK in self.groups)

    def _gather(self, type: str, each: Sequence[dict[str, Any]]) -> None:
        gathered, now = self._group_buffer[TASK], time()
        if gathered and len(gathered) + len(each) > self.buffer_limit:
            self.flush()
        same = {
            "hostname": self.hostname,
            "utcoffset": self._offset_at(now),
            "pid": self.pid,
            "type": type,
        }
        with self.clock.mutex:  # `forward`, once for each event.
            clock = self.clock.value + 1
            self.clock.value += len(each)
        gathered += [
            {"timestamp": now, **fields, **same, "clock": number}
            for number, fields in enumerate(each, clock)
        ]
        if len(gathered) >= self.buffer_limit:
            self.flush()
        elif self.on_send_buffered and not self._is_flush_due:
            self._is_flush_due = True
            self.on_send_buffered()

    def _offset_at(self, now: float) -> float:
        if now >= self._offset_until:
            self._offset, self._offset_until = utcoffset(), (now // QUARTER + 1) * QUARTER
        return self._offset

    def _publish(self, event: Any, producer: Any, routing_key: str, *args: Any, **kw: Any) -> None:
        control = getattr(producer and producer.channel.connection, "control", None)
        if control is None:
            super()._publish(event, producer, routing_key, *args, **kw)
            return
        # No copy is needed: Celery does not change an event, or a list of them, after this call.
        control.send(Kind.EVENTS, Broadcast(self.exchange.name, routing_key, self.headers, event))


def send_all(eventer: Any, type: str, each: Sequence[dict[str, Any]]) -> None:
    """Send an event of a task with each of these fields, with any dispatcher."""
    if isinstance(eventer, Dispatcher):
        eventer.send_all(type, each)
        return
    for fields in each:
        eventer.send(type, **fields)


class Events(CeleryEvents):
    """Celery's events with this dispatcher. Set by `events_cls`."""

    dispatcher_cls = Dispatcher
