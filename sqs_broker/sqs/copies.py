"""Sends the copy that must exist before a message may be deleted: to the dead-letter queue, or to
its own queue again, if the message is not due or SQS allows it few further deliveries.

The copy can succeed and the delete fail. So a worker remembers the messages whose copies it has
sent. It deletes the next delivery of such a message, without a second run or a second copy.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from sqs_broker.limits import LONGEST_DELAY
from sqs_broker.options import Options
from sqs_broker.rules import dead_letter
from sqs_broker.rules.attempts import NOTHING, Carried, with_carried
from sqs_broker.rules.attributes import ATTEMPTS, Attributes
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter, Postponed
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import LEASE_OVER, Errors, SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing, packed

#: The code of the error if the copy of another delivery of the same message was not sent.
NOT_SENT = "NotSent"

#: The position of a copy among the given ones.
Place = int

#: Messages that are remembered: many more than can wait for their delete.
MOST_REMEMBERED = 1_000


class Copies:
    """Sends each copy once. Thread-safe."""

    def __init__(self, options: Options, driver: Driver) -> None:
        self._options = options
        self._driver = driver
        self._lock = threading.Lock()
        self._sent: dict[str, None] = {}

    def are_sent(self, delivery: Delivery) -> bool:
        """Whether the copy of this message was sent, in this delivery or in an earlier one.

        It compares SQS's MessageId. A copy has another one, and so has a redriven dead letter.
        """
        return delivery.message_id in self._sent

    def send_many(
        self,
        wanted: Sequence[tuple[Facts, DeadLetter | Postponed]],
        is_held: Callable[[Place], bool] = lambda _: True,
    ) -> Errors:
        """Send the copies that were not sent before, with as few calls as possible. Returns the
        error of each. Never raises.

        `is_held` says whether the message at a place of `wanted` still has its lease. It is asked
        before each call, because each call takes some time. A copy whose message has none is not
        sent: its error is LEASE_OVER.
        """
        errors: Errors = [None] * len(wanted)
        copies: dict[str, dict[Place, Outgoing]] = {}
        seen: set[str] = set()
        for place, (message, outcome) in enumerate(wanted):
            id_ = message.delivery.message_id
            # A second delivery of a message needs no second copy.
            if not self.are_sent(message.delivery) and id_ not in seen:
                seen.add(id_)
                try:
                    url, copy = self._copy(message, outcome)
                except Exception as exc:
                    # Broad on purpose: an error of one message must not affect the others.
                    errors[place] = SqsError.of(exc)
                else:
                    copies.setdefault(url, {})[place] = copy
        sent: set[str] = set()
        for url, some in copies.items():
            for place, error in self._send_to(url, some, is_held):
                errors[place] = error
                if error is None:
                    message = wanted[place][0]
                    sent.add(message.delivery.message_id)
                    self._remember(message)
        return [
            error or (None if self._is_among(message, sent) else SqsError(NOT_SENT))
            for error, (message, _) in zip(errors, wanted, strict=True)
        ]

    def _is_among(self, message: Facts, sent: set[str]) -> bool:
        # Not only those that are remembered: a call may send more.
        return message.delivery.message_id in sent or self.are_sent(message.delivery)

    def _send_to(
        self, url: str, copies: Mapping[Place, Outgoing], is_held: Callable[[Place], bool]
    ) -> Iterator[tuple[Place, SqsError | None]]:
        queue = Queue(url, self._driver)
        left = iter(copies)
        for pack in packed(list(copies.values()), self._options.max_message_bytes):
            places = list(islice(left, len(pack)))
            found = self._send_held(queue, copies, places, is_held)
            # A refused call says nothing about which of its copies SQS does not accept.
            if len(pack) > 1 and all(_is_of_the_call(error) for _, error in found):
                for place in places:
                    yield from self._send_held(queue, copies, [place], is_held)
            else:
                yield from found

    def _send_held(
        self,
        queue: Queue,
        copies: Mapping[Place, Outgoing],
        places: Sequence[Place],
        is_held: Callable[[Place], bool],
    ) -> list[tuple[Place, SqsError | None]]:
        """Send the copies at these places in one call, without those whose lease is over."""
        held = [place for place in places if is_held(place)]
        errors = queue.send_once([copies[place] for place in held]) if held else []
        over = [(place, SqsError(LEASE_OVER)) for place in places if place not in held]
        return [*zip(held, errors, strict=True), *over]

    def _remember(self, message: Facts) -> None:
        with self._lock:
            self._sent[message.delivery.message_id] = None
            if len(self._sent) > MOST_REMEMBERED:
                del self._sent[next(iter(self._sent))]

    def _copy(self, message: Facts, outcome: DeadLetter | Postponed) -> tuple[str, Outgoing]:
        """The URL of the target queue, and the copy."""
        delivery = message.delivery
        address = self._options.queue(delivery.queue)
        limit = self._options.max_message_bytes
        if isinstance(outcome, Postponed):
            own = _postponed(delivery, outcome, limit, time.time())
            delay = min(outcome.delay, LONGEST_DELAY)
            group, header = delivery.fair_group, delivery.trace_header
            return address.url, Outgoing(delivery.body, own, delay, group, trace_header=header)
        attributes = dead_letter.attributes_of(delivery, outcome, message.task, message.id, limit)
        # The dead-letter queue of a FIFO queue is FIFO too.
        id_ = None if delivery.group is None else delivery.message_id
        group = delivery.group or delivery.fair_group
        copy = Outgoing(
            delivery.body,
            attributes,
            group=group,
            deduplication_id=id_,
            trace_header=delivery.trace_header,
        )
        return address.dead_letter_url or "", copy


def _is_of_the_call(error: SqsError | None) -> bool:
    return error is not None and (error.is_refusal or error.is_refusal_of_contents)


def can_carry(delivery: Delivery, limit: int) -> bool:
    """Whether a copy of the message for its own queue can carry the number of attempts."""
    carried = delivery.passed_on(has_failed=True, due=time.time())
    return ATTEMPTS in with_carried(delivery.attributes, carried, delivery.body, limit)


def _postponed(delivery: Delivery, outcome: Postponed, limit: int, now: float) -> Attributes:
    """The attributes of a copy for the message's own queue."""
    if _has_never_been_due(delivery, outcome):
        # No delivery counts. What the message had from the start stays.
        id_ = delivery.carried.id or delivery.message_id
        carried = Carried(id=id_, sent=delivery.first_sent.timestamp())
    else:
        due = now + outcome.delay if outcome.delay > LONGEST_DELAY else delivery.carried.due
        carried = delivery.passed_on(
            has_failed=outcome.error is not None, due=due if due and due > now else None
        )
    return with_carried(delivery.attributes, carried, delivery.body, limit)


def _has_never_been_due(delivery: Delivery, outcome: Postponed) -> bool:
    known = replace(delivery.carried, sent=None, id=None)
    has_failed = delivery.record is not None and bool(delivery.record.failed)
    return not outcome.is_again and known == NOTHING and not has_failed
