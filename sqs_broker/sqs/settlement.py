"""Settlements, and the calls that report them to SQS. The caller of `tell` has the threads and the
retries.

    errors = Reporter(options, driver).tell(settlements)
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from sqs_broker.options import Options
from sqs_broker.rules.attempts import AttemptStore, Record, Run
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import longest_delay
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed, Released, Retry
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import LEASE_OVER, Errors, SqsError
from sqs_broker.sqs.in_flight import InFlight
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import tens

#: The position of a settlement among the given ones.
Place = int

#: The outcomes that make a message visible again, those that need a copy first, and those that
#: delete the message. `Retry | Released` would be made again for each message.
VISIBLE, COPIED, DELETED = (Retry, Released), (DeadLetter, Postponed), (Done, DeadLetter, Postponed)


class Settlement(NamedTuple):
    """One message, its outcome, and the time until which it can be reported."""

    message: Facts
    outcome: Outcome
    expires_at: float
    """When its lease ends, in monotonic seconds."""
    not_before: float = 0.0
    """The earliest time of the report, in monotonic seconds."""

    def visibility(self, now: float) -> int:
        """Seconds until SQS delivers the message again, within SQS's limit of 12 hours after the
        receive."""
        if not isinstance(self.outcome, (Retry, Released)):
            return 0
        return max(0, min(self.outcome.delay, longest_delay(self.message.delivery, now)))

    @property
    def has_failed(self) -> bool:
        """Whether a run failed, and the message comes again."""
        return isinstance(self.outcome, Retry) or (
            isinstance(self.outcome, Postponed) and self.outcome.error is not None
        )

    @property
    def record(self) -> Record | None:
        """What to record before the report; None if nothing."""
        if type(self.outcome) is Done:
            return None
        count = self.message.delivery.count
        this = frozenset({count})
        if self.has_failed and isinstance(self.outcome, Retry | Postponed):
            run = Run(count, datetime.now(UTC), self.outcome.error or "")
            return Record(failed=this, runs=(run,), id=self.message.id)
        return Record(released=this) if isinstance(self.outcome, Released) else None


class Reporter:
    """Reports outcomes to SQS. Thread-safe.

    `attempts` records the runs that failed. Without it, nothing is recorded. `in_flight` is asked
    to look at a queue whose messages are retried.
    """

    def __init__(
        self,
        options: Options,
        driver: Driver,
        clock: Callable[[], float] = monotonic,
        *,
        attempts: AttemptStore | None = None,
        in_flight: InFlight | None = None,
    ) -> None:
        self._options = options
        self._driver = driver
        self._clock = clock
        self._attempts = attempts
        self._in_flight = in_flight
        self.copies = Copies(options, driver)

    def tell(self, settlements: Sequence[Settlement]) -> Errors:
        """First record failed runs and releases, and send the copies that are needed. Then delete
        or change visibility, ten per call.

        Returns the error of each settlement in the given order; None if it was reported. Nothing is
        reported if the copy was not sent, or if the lease is over by then. The error of the latter
        has the code LEASE_OVER: another worker may have the message.
        """
        self._record(settlements)
        errors = self._prepare(settlements)
        for name, places in _by_queue(settlements, errors):
            queue = Queue(self._options.queue(name).url, self._driver)
            if self._in_flight and any(settlements[place].has_failed for place in places):
                self._in_flight.look(name, queue)
            for outcomes, report in (
                (DELETED, self._delete),
                (VISIBLE, self._change_visibility),
            ):
                selected = [p for p in places if isinstance(settlements[p].outcome, outcomes)]
                for some in tens(selected):
                    self._report(queue, report, settlements, some, errors)
        return errors

    def _record(self, settlements: Sequence[Settlement]) -> None:
        """Record before SQS can deliver the messages again. One write for all of them."""
        if self._attempts is None:
            return
        changes: dict[str, Record] = {}
        for settlement in settlements:
            if (record := settlement.record) is not None and self._has_lease(settlement):
                id_ = settlement.message.delivery.message_id
                changes[id_] = changes.get(id_, Record()) | record
        if changes:
            self._attempts.add(changes)

    def _prepare(self, settlements: Sequence[Settlement]) -> Errors:
        """Send the copies that must exist before their messages may be deleted."""
        now = self._clock()
        errors: Errors = [
            None if settlement.expires_at > now else SqsError(LEASE_OVER)
            for settlement in settlements
        ]
        wanted = {
            place: (settlement.message, settlement.outcome)
            for place, settlement in enumerate(settlements)
            if isinstance(settlement.outcome, COPIED) and errors[place] is None
        }
        if wanted:
            places = list(wanted)
            found = self.copies.send_many(
                [*wanted.values()], lambda n: self._has_lease(settlements[places[n]])
            )
            for place, error in zip(places, found, strict=True):
                errors[place] = error
        return errors

    def _report(
        self,
        queue: Queue,
        report: Callable[[Queue, Sequence[Settlement]], Errors],
        settlements: Sequence[Settlement],
        places: Sequence[Place],
        errors: Errors,
    ) -> None:
        # Check again, because each call before this one took some time.
        now = self._clock()
        held = [place for place in places if settlements[place].expires_at > now]
        if len(held) < len(places):
            for place in {*places} - {*held}:
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
) -> Sequence[tuple[str, list[Place]]]:
    """The positions of those without an error, by queue, because a call is for one queue."""
    places: dict[str, list[Place]] = defaultdict(list)
    for place, error in enumerate(errors):
        if error is None:
            places[settlements[place].message.delivery.queue].append(place)
    return sorted(places.items())
