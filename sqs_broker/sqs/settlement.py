"""What SQS has to hear of one delivery, and the calls that report it. No threads, no second try:
whoever calls `tell` has these.

    errors = Reporter(options, driver).tell(settlements)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from time import monotonic

from sqs_broker.options import Options
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import longest_delay
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed, Released, Retry
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import LEASE_OVER, Errors, SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import tens

#: A place in the settlements that are given.
Place = int


@dataclass(frozen=True)
class Settlement:
    """One message, its outcome, and until when that can be reported."""

    message: Facts
    outcome: Outcome
    expires_at: float
    """When its lease ends, in monotonic seconds."""
    not_before: float = 0.0
    """When it is to be reported, in monotonic seconds."""

    def visibility(self, now: float) -> int:
        """Seconds after which SQS delivers the message again, within what is left of SQS's 12 hours
        from the receive."""
        if not isinstance(self.outcome, Retry | Released):
            return 0
        return max(0, min(self.outcome.delay, longest_delay(self.message.delivery, now)))


class Reporter:
    """Reports outcomes to SQS: from any thread, and from several at a time."""

    def __init__(
        self, options: Options, driver: Driver, clock: Callable[[], float] = monotonic
    ) -> None:
        self._options = options
        self._driver = driver
        self._clock = clock
        self.copies = Copies(options, driver)

    def tell(self, settlements: Sequence[Settlement]) -> Errors:
        """Send the copies that must be sent first, then delete or change visibility, ten a call.

        Gives what failed, by place; None for what SQS has. Nothing is reported of a delivery whose
        copy was not sent, nor of one whose lease is over by then, which has the code LEASE_OVER:
        its message may be another worker's.
        """
        errors: Errors = [self._prepare(settlement) for settlement in settlements]
        for name, places in _by_queue(settlements, errors):
            queue = Queue(self._options.queue(name).url, self._driver)
            for outcomes, report in (
                (Done | DeadLetter | Postponed, self._delete),
                (Retry | Released, self._change_visibility),
            ):
                meant = [p for p in places if isinstance(settlements[p].outcome, outcomes)]
                for some in tens(meant):
                    self._report(queue, report, settlements, some, errors)
        return errors

    def _prepare(self, settlement: Settlement) -> SqsError | None:
        """Send what must be sent before the message may be deleted."""
        if not self._has_lease(settlement):
            return SqsError(LEASE_OVER)
        message, outcome = settlement.message, settlement.outcome
        if isinstance(outcome, DeadLetter | Postponed):
            try:
                self.copies.send(message, outcome)
            except Exception as exc:
                # Broad on purpose: a fault of one message is reported for that message alone.
                return SqsError.of(exc)
        return None

    def _report(
        self,
        queue: Queue,
        report: Callable[[Queue, Sequence[Settlement]], Errors],
        settlements: Sequence[Settlement],
        places: Sequence[Place],
        errors: Errors,
    ) -> None:
        # Asked again: each call before this one took its time.
        held = [place for place in places if self._has_lease(settlements[place])]
        for place in set(places) - set(held):
            errors[place] = SqsError(LEASE_OVER)
        if held:
            found = report(queue, [settlements[place] for place in held])
            for place, error in zip(held, found, strict=True):
                errors[place] = error

    def _delete(self, queue: Queue, settlements: Sequence[Settlement]) -> Errors:
        return queue.delete([s.message.delivery.receipt_handle for s in settlements])

    def _change_visibility(self, queue: Queue, settlements: Sequence[Settlement]) -> Errors:
        now = self._clock()
        return queue.change_visibility(
            [(s.message.delivery.receipt_handle, s.visibility(now)) for s in settlements]
        )

    def _has_lease(self, settlement: Settlement) -> bool:
        return settlement.expires_at > self._clock()


def _by_queue(
    settlements: Sequence[Settlement], errors: Errors
) -> Iterator[tuple[str, list[Place]]]:
    """The places of those without an error, by the name of their queue: a call is for one."""

    def queue_at(place: Place) -> str:
        return settlements[place].message.delivery.queue

    ready = [place for place, error in enumerate(errors) if error is None]
    for name, places in groupby(sorted(ready, key=queue_at), queue_at):
        yield name, list(places)
