"""Tells SQS what became of some deliveries. No thread, no second try: whoever calls it has these.

untold = Teller(options, driver).tell(settlements)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from sqs_broker.options import Options
from sqs_broker.rules.outcomes import DeadLetter, Done, Postponed, Released, Retry
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.errors import LEASE_OVER, Errors, SqsError
from sqs_broker.sqs.queue import Driver, Queue
from sqs_broker.sqs.requests import tens
from sqs_broker.sqs.settlement import Settlement, by_queue, told_visibility


@dataclass(frozen=True)
class Untold:
    """What SQS was not told, and why."""

    settlement: Settlement
    error: SqsError


class Teller:
    """Tells SQS; from any thread, and from several at a time."""

    def __init__(
        self, options: Options, driver: Driver, clock: Callable[[], float] = monotonic
    ) -> None:
        self._options = options
        self._driver = driver
        self._clock = clock
        self.copies = Copies(options, driver)

    def tell(self, settlements: Sequence[Settlement]) -> list[Untold]:
        """Send the copies that must be sent first, then delete or change visibility, ten a call.

        Gives what failed. Nothing is told of a delivery whose copy was not sent, or whose lease is
        over by then: its message may be another worker's. That has the code LEASE_OVER.
        """
        untold: list[Untold] = []
        sent = [s for s in settlements if self._has_lease(s, untold) and self._has_copy(s, untold)]
        for name, of_queue in by_queue(sent):
            queue = Queue(self._options.queue(name).url, self._driver)
            for outcomes, tell in (
                (Done | DeadLetter | Postponed, self._delete),
                (Retry | Released, self._change_visibility),
            ):
                for some in tens([s for s in of_queue if isinstance(s.outcome, outcomes)]):
                    # Looked at again: each call before this one took its time.
                    if told := [s for s in some if self._has_lease(s, untold)]:
                        errors = zip(told, tell(queue, told), strict=True)
                        untold += [Untold(s, error) for s, error in errors if error]
        return untold

    def _delete(self, queue: Queue, settlements: Sequence[Settlement]) -> Errors:
        return queue.delete([s.delivery.receipt_handle for s in settlements])

    def _change_visibility(self, queue: Queue, settlements: Sequence[Settlement]) -> Errors:
        now = self._clock()
        return queue.change_visibility(
            [(s.delivery.receipt_handle, told_visibility(s, now)) for s in settlements]
        )

    def _has_lease(self, settlement: Settlement, untold: list[Untold]) -> bool:
        """Whether the lease lasts."""
        lasts = settlement.expires_at > self._clock()
        if not lasts:
            untold.append(Untold(settlement, SqsError(LEASE_OVER)))
        return lasts

    def _has_copy(self, settlement: Settlement, untold: list[Untold]) -> bool:
        """Send what must be sent before the message may be deleted; True where that is done."""
        delivery, outcome = settlement.delivery, settlement.outcome
        if not isinstance(outcome, DeadLetter | Postponed):
            return True
        try:
            self.copies.send(delivery, outcome, settlement.task, settlement.id)
        except Exception as exc:
            # Broad on purpose: whatever went wrong with one message is said of that one.
            untold.append(Untold(settlement, SqsError.of(exc)))
            return False
        return True
