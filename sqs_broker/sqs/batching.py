"""A block that collects the calls of `.delay`, and sends their messages together, ten per call.

with batching():
    for user in users:
        register_user.delay(**user)
"""

import contextvars
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from sqs_broker.machine.offloading import off_loop
from sqs_broker.observers.observer import Observers
from sqs_broker.sqs.errors import Errors, SqsError
from sqs_broker.sqs.flight import Flight
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing, packed
from sqs_broker.sqs.sender import BatchError, Sender, SendError


class Collected(NamedTuple):
    """A message that is to be sent."""

    sender: Sender
    observers: Observers
    queue: str
    """The configured name."""
    to: Queue
    message: Outgoing
    id: str
    most_bytes: int
    """Of one call."""


class batching:
    """Collects the messages of the calls in this block, and sends them at its end.

    Each call still checks its arguments, raises PublishError for a message that SQS would refuse,
    and returns its AsyncResult. If the block raises, nothing is sent. At its end the messages are
    sent with ten per call and four calls at a time. Then the block raises BatchError if SQS did not
    confirm all of them, and ConfigurationError if boto3 cannot use its settings.

    The block collects the calls of its own context: its thread or asyncio task, the tasks that this
    one creates in the block, and `adelay`. A block inside another one adds its messages to the
    outer one. In a coroutine, use `async with batching()`, whose end does not block the event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._collected: list[Collected] = []
        self._is_open = False

    def __enter__(self) -> Self:
        self._outer = current()
        self._token = _batching.set(self)
        self._is_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if collected := self._close(kind):
            send(collected)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if collected := self._close(kind):
            await off_loop(lambda: send(collected))

    def add(self, collected: Iterable[Collected]) -> bool:
        """Collect messages. Returns False, and collects none, if the block has ended."""
        with self._lock:
            if self._is_open:
                self._collected.extend(collected)
            return self._is_open

    def _close(self, kind: type[BaseException] | None) -> list[Collected]:
        """What is to be sent now."""
        _batching.reset(self._token)
        with self._lock:
            self._is_open = False
            collected, self._collected = self._collected, []
        if kind is not None:
            return []
        is_of_outer = self._outer is not None and self._outer.add(collected)
        return [] if is_of_outer else collected


def current() -> batching | None:
    """The block that this context is in."""
    return _batching.get()


def collect(collected: Collected) -> bool:
    """Add a message to the block that this context is in. Returns False if it is in none."""
    block = current()
    return block is not None and block.add([collected])


def send(collected: Sequence[Collected]) -> None:
    """Send messages, ten per call. Raises BatchError, and ConfigurationError."""
    errors: list[SendError | None] = [None] * len(collected)
    for sender in {id(one.sender): one.sender for one in collected}.values():
        with suppress(SqsError):  # Each message has it as its own failure.
            sender.open()
    for places in _of_one_queue(collected):
        _send(collected, places, errors)
    failures = [error for error in errors if error is not None]
    if failures:
        sent = [one.id for one, error in zip(collected, errors, strict=True) if error is None]
        raise BatchError(failures, sent) from failures[0].__cause__


def _of_one_queue(collected: Sequence[Collected]) -> list[list[int]]:
    """The places of the messages, by queue."""
    places: dict[tuple[int, str], list[int]] = {}
    for place, one in enumerate(collected):
        places.setdefault((id(one.sender), one.queue), []).append(place)
    return list(places.values())


def _send(
    collected: Sequence[Collected], places: list[int], errors: list[SendError | None]
) -> None:
    first = collected[places[0]]

    def on_end(some: list[int], found: Errors, may_have_been_sent: bool) -> None:
        for place, error in zip(some, found, strict=True):
            if error is not None:
                may = may_have_been_sent or error.may_have_been_done
                errors[place] = first.sender.error(first.queue, collected[place].id, error, may)
        if sent := found.count(None):
            first.observers.published(first.queue, sent)

    with Flight(first.sender) as flight:
        for pack in packed([collected[place].message for place in places], first.most_bytes):
            some, places = places[: len(pack)], places[len(pack) :]
            flight.send(first.to, pack, first.most_bytes, partial(on_end, some))


_batching: contextvars.ContextVar[batching | None] = contextvars.ContextVar(
    "batching", default=None
)
