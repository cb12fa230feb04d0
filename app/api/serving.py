"""Builds the API from its settings, and serves it."""

import asyncio
import gc
import socket

import uvloop

from app.api.application import application
from app.api.assembly import TRIES, new_service
from app.api.keys import Keys, read_keys
from app.api.server import Server, config
from app.celery import app as celery_app
from app.errors import SettingsError
from app.logs import set_up
from app.outcomes.reader import Outcomes
from app.settings import ApiSettings, get_api_settings, get_settings
from sqs_broker.machine.address import is_loopback
from sqs_broker.options import Options
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.tools.broker import options_of

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
