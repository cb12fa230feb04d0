"""Sends the messages of producers. Each call ends within the option `publish_timeout`.

A call that fails for a temporary reason is tried again until that time is over. If SQS stays
silent, the caller does not wait for it any longer. A process has one sender, with one boto3 client,
for all threads and connections with the same options.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from itertools import count
from time import monotonic
from typing import Any, TypeVar

from kombu.exceptions import OperationalError

from sqs_broker.errors import PublishError
from sqs_broker.options import Options
from sqs_broker.rules.backoff import half_jitter
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import Errors, NotTried, SqsError, later
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Answer, Outgoing, Request

T = TypeVar("T")

#: Longest pause before the second try of a call, in seconds. It doubles with each further try.
FIRST_PAUSE = 0.1

#: Longest pause at all, in seconds.
LONGEST_PAUSE = 1.0

#: Least seconds for a try after the first one. With less it would have no answer in time, and then
#: nobody knows what it did.
SHORTEST_TRY = 0.05

#: Most senders that a process keeps. Each has other options.
MOST_SENDERS = 8

#: When the call that this context makes must have ended, by the monotonic clock.
_ends_at: ContextVar[float | None] = ContextVar("ends_at", default=None)


class SendError(PublishError, OperationalError):
    """SQS did not confirm a message within `publish_timeout`, or refused it.

    The cause (`__cause__`) is the SqsError. To send the same message again, pass its id:
    `task.apply_async(…, task_id=error.message_id)`.
    """

    def __init__(
        self, queue: str, endpoint: str, message_id: str, code: str, may_have_been_sent: bool
    ) -> None:
        # All arguments, so that it can be pickled.
        super().__init__(queue, endpoint, message_id, code, may_have_been_sent)
        self.queue = queue
        """The configured name of the queue."""
        self.endpoint = endpoint
        """The URL of SQS, or its region if the URL follows from that."""
        self.message_id = message_id
        """The id of the task: also that of its AsyncResult."""
        self.code = code
        """SQS's error code; if there was no answer, what happened instead."""
        self.may_have_been_sent = may_have_been_sent
        """Whether the message may be in the queue nevertheless. Then send it again under the same
        id only."""

    def __str__(self) -> str:
        if self.may_have_been_sent:
            outcome = f"may have been sent; to repeat it, send it with task_id={self.message_id!r}"
        else:
            outcome = "was not sent"
        return (
            f"Queue {self.queue!r} at {self.endpoint}: {self.code}. Message {self.message_id} "
            f"{outcome}.{self._way_out()}"
        )

    def _way_out(self) -> str:
        error = SqsError(self.code)
        if error.is_no_queue:
            return " There is no such queue: check its URL and its region, or create it."
        if error.is_denied:
            return " Allow sqs:SendMessage on it for the role of these credentials."
        return ""


class BatchError(PublishError, OperationalError):
    """SQS did not confirm some messages of a block `with batching()`. It has the others."""

    def __init__(self, failures: Sequence[SendError], sent: Sequence[str]) -> None:
        super().__init__(failures, sent)
        self.failures = tuple(failures)
        """The error of each message that was not confirmed, in the order of the calls."""
        self.sent = tuple(sent)
        """The ids of the messages that SQS has."""

    def __str__(self) -> str:
        total = len(self.failures) + len(self.sent)
        return (
            f"{len(self.failures)} of {total} messages are not confirmed; `failures` lists them. "
            f"The first: {self.failures[0]}"
        )


class Tries:
    """One call: tried until it succeeds, fails for good, or its time is over. For one thread.

    It waits on the thread of the caller. So an exception that a signal handler raises there, such
    as Celery's soft time limit, ends it.
    """

    def __init__(self, driver: Driver, seconds: float) -> None:
        """`seconds` are counted from now."""
        self.may_have_been_done = False
        """Whether SQS may have done what a try asked for, although none succeeded."""
        self._driver = _Limited(driver, seconds)

    def make(self, do: Callable[[Driver], T]) -> T:
        """Call `do` with a driver until it returns. Raises the SqsError of the last try, and
        ConfigurationError if boto3 cannot use its settings."""
        last: SqsError | None = None
        for attempt in count(1):
            try:
                return do(self._driver)
            except NotTried as error:
                raise last or error from None
            except SqsError as error:
                last = error
                self.may_have_been_done |= error.may_have_been_done
                pause = half_jitter(FIRST_PAUSE, attempt, LONGEST_PAUSE)
                left = self._driver.seconds_left - pause
                if not error.is_temporary or left < SHORTEST_TRY:
                    raise
            self._driver.pause(pause)
        raise AssertionError


