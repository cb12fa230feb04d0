"""A driver that reports each of its calls."""

from collections.abc import Callable
from time import monotonic
from typing import Any

from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.requests import Answer, Request, name_of

#: Gets the action, the name of the queue, the seconds, and the code of the error. Must not raise.
OnCalled = Callable[[str, str, float, str | None], None]


class Watched:
    """A `Driver` that sends with another one, and calls `on_called` after each call, also after one
    that failed. All tries of the other driver are one call."""

    def __init__(
        self, driver: Driver, on_called: OnCalled, clock: Callable[[], float] = monotonic
    ) -> None:
        self._driver = driver
        self._on_called = on_called
        self._clock = clock

    def open(self) -> None:
        self._driver.open()

    def carry(self, request: Request[Any]) -> Answer:
        began = self._clock()
        error: str | None = None
        try:
            return self._driver.carry(request)
        except Exception as exc:
            error = SqsError.of(exc).code
            raise
        finally:
            queue = name_of(str(request.parameters.get("QueueUrl", "")))
            self._on_called(request.action, queue, self._clock() - began, error)

    def pause(self, seconds: float) -> None:
        self._driver.pause(seconds)

    def close(self) -> None:
        self._driver.close()
