"""A failure that an outage may have caused: somebody who can find out says whether it has.

The broker does not know what a task depends on, and one error proves nothing. So such a failure is
held, with its lease, until a verdict, given from any thread. Without anybody who finds out, it is
what it is without an outage.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqs_broker.rules.outcomes import Happened, Interrupted, RetryAsked

#: The reason on a dead letter that nobody is to blame for.
UNREACHABLE = "what the task depends on could not be reached in any delivery that SQS allows"


@dataclass(frozen=True)
class Suspicion:
    """One failed run, which gets one verdict."""

    error: str
    """Class of the exception."""
    started_at: float
    """When the run started, in monotonic seconds."""
    retry_after: int
    """Seconds after which the task wants to run again, outage or not."""
    otherwise: Happened
    """What happened if it was no outage."""
    conclude: Callable[[Happened], None]
    """Ends the delivery."""
    is_blameless: bool = False
    """Whether no message can be blamed for it, outage or not."""

    def confirm(self, release_after: int) -> None:
        """An outage has caused it: the message is released, in `release_after` seconds or later,
        whatever its number of deliveries, and the failure counts for nothing."""
        self.conclude(Interrupted(self.error, max(release_after, self.retry_after)))

    def dismiss(self) -> None:
        """No outage has caused it: it is a failure as any other, unless nobody can be blamed."""
        if self.is_blameless:
            self.conclude(RetryAsked(self.retry_after, self.error, UNREACHABLE))
        else:
            self.conclude(self.otherwise)