class _Limited:
    """A driver whose calls all end within some seconds from now."""

    def __init__(self, driver: Driver, seconds: float) -> None:
        self._driver = driver
        self._ends_at = monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        return self._ends_at - monotonic()

    def open(self) -> None:
        self._driver.open()

    def carry(self, request: Request[Any]) -> Answer:
        left = self.seconds_left
        if left <= 0:
            raise NotTried(NotTried.__name__, "there was no time left")
        return self._driver.carry(replace(request, seconds=left))

    def pause(self, seconds: float) -> None:
        self._driver.pause(max(0.0, min(seconds, self.seconds_left)))

    def close(self) -> None:
        self._driver.close()


class Sender:
    """Sends messages to the queues of some options. Thread-safe."""

    def __init__(self, options: Options) -> None:
        self._options = options
        # One try, because `Tries` repeats it: only then is it known what each try did. With
        # parameter checks, because a caller may give messages attributes of its own.
        seconds = options.publish_timeout
        self.driver = driver_for(
            options, read_timeout=seconds, tries=1, seconds=seconds, is_checked=True
        )

    def open(self) -> None:
        """Prepare what the first call would otherwise prepare. Raises ConfigurationError if boto3
        cannot use its settings, and SqsError."""
        self.driver.open()

    def send(self, queue: str, message: Outgoing, message_id: str) -> None:
        """Send one message to the queue of this name. Raises SendError, with the SqsError as its
        cause, and ConfigurationError if boto3 cannot use its settings."""
        url = self._options.queue(queue).url
        tries = Tries(self.driver, _seconds_left(self._options.publish_timeout))
        try:
            tries.make(lambda driver: Queue(url, driver).send(message))
        except SqsError as exc:
            raise self.error(queue, message_id, exc, tries.may_have_been_done) from exc

    def send_many(
        self, to: Queue, messages: Sequence[Outgoing], most_bytes: int
    ) -> tuple[Errors, bool]:
        """Send messages that fit into one call. Returns the error of each, and whether SQS may have
        those with an error nevertheless. A message that SQS has accepted is not sent again."""
        errors: Errors = [None] * len(messages)
        left = list(range(len(messages)))

        def send(driver: Driver) -> None:
            some = [messages[place] for place in left]
            found = Queue(to.url, driver).send_many(some, most_bytes)
            for place, error in zip(left, found, strict=True):
                errors[place] = later(errors[place], error)
            left[:] = [place for place in left if _is_of_call(errors[place])]
            if left:
                raise errors[left[0]]  # type: ignore[misc]  # `_is_of_call` is false for None

        tries = Tries(self.driver, self._options.publish_timeout)
        with suppress(SqsError):  # Each message has it as its own.
            tries.make(send)
        return errors, tries.may_have_been_done

    def error(
        self, queue: str, message_id: str, error: SqsError, may_have_been_sent: bool
    ) -> SendError:
        """What the caller gets for a message that SQS did not confirm. Its cause is `error`."""
        endpoint = getattr(self.driver, "endpoint", None) or self._options.endpoint_url
        place = endpoint or f"SQS in {self._options.region}"
        failure = SendError(queue, place, message_id, error.code, may_have_been_sent)
        failure.__cause__ = error
        return failure


def sender_for(options: Options) -> Sender:
    """The sender of this process for these options. If they name a driver, it is a new one: what
    that driver shares is its own matter."""
    if options.driver is not None:
        return Sender(options)
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    key = (
        options.region,
        options.endpoint_url,
        options.credentials,
        options.queues,
        options.publish_timeout,
        aws,
    )
    with _lock:
        for known, sender in _senders:
            if known == key:
                return sender
        sender = Sender(options)
        _senders.append((key, sender))
        del _senders[:-MOST_SENDERS]
        return sender


@contextmanager
def deadline(ends_at: float) -> Iterator[None]:
    """A context in which `send` must end at this time, by the monotonic clock, if that is earlier
    than after `publish_timeout`."""
    token = _ends_at.set(ends_at)
    try:
        yield
    finally:
        _ends_at.reset(token)


def _seconds_left(seconds: float) -> float:
    ends_at = _ends_at.get()
    return seconds if ends_at is None else min(seconds, ends_at - monotonic())


def _is_of_call(error: SqsError | None) -> bool:
    """Whether the whole call of a message failed."""
    return error is not None and not error.is_of_entry


_senders: list[tuple[Any, Sender]] = []
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


# Another thread of the parent may have held the lock at the fork. The clients know their process.
os.register_at_fork(after_in_child=_new_lock)
