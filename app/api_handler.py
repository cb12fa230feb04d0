"""The HTTP API as a Lambda function: `app.api_handler.handler` answers the requests of an HTTP API
of API Gateway. A request is one invocation, so it is one call to SQS.

Lambda imports this module while it starts a sandbox, so that is when the clients are opened. In any
other process the import opens nothing. docs/lambda.md describes the function.
"""

import asyncio
from typing import Any, Protocol

from starlette.types import ASGIApp

from app.api.application import application
from app.api.assembly import TRIES, new_service
from app.api.gateway import Request
from app.api.keys import read_keys
from app.api.problems import response_of, unavailable
from app.api.service import Phase, Service
from app.celery import app as celery_app
from app.errors import SettingsError
from app.function_secrets import read_api_keys, read_mongo_uri
from app.logs import log_to_stdout
from app.outcomes.reader import Outcomes
from app.settings import get_api_settings, get_settings, is_function, use_mongo_uri
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.tools.broker import options_of

#: Longest time that an answer is held, in seconds. API Gateway ends a request after 30 s:
#: https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-quotas.html
LONGEST_WAIT = 25

#: Seconds of an invocation in which the answer is sent and acceptances are stored. Then a request
#: that still waits is answered with 503.
RESERVE = 2.0

OPEN = (
    "API_KEYS_SECRET_ARN is not set, and API Gateway lets everybody call this function. Put the "
    "output of `python -m app.api key NAME` into a secret, and name it."
)


class Context(Protocol):
    """What is used of the object that Lambda passes with each event."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda ends the function."""


class Api:
    """Handles the events of an HTTP API. The instance is the handler. For one thread."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._app: ASGIApp | None = None
        self._service: Service | None = None

    def open(self) -> None:
        """Read the secrets and create the clients, unless that was done. Raises SettingsError."""
        if self._service is not None:
            return
        settings = get_api_settings()
        entries = read_api_keys() or (settings.keys.get_secret_value() if settings.keys else "")
        keys = read_keys(entries)
        if not keys:
            raise SettingsError(OPEN)
        use_mongo_uri(uri := read_mongo_uri())
        get_settings().require_api()
        options = options_of(celery_app)
        driver = driver_for(options, read_timeout=settings.send_timeout / TRIES, tries=TRIES)
        driver.open()
        self._service = new_service(settings, options, driver, keys, Outcomes(uri))
        self._service.phase = Phase.READY
        self._app, _ = application(
            self._service,
            send_timeout=settings.send_timeout,
            origins=settings.origins,
            longest_wait=LONGEST_WAIT,
        )
        # One loop for all invocations, because the clients belong to it.
        self._runner = asyncio.Runner()

    def __call__(self, event: Any, context: Context) -> dict[str, Any]:
        """Answer one request. Raises MalformedRequest and SettingsError."""
        self.open()
        assert self._runner is not None
        request = Request(event)
        seconds = context.get_remaining_time_in_millis() / 1000 - RESERVE
        return self._runner.run(self._answer(request, seconds))

    async def _answer(self, request: Request, seconds: float) -> dict[str, Any]:
        assert self._app is not None
        assert self._service is not None
        try:
            async with asyncio.timeout(seconds):
                await request.run(self._app)
        except TimeoutError:
            await request.run(response_of(unavailable("It took too long.", 1)))
        # A sandbox may be frozen when the function has returned.
        await self._service.recorded()
        if get_settings().tracing:
            from app.tracing import flush

            await asyncio.to_thread(flush)
        return request.response()


handler = Api()

if is_function():
    log_to_stdout()
    handler.open()
