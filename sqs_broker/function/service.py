"""The service that all tasks of a function need, such as a database, and its outages."""

import math
from collections.abc import Callable
from time import time
from typing import Protocol

from sqs_broker.errors import ConfigurationError, label
from sqs_broker.rules.backoff import half_jitter

#: Longest delay in seconds after the first delivery that met an outage.
FIRST_DELAY = 5


class Service(Protocol):
    """What tasks need to run. A project writes a class with these methods."""

    @property
    def name(self) -> str:
        """For the log, such as `MongoDB`."""

    @property
    def aftermath(self) -> float:
        """Seconds after an outage in which a run may still fail because of it."""

    def open(self) -> None:
        """Connect. Called once, while Lambda starts the sandbox. May raise anything; then the
        service counts as unavailable until `find_error` returns None."""

    def find_error(self) -> str | None:
        """Try what the tasks do. Return the error, without personal data; None if it works. Called
        when a task fails with an exception of its `suspect_on`, and at the beginning of each
        invocation of an outage. Must return within 3 s."""

    def finish(self) -> None:
        """Write what still waits. Called at the end of each invocation, after which Lambda may
        freeze the process. Must return within 1 s. If it raises, that is logged."""


class NoService:
    """The service of tasks that need none."""

    name = "no service"
    aftermath = 0.0

    def open(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def find_error(self) -> str | None:
        """There is never an error."""
        return None


class ServiceAway(Exception):
    """The function fails on purpose: Lambda then runs fewer of it at a time. Nothing is lost: each
    message of the event was deleted, or will be delivered again."""


class Outage:
    """Whether the service is available, as far as this sandbox knows.

    `clock`: seconds of the wall clock, because other clocks may stand still in a frozen sandbox.
    """

    def __init__(self, service: Service, clock: Callable[[], float] = time) -> None:
        self._service = service
        self._clock = clock
        self._began_at: float | None = None
        self._over_at = -math.inf
        self.error: str | None = None
        """Why the service is unavailable; None if it is available."""

    @property
    def is_on(self) -> bool:
        """Whether the service is unavailable."""
        return self.error is not None

    def open(self) -> None:
        """Open the service. If that fails, an outage begins."""
        try:
            self._service.open()
        except Exception as exc:
            # Broad on purpose: whatever is wrong, messages wait for it; they do not fail.
            self._note(_told(exc))

    def check(self) -> bool:
        """Ask the service whether it works, and return whether it does not."""
        try:
            error = self._service.find_error()
        except Exception as exc:
            # Broad on purpose, as above.
            error = _told(exc)
        self._note(error)
        return self.is_on

    def explains(self, started_at: float) -> bool:
        """Whether a run that started at this time may have failed because of an outage that is
        over."""
        return started_at < self._over_at + self._service.aftermath

    def release_after(self, deliveries: int, longest: int) -> int:
        """Seconds until a message is delivered again, with jitter. It grows with the outage and
        with the deliveries of the message, because a new sandbox does not know when the outage
        began."""
        age = 0.0 if self._began_at is None else self._clock() - self._began_at
        doublings = min(max(deliveries - 1, 0), longest.bit_length())
        ceiling = max(age, FIRST_DELAY * 2.0**doublings)
        return math.ceil(half_jitter(min(ceiling, longest), 1))

    def _note(self, error: str | None) -> None:
        now = self._clock()
        if error is not None and self._began_at is None:
            self._began_at = now
        if error is None and self._began_at is not None:
            self._began_at, self._over_at = None, now
        self.error = error


def _told(exc: Exception) -> str:
    """The class of an exception; of an error of the configuration also the text, which says what to
    do."""
    return f"{label(exc)}: {exc.message}" if isinstance(exc, ConfigurationError) else label(exc)
