"""One queue of SQS. Each method makes one call, or as many calls as its messages need.

queue = Queue(url, driver)
for message in queue.receive(10, wait=20):
    ...
errors = queue.delete(receipt_handles)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from sqs_broker.limits import MOST_BYTES
from sqs_broker.rules.backoff import full_jitter
from sqs_broker.sqs import requests
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import Errors, SqsError, later
from sqs_broker.sqs.requests import Attributes, Outgoing, Received, Request
from sqs_broker.sqs.trials import trial

T = TypeVar("T")

#: The attributes with the numbers of messages, none of which is exact.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
VISIBLE = "ApproximateNumberOfMessages"
NOT_VISIBLE = "ApproximateNumberOfMessagesNotVisible"
DELAYED = "ApproximateNumberOfMessagesDelayed"

#: How often an entry of a batch is sent if SQS fails it for an internal reason.
TRIES = 5

#: Longest pause before the second try, in seconds. It doubles with each further try.
FIRST_PAUSE = 0.4


class Queue:
    """A queue by its URL. Methods for one message raise what the driver raises. Methods for many
    messages never raise; they return the error of each, in the given order."""

    __slots__ = ("_driver", "url")

    def __init__(self, url: str, driver: Driver) -> None:
        self.url = url
        self._driver = driver

    def ask(self, request: Request[T]) -> T:
        """Make one call. Also raises KeyError or ValueError, if the answer is not one of SQS."""
        return request.read(self._driver.carry(request))

    def receive(
        self,
        most: int,
        wait: int,
        *,
        visibility: int | None = None,
        system: Sequence[str] = requests.COUNT_AND_TIME,
        on_late: Callable[[list[Received]], None] | None = None,
    ) -> list[Received]:
        """Receive up to `most` messages (at most ten) within `wait` seconds. SQS hides them for
        `visibility` seconds; without it, for the visibility timeout of the queue.

        `on_late` is called, on another thread, with messages that arrive after the deadline of the
        call."""
        return self.ask(
            requests.receive(
                self.url, most, wait, visibility=visibility, system=system, on_late=on_late
            )
        )

    def send(self, message: Outgoing) -> None:
        """Send one message."""
        self.ask(requests.send(self.url, message))

    def send_many(self, messages: Sequence[Outgoing], most_bytes: int = MOST_BYTES) -> Errors:
        """Send messages with as few calls as possible, each of at most `most_bytes`. If SQS fails
        an entry for an internal reason, it is sent again, a few times, after a pause."""
        errors: Errors = []
        for pack in requests.packed(messages, most_bytes):
            errors += self._send_pack(pack)
        return errors

    def send_once(self, messages: Sequence[Outgoing]) -> Errors:
        """Send messages that fit into one call, at most ten, and try none of them again. One
        message alone is sent by SendMessage."""
        if len(messages) > 1:
            return self._each(partial(requests.send_many, self.url), messages)
        try:
            self.send(messages[0])
        except Exception as exc:
            # Broad on purpose, as in `_each`.
            return [SqsError.of(exc)]
        return [None]

    def send_batch(self, messages: Sequence[Outgoing]) -> Errors:
        """Send messages that fit into one call, at most ten, as one batch. Unlike the other methods
        for many messages, this one raises what the driver raises."""
        return self.ask(requests.send_many(self.url, messages))

    def delete(self, receipt_handles: Sequence[str], tries: int = 1) -> Errors:
        """Delete messages, ten per call. If a delete fails, it is tried again at once, `tries`
        times in total."""
        delete = partial(requests.delete_many, self.url)
        errors: Errors = []
        for ten in requests.tens(receipt_handles):
            errors += self._each(delete, ten)
        for _ in range(1, tries):
            left = [place for place, error in enumerate(errors) if error is not None]
            for places in requests.tens(left):
                self._again(delete, receipt_handles, errors, places)
        return errors

    def change_visibility(self, changes: Sequence[tuple[str, int]]) -> Errors:
        """Make messages visible after the given seconds from now, ten per call. Each change is a
        receipt handle and the seconds."""
        change = partial(requests.change_many, self.url)
        errors: Errors = []
        for ten in requests.tens(changes):
            errors += self._each(change, ten)
        return errors

    def attributes(self, *names: str) -> Attributes:
        """The attributes of these names. Those that the server does not know are left out."""
        return self.ask(requests.attributes(self.url, *names))

    def tags(self) -> Mapping[str, str]:
        """The tags of the queue."""
        return self.ask(requests.tags(self.url))

    def size(self) -> int:
        """About how many messages there are: visible, in flight and delayed."""
        return sum(map(int, self.attributes(VISIBLE, NOT_VISIBLE, DELAYED).values.values()))

    def purge(self) -> None:
        """Delete all messages."""
        self.ask(requests.purge(self.url))

    def create(self, attributes: Mapping[str, str]) -> None:
        """Create the queue, with the name that is in its URL."""
        self.ask(requests.create(self.url, attributes))

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Change these attributes; the others stay."""
        self.ask(requests.set_attributes(self.url, attributes))

    def try_action(self, action: str) -> None:
        """Make a call without effect, which raises `SqsError.is_denied` if the credentials do not
        allow the action, and `SqsError.is_refusal` if they do."""
        self.ask(trial(self.url, action))

    def _send_pack(self, pack: Sequence[Outgoing]) -> Errors:
        send = partial(requests.send_many, self.url)
        errors = self._each(send, pack)
        for attempt in range(1, TRIES):
            left = [n for n, error in enumerate(errors) if error and error.is_worth_another_try]
            if not left:
                break
            self._driver.pause(full_jitter(FIRST_PAUSE, attempt))
            self._again(send, pack, errors, left)
        return errors

    def _each(self, call: Callable[[Sequence[T]], Request[Errors]], some: Sequence[T]) -> Errors:
        """The error of each entry. If the call fails, that is the error of all of them."""
        try:
            return self.ask(call(some))
        except Exception as exc:
            # Broad on purpose: a driver may raise an unexpected exception of its library, but each
            # entry needs a result.
            return [SqsError.of(exc)] * len(some)

    def _again(
        self,
        call: Callable[[Sequence[T]], Request[Errors]],
        given: Sequence[T],
        errors: Errors,
        places: Sequence[int],
    ) -> None:
        """Try the entries at these positions once more. What is not tried keeps its error."""
        again = self._each(call, [given[place] for place in places])
        for place, error in zip(places, again, strict=True):
            errors[place] = later(errors[place], error)
