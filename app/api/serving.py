"""Builds the API from its settings, and serves it."""

import asyncio
import gc
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import uvloop

from app.api.application import application
from app.api.gatherer import Gatherer
from app.api.keys import Keys, Rates, read_keys
from app.api.outcome_store import OutcomeStore
from app.api.server import Server, config
from app.api.service import Service
from app.celery import app as celery_app
from app.errors import SettingsError
from app.loader import is_loopback
from app.logs import set_up
from app.outcomes.reader import Outcomes
from app.registration_ids import INCREMENT, REGISTRATION
from app.settings import ApiSettings, get_api_settings, get_settings
from sqs_broker.options import Options
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.broker import options_of
from sqs_broker.tools.commands.queues import ages_of, remembered
from sqs_broker.tools.commands.queues import count as count_queues

#: How often a call to SQS is tried if it fails for a temporary reason.
TRIES = 2

#: Connections that wait until the process takes them.
BACKLOG = 2048


def serve() -> None:
    """Serve the API. Raises SettingsError if it would be open, or lacks a setting."""
    get_settings().require_api()
    settings = get_api_settings()
    keys = read_keys(settings.keys.get_secret_value() if settings.keys else "")
    check_keys(settings, keys)
    set_up()
    options = options_of(celery_app)
    listener = listen(settings.address, settings.port)
    driver = driver_for(options, read_timeout=settings.send_timeout / TRIES, tries=TRIES)
    # What was imported stays, so the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, options, driver, keys, listener))


def check_keys(settings: ApiSettings, keys: Keys) -> None:
    """Raise SettingsError unless there are keys or only this machine can reach the API."""
    if not keys and not is_loopback(settings.address):
        raise SettingsError(
            f"The API would listen on {settings.address or 'every address'} without API keys. "
            "Set API_KEYS (`python -m app.api key NAME` makes a key), or API_ADDRESS=127.0.0.1."
        )


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens. Raises SettingsError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise SettingsError(
            f"The API cannot listen on {address}:{port} ({exc.strerror}). Set API_ADDRESS and "
            "API_PORT to an address of this machine that is free."
        ) from None


async def _serve(
    settings: ApiSettings,
    options: Options,
    driver: Driver,
    keys: Keys,
    listener: socket.socket,
) -> None:
    service = new_service(
        settings, options, driver, keys, Outcomes(get_settings().require_mongo_uri())
    )
    app, _ = application(service, send_timeout=settings.send_timeout, origins=settings.origins)
    server = Server(config(app, settings.keep_alive), service, settings.drain_seconds)
    try:
        await server.serve([listener])
    finally:
        driver.close()


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
