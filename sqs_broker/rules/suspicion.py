"""A failure that an outage may have caused, until it is known whether one did.

The broker does not know which services a task needs, and one error proves nothing. So it hands such
a failure to the application and keeps its lease until the application confirms or dismisses it,
from any thread. If the application has no such check, the failure is an ordinary one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqs_broker.rules.outcomes import Happened, Interrupted, RetryAsked

#: The reason on a dead letter whose message did not cause the failures.
UNREACHABLE = "a service that the task needs was unreachable in the last attempt"


@dataclass(frozen=True)
class Suspicion:
    """One failed run, which is confirmed or dismissed once."""

    error: str
    """Class of the exception."""
    started_at: float
    """When the run started, in monotonic seconds."""
    retry_after: int
    """Seconds after which the task asked to run again, with or without an outage."""
    otherwise: Happened
    """What happened if there was no outage."""
    conclude: Callable[[Happened], None]
    """Ends the delivery."""
    is_blameless: bool = False
    """Whether the message cannot have caused the failure, with or without an outage."""

    def confirm(self, release_after: int) -> None:
        """An outage caused the failure, so it does not count. The message is released: after
        `release_after` seconds or later, whatever its number of deliveries."""
        self.conclude(Interrupted(self.error, max(release_after, self.retry_after)))

    def dismiss(self) -> None:
        """No outage caused the failure, so it is an ordinary one; if the message cannot have caused
        it, the message has as many attempts as SQS allows deliveries."""
        if self.is_blameless:
            self.conclude(RetryAsked(self.retry_after, self.error, UNREACHABLE))
        else:
            self.conclude(self.otherwise)
