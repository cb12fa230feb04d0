"""Builds the API from its settings, and serves it."""

import asyncio
import gc
import socket
import sys
from collections.abc import Sequence

import uvloop

from app.api.application import application
from app.api.assembly import TRIES, new_service
from app.api.keys import Keys, read_keys
from app.api.processes import Processes
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
    listeners = listen(settings.address, settings.port, settings.processes)
    # What was imported stays, so the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    if settings.processes == 1:
        _run(settings, options, keys, listeners[0])
    elif share := Processes(listeners).run():
        set_up()  # The handler of this process: the one of before writes each line by itself.
        _run(settings, options, keys, share.listener, share.stop)


def check_keys(settings: ApiSettings, keys: Keys) -> None:
    """Raise SettingsError unless there are keys or only this machine can reach the API."""
    if not keys and not is_loopback(settings.address):
        raise SettingsError(
            f"The API would listen on {settings.address or 'every address'} without API keys. "
            "Set API_KEYS (`python -m app.api key NAME` makes a key), or API_ADDRESS=127.0.0.1."
        )


def listen(address: str, port: int, count: int = 1) -> Sequence[socket.socket]:
    """So many sockets that listen on one port. Raises SettingsError if the address cannot be had,
    or if this system does not spread connections over several sockets."""
    if count > 1 and sys.platform != "linux":
        raise SettingsError("API_PROCESSES above 1 needs Linux. Set API_PROCESSES=1.")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return _listeners((address, port), family, count)
    except OSError as exc:
        raise SettingsError(
            f"The API cannot listen on {address}:{port} ({exc.strerror}). Set API_ADDRESS and "
            "API_PORT to an address of this machine that is free."
        ) from None


def _listeners(address: tuple[str, int], family: int, count: int) -> Sequence[socket.socket]:
    if count == 1:
        return [socket.create_server(address, family=family, backlog=BACKLOG)]
    # Without it, two APIs of one user could share a port and not notice.
    with socket.socket(family, socket.SOCK_STREAM) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(address)
    made: list[socket.socket] = []
    for _ in range(count):
        at = made[0].getsockname()[:2] if made else address
        made.append(socket.create_server(at, family=family, backlog=BACKLOG, reuse_port=True))
    return made


def _run(
    settings: ApiSettings,
    options: Options,
    keys: Keys,
    listener: socket.socket,
    stop: int | None = None,
) -> None:
    """Serve until a signal comes, or until `stop` can be read from."""
    driver = driver_for(options, read_timeout=settings.send_timeout / TRIES, tries=TRIES)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, options, driver, keys, listener, stop))


async def _serve(
    settings: ApiSettings,
    options: Options,
    driver: Driver,
    keys: Keys,
    listener: socket.socket,
    stop: int | None,
) -> None:
    service = new_service(
        settings, options, driver, keys, Outcomes(get_settings().require_mongo_uri())
    )
    app, _ = application(service, send_timeout=settings.send_timeout, origins=settings.origins)
    server = Server(config(app, settings.keep_alive), service, settings.drain_seconds)
    if stop is not None:
        server.stop_with(stop)
    try:
        await server.serve([listener])
    finally:
        driver.close()
