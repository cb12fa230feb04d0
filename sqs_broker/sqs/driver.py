"""Drivers send requests to SQS: the one that uses boto3, or the one that the options name."""

from typing import Any, Protocol

from sqs_broker.sqs.requests import Answer, Request

#: Seconds to connect, and to wait for the answer to a call that is no long poll.
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 10

#: How often a call is tried if it fails for a temporary reason.
TRIES = 3


class Driver(Protocol):
    """Sends requests to SQS, and waits for their answers. Thread-safe."""

    def open(self) -> None:
        """Prepare what the first request would otherwise prepare. Raises ConfigurationError if a
        setting makes that impossible, and SqsError."""

    def carry(self, request: Request[Any]) -> Answer:
        """Send a request to SQS. Raises SqsError if SQS refuses it; Unreached, or any other
        exception, if it is not known whether SQS did it."""

    def pause(self, seconds: float) -> None:
        """Wait before a second try."""

    def close(self) -> None:
        """Close the connections. The next request may open new ones."""
