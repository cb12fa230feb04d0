"""Several calls that send messages at the same time."""

from collections import deque
from collections.abc import Callable, Sequence

from sqs_broker.sqs.errors import Errors, NotTried, SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.sqs.sender import Call, Sender

#: Calls at the same time.
CALLS = 4

#: Called with the error of each message of a call, in the given order, and whether SQS may have
#: those with an error nevertheless.
OnEnd = Callable[[Errors, bool], None]


class Flight:
    """Sends messages, with some calls at the same time. For one thread.

    If SQS cannot be reached within the time of a call, the calls that have not begun are not made:
    each would take as long again.
    """

    def __init__(self, sender: Sender, calls: int = CALLS) -> None:
        self._sender = sender
        self._most = calls
        self._calls: deque[tuple[Call[Errors], int, OnEnd]] = deque()
        self._is_away = False

    def send(self, to: Queue, messages: Sequence[Outgoing], most_bytes: int, on_end: OnEnd) -> None:
        """Begin a call with messages that fit into one. Waits if there are enough already. `on_end`
        is called on this thread, in the order of the calls, later or in `finish`."""
        while len(self._calls) >= self._most:
            self._end_first()
        if self._is_away:
            on_end([NotTried(NotTried.__name__)] * len(messages), False)
        else:
            call = self._sender.begin(to, messages, most_bytes)
            self._calls.append((call, len(messages), on_end))

    def finish(self) -> None:
        """Wait for the end of all calls."""
        while self._calls:
            self._end_first()

    def _end_first(self) -> None:
        call, count, on_end = self._calls.popleft()
        try:
            errors = call.result()
        except SqsError as exc:
            self._is_away |= not exc.has_reached and (exc.is_temporary or exc.has_no_credentials)
            errors = [exc] * count
        on_end(errors, call.may_have_been_done)
