"""Flower for SQS: its Broker page and API show the queues, and `/metrics` requires the login."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from flower import urls
from flower.api.tasks import GetQueueLengths
from flower.views.broker import BrokerView
from flower.views.monitor import Metrics
from tornado.routing import URLSpec
from tornado.web import authenticated, url

from sqs_broker.flower.figures import QueueFigures
from sqs_broker.flower.letter_pages import HANDLERS
from sqs_broker.options import Options
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.tools.broker import is_aws
from sqs_broker.tools.commands.queues import Row, ages_of, count, duration, remembered
from sqs_broker.worker.defaults import uses_sqs

PAGE = str(Path(__file__).with_name("broker.html"))

#: Seconds for SQS to begin its answer, without a retry, because a person waits for the page. The
#: whole call may take twice as long.
READ_TIMEOUT = 5

#: Threads of their own: a slow SQS must not occupy Flower's threads, which wait for workers.
_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sqs-queues")


class Queues:
    """The counts of the configured queues, in the form that Flower's pages need."""

    def __init__(self, options: Options) -> None:
        self.is_aws = is_aws(options.endpoint_url)
        self._options = options
        self._driver = driver_for(
            options, read_timeout=READ_TIMEOUT, tries=1, seconds=2 * READ_TIMEOUT
        )
        self._ages = remembered(lambda: ages_of(options))
        self.figures = QueueFigures(self.rows)

    async def rows(self) -> list[Row]:
        """Each queue, followed by its dead-letter queue."""
        return await asyncio.get_running_loop().run_in_executor(_threads, self._read)

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """All queues, not only `names`, which lack the dead-letter queues."""
        return [
            {"name": row.queue, "messages": row.visible} | asdict(row) for row in await self.rows()
        ]

    def _read(self) -> list[Row]:
        ages = self._ages()
        return [
            replace(row, oldest=ages.get(row.queue)) for row in count(self._driver, self._options)
        ]


@cache
def queues_of(celery_app: Any) -> Queues:
    """The queues of a Celery app on this broker."""
    return Queues(Options.read(celery_app.conf.broker_transport_options))


class SqsBrokerView(BrokerView):
    """The Broker page: messages visible, in flight and delayed, and the age of the oldest."""

    @authenticated
    async def get(self) -> None:
        """Show the current counts; of another broker, what Flower shows."""
        if not uses_sqs(self.capp):
            await super().get()
            return
        queues = queues_of(self.capp)
        self.render(PAGE, rows=await queues.rows(), is_aws=queues.is_aws, duration=duration)


class SqsQueueLengths(GetQueueLengths):
    """`/api/queues/length`."""

    def get_broker(self) -> Any:
        """The object from which Flower reads the queues."""
        return queues_of(self.capp) if uses_sqs(self.capp) else super().get_broker()


class MetricsBehindLogin(Metrics):
    """`/metrics` with a login. Flower shows it without one, although it names tasks and workers."""

    @authenticated
    async def get(self) -> None:
        """Show Flower's metrics, then those of the queues."""
        await super().get()
        if uses_sqs(self.capp):
            self.write(await queues_of(self.capp).figures.text())


IN_PLACE_OF = {
    BrokerView: SqsBrokerView,
    GetQueueLengths: SqsQueueLengths,
    Metrics: MetricsBehindLogin,
}


def install() -> None:
    """Replace Flower's handlers with these, and add the page "Dead letters", before Flower creates
    its pages (flower 2.2 urls.py). A second call changes nothing."""
    added = [each for each in HANDLERS if each not in urls.handlers]
    urls.handlers[:] = [*added, *(in_place_of(each) for each in urls.handlers)]


def in_place_of(handler: Any) -> Any:
    """The entry of Flower's list, with the handler replaced if this module has one."""
    if isinstance(handler, URLSpec):
        ours = IN_PLACE_OF.get(handler.handler_class, handler.handler_class)
        return url(handler.regex.pattern, ours, handler.kwargs, handler.name)
    pattern, theirs, *rest = handler
    return (pattern, IN_PLACE_OF.get(theirs, theirs), *rest)
