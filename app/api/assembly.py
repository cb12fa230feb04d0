"""Puts together what the routes share, for a server and for a function."""

from collections.abc import Iterable, Mapping
from typing import Any

from app.api.gatherer import Gatherer
from app.api.keys import Keys, Rates
from app.api.outcome_store import OutcomeStore
from app.api.service import Service
from app.celery import app as celery_app
from app.registration_ids import INCREMENT, REGISTRATION
from app.settings import ApiSettings
from sqs_broker.options import Options
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.commands.queues import ages_of, remembered
from sqs_broker.tools.commands.queues import count as count_queues

#: How often a call to SQS is tried if it fails for a temporary reason.
TRIES = 2


def new_service(
    settings: ApiSettings, options: Options, driver: Driver, keys: Keys, outcomes: OutcomeStore
) -> Service:
    """What the routes share, on the queues that Celery routes the two tasks to."""
    by_url: dict[str, Gatherer] = {}
    gatherers: dict[str, Gatherer] = {}
    ages = remembered(lambda: ages_of(options))

    def rows() -> Iterable[Mapping[str, Any]]:
        known = ages()
        for row in count_queues(driver, options):
            yield {
                "queue": row.queue,
                "isKnown": row.fault is None,
                "visible": row.visible,
                "inFlight": row.in_flight,
                "delayed": row.delayed,
                "oldest": known.get(row.queue),
                "deadLettersOf": row.dead_letters_of,
            }

    service = Service(
        gatherers=gatherers,
        outcomes=outcomes,
        keys=keys,
        rates=Rates(settings.rate_limit),
        count_queues=rows,
        most_bytes=options.max_message_bytes,
        tracing=options.tracing,
    )
    for task in (REGISTRATION, INCREMENT):
        url = options.queue(_queue_of(task)).url
        if url not in by_url:
            by_url[url] = Gatherer(
                Queue(url, driver),
                most_waiting=settings.most_waiting,
                seconds=settings.send_timeout,
                most_bytes=options.max_message_bytes,
                on_taken=service.taken,
            )
        gatherers[task] = by_url[url]
    return service


def _queue_of(task: str) -> str:
    return str(celery_app.amqp.router.route({}, task)["queue"].name)
