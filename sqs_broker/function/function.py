"""The handler of a Lambda function: what a sandbox keeps between its invocations."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from time import monotonic, time
from typing import Any, Protocol

from sqs_broker.control.planes import attempts_for
from sqs_broker.function.event import read
from sqs_broker.function.invocation import Invocation
from sqs_broker.function.sandbox import Sandbox
from sqs_broker.function.service import NoService, Outage, Service
from sqs_broker.observers.log import MessageLog
from sqs_broker.observers.observer import Observers
from sqs_broker.options import Options
from sqs_broker.rules.attempts import AttemptStore
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.settlement import Reporter
from sqs_broker.sqs.watched import Watched

logger = logging.getLogger(__name__)

#: Seconds for one try of a call to SQS, and the number of tries: a function has little time.
READ_TIMEOUT = 2
TRIES = 2


class Context(Protocol):
    """What is used of the object that Lambda passes with each event."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda ends the function."""


class Function:
    """Handles the events of an SQS trigger with the tasks of a Celery app.

    The instance is the handler: `handler = Function(celery_app, service)`. Creating it reads and
    opens nothing; call `open` while Lambda starts the sandbox, or the first event does. For one
    thread: Lambda passes one event at a time.
    """

    def __init__(
        self,
        celery_app: Any,
        service: Service | None = None,
        *,
        attempts: AttemptStore | None = None,
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
        write: Callable[[str], Any] | None = None,
        end: Callable[[], Any] | None = None,
    ) -> None:
        """`service`: what all tasks need, such as a database; None if nothing. `attempts`: the
        store of failed runs; by default that of the option `control`, which workers use too.
        `write` writes a metric line, by default to stdout. `end` ends this process, if a task
        cannot be stopped."""
        self._app = celery_app
        self._service: Service = service or NoService()
        self._attempts = attempts
        self._clock = clock
        self._wall_clock = wall_clock
        self._write = write or _to_stdout
        self._end = end or _exit
        self._sandbox: Sandbox | None = None

    def open(self) -> None:
        """Import the tasks, create the client of SQS and open the service, unless that was done.

        The app becomes Celery's current app. Raises ConfigurationError if the configuration is
        wrong. If the service cannot be opened, that is an outage, and no error.
        """
        if self._sandbox is not None:
            return
        began_at = self._clock()
        self._app.set_current()
        self._app.loader.import_default_modules()
        self._app.finalize()
        options = Options.read(self._app.conf.broker_transport_options, accepts_fifo=True)
        calls: Counter[str] = Counter()
        driver = Watched(
            driver_for(options, read_timeout=READ_TIMEOUT, tries=TRIES),
            lambda _action, queue, *_: calls.update([queue]),
        )
        driver.open()
        outage = Outage(self._service, self._wall_clock)
        outage.open()
        attempts = self._attempts or attempts_for(options.control_options(), self._wall_clock)
        self._sandbox = Sandbox(
            app=self._app,
            options=options,
            driver=driver,
            reporter=Reporter(options, driver, self._clock, attempts=attempts),
            attempts=attempts,
            observers=Observers([MessageLog(self._clock, self._wall_clock), *options.observers]),
            service=self._service,
            outage=outage,
            calls=calls,
            clock=self._clock,
            wall_clock=self._wall_clock,
            write=self._write,
            end=self._end,
        )
        logger.info(
            "The function is ready.",
            extra={"event": "function.ready", "seconds": round(self._clock() - began_at, 3)},
        )

    def __call__(self, event: Any, context: Context) -> dict[str, Any]:
        """Handle one event, and return the ids of the messages that Lambda must not delete.

        Raises ServiceAway in an outage, MalformedEvent if the event or a record without an id is
        not of SQS, and ConfigurationError. What was done is deleted even then, and the visibility
        of the rest is set.
        """
        self.open()
        assert self._sandbox is not None
        now = self._clock()
        ends_at = now + context.get_remaining_time_in_millis() / 1000
        records = read(event, now, self._wall_clock())
        try:
            return Invocation(self._sandbox, records, ends_at).run()
        finally:
            self._finish()

    def _finish(self) -> None:
        try:
            self._service.finish()
        except Exception as exc:
            # Broad on purpose: the outcome of the invocation is decided.
            logger.warning(
                "%s could not finish an invocation.",
                self._service.name,
                extra={"event": "function.unfinished", "error": type(exc).__name__},
            )


def _to_stdout(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
