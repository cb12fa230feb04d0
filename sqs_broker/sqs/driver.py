"""Drivers send requests to SQS: with libcurl, with boto3, or the one that the options name."""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol, TypeVar

from sqs_broker.errors import ConfigurationError
from sqs_broker.machine.seldom import Seldom
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.requests import Answer, Request

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds to connect, and to wait for the answer to a call that is no long poll.
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 10

#: How often a call is tried if it fails for a temporary reason.
TRIES = 3

#: Seconds for a whole call that is no long poll: all tries, and the search for credentials.
SECONDS = 20


class Driver(Protocol):
    """Sends requests to SQS, and waits for their answers. Thread-safe.

    Each call has a total deadline, also if the answer comes one byte at a time: the `seconds` of
    the request, or else the `seconds` of the driver (see `driver_for`) and the `wait` of the
    request.
    """

    def open(self) -> None:
        """Prepare what the first request would otherwise prepare. Raises ConfigurationError if a
        setting makes that impossible, and SqsError. It has the deadline of a call."""

    def carry(self, request: Request[Any]) -> Answer:
        """Send a request to SQS. Raises SqsError if SQS refuses it; Unreached, or any other
        exception, if it is not known whether SQS did it. For a request with `seconds`, it raises no
        other exception of its own except ConfigurationError: any other one is the caller's, such as
        one that a signal handler raises.

        At the deadline the driver ends the call or leaves it, and raises Unreached with the code
        OVERDUE. If the answer to a call that it has left still arrives, `request.on_late` gets it.
        """

    def pause(self, seconds: float) -> None:
        """Wait before a second try."""

    def close(self) -> None:
        """Close the connections. The next request may open new ones."""


def with_known_errors(call: Callable[[], T]) -> T:
    """Make a call of a driver's library. Raises SqsError and ConfigurationError only: any other
    exception becomes Unreached."""
    try:
        return call()
    except (SqsError, ConfigurationError):
        raise
    except Exception as exc:
        # Broad on purpose: a library does not catch each exception of those that it uses.
        raise SqsError.of(exc) from exc


def log_overdue(seldom: Seldom, action: str, seconds: float) -> None:
    """Log that a call was given up at its deadline; once a minute for each action."""
    if seldom.allows(action, monotonic()):
        logger.warning(
            "A call to SQS (%s) had no whole answer after %g s; it is given up.",
            action,
            seconds,
            extra={"event": "sqs.overdue", "reason": action, "seconds": seconds},
        )
