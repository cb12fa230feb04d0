"""Flower for SQS: its Broker page and API show the queues, and `/metrics` requires the login."""

from typing import Any

from flower import urls
from flower.api.tasks import GetQueueLengths
from flower.views.broker import BrokerView
from flower.views.monitor import Metrics
from tornado.routing import URLSpec
from tornado.web import authenticated, url

from sqs_broker.tools.flower import broker_pages, letter_pages
from sqs_broker.tools.flower.broker_pages import SqsBrokerView
from sqs_broker.tools.flower.queues import queues_of
from sqs_broker.worker.defaults import uses_sqs


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

#: The pages that Flower does not have.
HANDLERS = [*broker_pages.HANDLERS, *letter_pages.HANDLERS]


def install() -> None:
    """Replace Flower's handlers with these, and add the pages that it does not have, before Flower
    creates its pages (flower 2.2 urls.py). A second call changes nothing."""
    added = [each for each in HANDLERS if each not in urls.handlers]
    urls.handlers[:] = [*added, *(in_place_of(each) for each in urls.handlers)]


def in_place_of(handler: Any) -> Any:
    """The entry of Flower's list, with the handler replaced if this module has one."""
    if isinstance(handler, URLSpec):
        ours = IN_PLACE_OF.get(handler.handler_class, handler.handler_class)
        return url(handler.regex.pattern, ours, handler.kwargs, handler.name)
    pattern, theirs, *rest = handler
    return (pattern, IN_PLACE_OF.get(theirs, theirs), *rest)
