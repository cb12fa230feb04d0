"""Flower's Broker page: it shows the queues, and pauses and resumes them."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import click
from flower.views.broker import BrokerView
from tornado.web import HTTPError, authenticated, url

from sqs_broker.options import Options
from sqs_broker.rules.pause import LONGEST_REASON
from sqs_broker.tools.commands.durations import Duration
from sqs_broker.tools.commands.queues import duration
from sqs_broker.tools.flower.guarded import Action, Guarded, refusal
from sqs_broker.tools.flower.queues import Queues, Said, queues_of
from sqs_broker.tools.pauses import one_line, pause_queue, resume_queue
from sqs_broker.worker.defaults import uses_sqs

TEMPLATE = str(Path(__file__).with_name("broker.html"))


class BrokerPage(Guarded):
    """What the requests of the page share."""

    @property
    def queues(self) -> Queues:
        """Those of the app. Raises HTTPError if it has another broker."""
        if not uses_sqs(self.application.capp):
            raise HTTPError(404, "This app does not use the SQS broker")
        return queues_of(self.application.capp)

    async def show(self, said: Said | None = None) -> None:
        """Render the page, with what a change said."""
        queues = self.queues
        look = await queues.look()
        self.render(
            TEMPLATE,
            rows=look.rows,
            fault=look.fault,
            is_aws=queues.is_aws,
            duration=duration,
            said=said,
            can_change=self.has_login and not self.is_read_only,
            longest=LONGEST_REASON,
        )


class SqsBrokerView(BrokerPage, BrokerView):
    """Messages visible, in flight and delayed, the age of the oldest, and pauses."""

    @authenticated
    async def get(self) -> None:
        """Show the current counts; of another broker, what Flower shows."""
        if uses_sqs(self.capp):
            await self.show()
        else:
            await BrokerView.get(self)


class PauseAction(BrokerPage, Action):
    """Pauses a queue."""

    page = "broker"

    @authenticated
    async def post(self) -> None:
        """Do as `celery -A … sqs pause` does, and show what was said."""
        self.require_login()
        self.require_changes()
        queue, reason = _queue(self), one_line(self.given("reason"))
        if not reason:
            raise HTTPError(400, "A pause needs a reason")
        await _change(
            self,
            partial(pause_queue, queue=queue, reason=reason, by=self.user(), lasts=_lasts(self)),
        )


class ResumeAction(BrokerPage, Action):
    """Ends the pause of a queue."""

    page = "broker"

    @authenticated
    async def post(self) -> None:
        """Do as `celery -A … sqs resume` does, and show what was said."""
        self.require_login()
        self.require_changes()
        await _change(self, partial(resume_queue, queue=_queue(self), reason="", by=self.user()))


async def _change(page: BrokerPage, change: Callable[[Options], Iterator[str]]) -> None:
    said = await page.queues.change(change)
    if not said.is_done:
        page.set_status(502)
    await page.show(said)


def _queue(page: BrokerPage) -> str:
    queue: str = page.given("queue")
    if queue not in page.queues.options.queues:
        raise HTTPError(400, "There is no such queue")
    return queue


def _lasts(page: BrokerPage) -> timedelta | None:
    given = page.given("for").strip()
    try:
        return Duration().convert(given, None, None) if given else None
    except click.ClickException as exc:
        raise refusal(400, f"For: {exc.message}") from exc


#: The pages that Flower does not have, in its form.
HANDLERS = [
    url(r"/broker/pause", PauseAction, name="broker-pause"),
    url(r"/broker/resume", ResumeAction, name="broker-resume"),
]
