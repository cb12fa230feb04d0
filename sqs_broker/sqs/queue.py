"""One queue of SQS, as a thread uses it: each method is a call, or as many as it takes.

queue = Queue(url, driver)
for message in queue.receive(10, wait=20):
    ...
errors = queue.delete(receipt_handles)
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqs_broker.limits import MOST_BYTES
from sqs_broker.rules.backoff import full_jitter
from sqs_broker.sqs import requests
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import Errors, SqsError
from sqs_broker.sqs.requests import Attributes, Outgoing, Received, Request

T = TypeVar("T")

#: Times an entry of a batch is sent that SQS failed for a reason of its own.
TRIES = 5

#: Longest pause before the second try, in seconds; each later one doubles it.
FIRST_PAUSE = 0.4


class Queue:
    """A queue by its URL. Methods on one message raise what the driver raises; those on many never
    raise, and give what became of each, by its place in what was given."""

    __slots__ = ("_driver", "url")

    def __init__(self, url: str, driver: Driver) -> None:
        self.url = url
        self._driver = driver

    def ask(self, request: Request[T]) -> T:
        """Make one call. Raises KeyError and ValueError too, where the answer is not SQS's."""
        return request.read(self._driver.carry(request))

    def receive(
        self,
        most: int,
        wait: int,
        *,
        visibility: int | None = None,
        system: Sequence[str] = requests.COUNT_AND_TIME,
    ) -> list[Received]:
        """Receive up to `most` messages, ten at the most, within `wait` seconds. They are hidden
        for `visibility` seconds, or for as long as the queue says."""
        return self.ask(
            requests.receive(self.url, most, wait, visibility=visibility, system=system)
        )

    def send(self, message: Outgoing) -> None:
        """Send one message."""
        self.ask(requests.send(self.url, message))

    def send_many(self, messages: Sequence[Outgoing], most_bytes: int = MOST_BYTES) -> Errors:
        """Send messages, with as few calls as `most_bytes` of one call allow. An entry that SQS
        fails for a reason of its own is sent again, a few times, after a pause."""
        errors: Errors = []
        for pack in requests.packed(messages, most_bytes):
            errors += self._send_pack(pack)
        return errors

    def delete(self, receipt_handles: Sequence[str], tries: int = 1) -> Errors:
        """Delete messages, ten a call. What fails is tried `tries` times in all, at once."""

        def delete(some: Sequence[str]) -> Request[Errors]:
            return requests.delete_many(self.url, some)

        errors: Errors = []
        for ten in requests.tens(receipt_handles):
            errors += self._each(delete, ten)
        for _ in range(1, tries):
            left = [place for place, error in enumerate(errors) if error is not None]
            for places in requests.tens(left):
                self._again(delete, receipt_handles, errors, places)
        return errors

    def change_visibility(self, changes: Sequence[tuple[str, int]]) -> Errors:
        """Let messages be visible in so many seconds from now, ten a call: receipt handle and
        seconds of each."""

        def change(some: Sequence[tuple[str, int]]) -> Request[Errors]:
            return requests.change_many(self.url, some)

        errors: Errors = []
        for ten in requests.tens(changes):
            errors += self._each(change, ten)
        return errors

    def attributes(self, *names: str) -> Attributes:
        """Attributes of the queue; of those that the server does not know, none."""
        return self.ask(requests.attributes(self.url, *names))

    def purge(self) -> None:
        """Delete all messages."""
        self.ask(requests.purge(self.url))

    def _send_pack(self, pack: Sequence[Outgoing]) -> Errors:
        def send(some: Sequence[Outgoing]) -> Request[Errors]:
            return requests.send_many(self.url, some)

        errors = self._each(send, pack)
        for attempt in range(1, TRIES):
            left = [n for n, error in enumerate(errors) if error and error.is_worth_another_try]
            if not left:
                break
            self._driver.pause(full_jitter(FIRST_PAUSE, attempt))
            self._again(send, pack, errors, left)
        return errors

    def _each(self, call: Callable[[Sequence[T]], Request[Errors]], some: Sequence[T]) -> Errors:
        """What became of each: where the call fails, all of them did."""
        try:
            return self.ask(call(some))
        except Exception as exc:
            # Broad on purpose: a driver may let through what its library has not foreseen, and
            # each entry is accounted for.
            return [SqsError.of(exc)] * len(some)

    def _again(
        self,
        call: Callable[[Sequence[T]], Request[Errors]],
        given: Sequence[T],
        errors: Errors,
        places: Sequence[int],
    ) -> None:
        """Try the entries at these places once more."""
        again = self._each(call, [given[place] for place in places])
        for place, error in zip(places, again, strict=True):
            errors[place] = error
