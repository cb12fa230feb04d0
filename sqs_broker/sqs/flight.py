"""Several calls that send messages at the same time."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from sqs_broker.machine.calls import Calls
from sqs_broker.sqs.errors import Errors, NotTried, SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.sqs.sender import Sender

#: Calls at the same time.
CALLS = 4

#: Called with the error of each message of a call, in the given order, and whether SQS may have
#: those with an error nevertheless.
OnEnd = Callable[[Errors, bool], None]


class Flight:
    """Sends messages, with some calls at the same time. For one thread, and one block `with`.

    As many calls may wait as are open. So the next call begins once another one has ended, although
    its caller is still making the messages of a later one. The end of the block waits for all
    calls; if the block raises, those that wait are not made.

    If SQS cannot be reached within the time of a call, the calls that have not begun are not made:
    each would take as long again.
    """

    def __init__(self, sender: Sender, calls: int = CALLS) -> None:
        self._sender = sender
        self._most = calls
        self._threads = Calls()
        #: Guards what follows. Notified at the end of each call.
        self._changed = threading.Condition()
        self._waiting: deque[_Call] = deque()
        self._open = 0
        self._ended: deque[_Call] = deque()
        self._is_away = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            with self._changed:
                self._waiting.clear()

    def send(self, to: Queue, messages: Sequence[Outgoing], most_bytes: int, on_end: OnEnd) -> None:
        """Begin a call with messages that fit into one, or let it wait for the end of another one.
        Blocks if enough of them wait already. `on_end` is called on this thread, later or in
        `finish`, in the order in which the calls end."""
        self._end(until=lambda: len(self._waiting) < self._most)
        with self._changed:
            self._waiting.append(_Call(to, messages, most_bytes, on_end))
            if self._open == self._most:
                return
            self._open += 1
        # If there is no thread, it is made here.
        self._threads.begin(self._make_calls)

    def finish(self) -> None:
        """Wait for the end of all calls."""
        self._end(until=lambda: not self._open)

    def _end(self, until: Callable[[], bool]) -> None:
        """Tell of calls that have ended, until a condition holds."""
        is_so = False
        while not is_so:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or until())
                ended, is_so = list(self._ended), until()
                self._ended.clear()
            for call in ended:
                call.tell()

    # On the threads of the calls

    def _make_calls(self) -> None:
        """Make calls until none waits."""
        while (call := self._next()) is not None:
            call.make(self._sender, self._is_away)
            with self._changed:
                self._is_away |= any(map(_is_away, call.errors))
                self._ended.append(call)
                self._changed.notify()

    def _next(self) -> "_Call | None":
        with self._changed:
            with suppress(IndexError):
                return self._waiting.popleft()
            self._open -= 1
            self._changed.notify()
            return None


class _Call:
    """The messages of a call, and how it ended."""

    def __init__(
        self, to: Queue, messages: Sequence[Outgoing], most_bytes: int, on_end: OnEnd
    ) -> None:
        self._to = to
        self._messages = messages
        self._most_bytes = most_bytes
        self._on_end = on_end
        self._may_have_been_sent = False
        self._raised: BaseException | None = None
        self.errors: Errors = []

    def make(self, sender: Sender, is_away: bool) -> None:
        """Send the messages, unless SQS is away."""
        if is_away:
            self.errors = [NotTried(NotTried.__name__)] * len(self._messages)
            return
        try:
            self.errors, self._may_have_been_sent = sender.send_many(
                self._to, self._messages, self._most_bytes
            )
        except BaseException as exc:
            # Broad on purpose: it is raised again on the thread that waits for it.
            self._raised = exc

    def tell(self) -> None:
        """Call `on_end`, or raise what the call has raised."""
        if self._raised is not None:
            raise self._raised
        self._on_end(self.errors, self._may_have_been_sent)


def _is_away(error: SqsError | None) -> bool:
    """Whether SQS could not be reached within the time of a call."""
    if error is None or error.has_reached:
        return False
    return error.is_temporary or error.has_no_credentials
