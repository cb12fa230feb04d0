"""What brings a request to SQS: boto3, or what the options name in its place."""

from collections.abc import Callable
from typing import Any, Protocol

from sqs_broker.options import Options
from sqs_broker.sqs.requests import Answer, Request

#: Seconds to connect, and to wait for an answer to a call that SQS answers at once.
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 10

#: Times a call is made that fails for a reason that may pass.
TRIES = 3


class Driver(Protocol):
    """Brings requests to SQS, and waits for their answers. Thread-safe."""

    def open(self) -> None:
        """Make ready what the first request would. Raises ValueError where that cannot be."""

    def carry(self, request: Request[Any]) -> Answer:
        """Bring a request to SQS. Raises SqsError; and Unreached, or an exception of another kind,
        where nobody knows what became of it."""

    def pause(self, seconds: float) -> None:
        """Wait before a second try."""

    def close(self) -> None:
        """Give up what is open. It may be opened again by the next request."""


def driver_for(
    options: Options,
    *,
    read_timeout: float = READ_TIMEOUT,
    tries: int = TRIES,
    is_checked: bool = False,
) -> Driver:
    """The driver that the options name; without one, boto3's (sqs_broker/sqs/boto.py), which alone
    loads boto3.

    A call of it fails within `read_timeout` seconds a try. `is_checked`: its parameters are checked
    here too, and not by SQS alone.
    """
    make: Callable[..., Driver] | None = options.driver
    if make is None:
        from sqs_broker.sqs.boto import Boto

        make = Boto
    return make(options, read_timeout=read_timeout, tries=tries, is_checked=is_checked)
