"""The outcomes of one invocation, on their way to SQS."""

from collections.abc import Callable

from sqs_broker.function.sandbox import Sandbox
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter, Outcome, Postponed, Released, Retry
from sqs_broker.sqs.errors import Errors, SqsError
from sqs_broker.sqs.settlement import Settlement

#: Seconds after which an outcome is reported before another task starts. If the process is killed,
#: only the outcomes of this time are not reported yet.
LONGEST_LINGER = 1.0

#: Longest pause in seconds before the second try of a report.
SECOND_TRY = 0.2


class Report:
    """Collects outcomes and reports them. Used by one thread at a time."""

    def __init__(
        self, sandbox: Sandbox, ends_at: float, on_failure: Callable[[Delivery], None]
    ) -> None:
        """`ends_at`: when Lambda ends the function, by the clock of the sandbox. `on_failure` is
        called with each message whose outcome SQS did not accept."""
        self._sandbox = sandbox
        self._ends_at = ends_at
        self._on_failure = on_failure
        self._waiting: list[Settlement] = []
        self._sent_at = sandbox.clock()
        self._gone: set[str] = set()

    def add(self, message: Facts, outcome: Outcome) -> None:
        """Add the outcome of a message."""
        # A function must not have a longer timeout than its queue has a visibility timeout, so the
        # lease does not end before the invocation.
        self._waiting.append(Settlement(message, outcome, self._ends_at))

    def is_gone(self, delivery: Delivery) -> bool:
        """Whether a message is deleted, or may be deleted by Lambda."""
        return delivery.message_id in self._gone

    def send_if_due(self) -> None:
        """Report what has waited for LONGEST_LINGER seconds or more."""
        if self._sandbox.clock() - self._sent_at >= LONGEST_LINGER:
            self.send()

    def send(self) -> None:
        """Report all outcomes. Never raises."""
        settlements, self._waiting = self._waiting, []
        if not settlements:
            return
        for settlement, error in zip(settlements, self._tell(settlements), strict=True):
            message, outcome = settlement.message, settlement.outcome
            if error is not None:
                self._on_failure(message.delivery)
            self._sandbox.observers.settled(message, outcome, error.code if error else None)
            if self._need_not_come_again(message.delivery, outcome, error):
                self._gone.add(message.delivery.message_id)
        self._sent_at = self._sandbox.clock()

    def _tell(self, settlements: list[Settlement]) -> Errors:
        """Report outcomes, and try those that failed once more."""
        tell = self._sandbox.reporter.tell
        errors = tell(settlements)
        again = [n for n, error in enumerate(errors) if error and not error.is_final]
        if again and self._ends_at - self._sandbox.clock() > SECOND_TRY:
            if any(error.is_of_credentials for error in errors if error):
                # The next call creates a client, with the credentials of this moment.
                self._sandbox.driver.close()
            self._sandbox.driver.pause(SECOND_TRY)
            for place, error in zip(again, tell([settlements[n] for n in again]), strict=True):
                errors[place] = error
        return errors

    def _need_not_come_again(
        self, delivery: Delivery, outcome: Outcome, error: SqsError | None
    ) -> bool:
        # What is done and could not be deleted is deleted by Lambda.
        if isinstance(outcome, DeadLetter | Postponed):
            return error is None or self._sandbox.reporter.copies.are_sent(delivery)
        return not isinstance(outcome, Retry | Released)
