"""Several calls that send messages at the same time."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

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
    """Sends messages, with some calls at the same time. For one thread.

    If SQS cannot be reached within the time of a call, the calls that have not begun are not made:
    each would take as long again.
    """

    def __init__(self, sender: Sender, calls: int = CALLS) -> None:
        self._sender = sender
        self._most = calls
        self._threads = Calls()
        #: For each call that has begun, what waits for its end.
        self._calls: deque[tuple[Callable[[], tuple[Errors, bool]], OnEnd]] = deque()
        self._is_away = False

    def send(self, to: Queue, messages: Sequence[Outgoing], most_bytes: int, on_end: OnEnd) -> None:
        """Begin a call with messages that fit into one. Waits if there are enough already. `on_end`
        is called on this thread, in the order of the calls, later or in `finish`."""
        while len(self._calls) >= self._most:
            self._end_first()
        if self._is_away:
            on_end([NotTried(NotTried.__name__)] * len(messages), False)
        else:
            call = partial(self._sender.send_many, to, messages, most_bytes)
            self._calls.append((self._threads.begin(call), on_end))

    def finish(self) -> None:
        """Wait for the end of all calls."""
        while self._calls:
            self._end_first()

    def _end_first(self) -> None:
        wait, on_end = self._calls.popleft()
        errors, may_have_been_sent = wait()
        self._is_away |= any(map(_is_away, errors))
        on_end(errors, may_have_been_sent)


def _is_away(error: SqsError | None) -> bool:
    """Whether SQS could not be reached within the time of a call."""
    if error is None or error.has_reached:
        return False
    return error.is_temporary or error.has_no_credentials
