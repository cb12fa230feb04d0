"""What every request passes first and last: ids, the log, and errors that nothing else caught."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deadlines import Deadlines
from app.api.headers import keep
from app.api.problems import MEDIA_TYPE, Kind, Problem, content_of
from sqs_broker.rules.randomness import RANDOM
from sqs_broker.rules.trace_context import request_id_of, trace_id_of

logger = logging.getLogger(__name__)

#: Seconds after which any request ends, also one whose client does not read the answer.
LONGEST_REQUEST = 420.0

#: The name in the state of a request of what says whether its connection is closed.
IS_CLOSED = "is_closed"


class Front:
    """Gives each request an id, and logs how it ended.

    The id is that of `X-Request-Id`, or the trace id of `traceparent`, or a new one. Both headers
    are in the answer. `is_closing` says whether connections are closed after their answer.
    With `tracing`, each request has a span (app/spans.py).
    """

    def __init__(self, app: ASGIApp, is_closing: Callable[[], bool], tracing: Any = None) -> None:
        self._app = app
        self._is_closing = is_closing
        self._deadlines = Deadlines(LONGEST_REQUEST)
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._is_closing)
        with self._tracing.serving(exchange) if self._tracing else nullcontext():
            await self._serve(exchange, receive)

    async def _serve(self, exchange: "_Exchange", receive: Receive) -> None:
        try:
            with self._deadlines.limit():
                await self._app(exchange.scope, receive, exchange.send)
        except Exception as exc:
            _log_failure(exchange, exc)
            if exchange.status is None:
                await exchange.send_problem(Problem(Kind.INTERNAL))
        finally:
            _log(exchange)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, is_closing: Callable[[], bool]) -> None:
        self.began = time.monotonic()
        self.scope = scope
        self.status: int | None = None
        self._send = send
        self._is_closing = is_closing
        given = keep(scope)
        traceparent = given.get(b"traceparent", b"").decode("latin-1")
        trace_id = trace_id_of(traceparent)
        id_ = request_id_of(given.get(b"x-request-id", b"").decode("latin-1"))
        id_ = id_ or trace_id or f"{RANDOM.getrandbits(128):032x}"
        self._headers = [(b"x-request-id", id_.encode()), (b"cache-control", b"no-store")]
        if trace_id:
            self._headers.append((b"traceparent", traceparent.encode()))
        self.facts: dict[str, Any] = scope["state"]
        self._is_closed: Callable[[], bool] = self.facts.get(IS_CLOSED, lambda: False)
        self.facts["request_id"] = id_
        self.facts["traceparent"] = traceparent if trace_id else None

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], *self._headers]
            if self._is_closing():
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        try:
            await self._send(message)
        except RuntimeError:
            # uvloop raises it until uvicorn knows that the connection is closed:
            # https://github.com/Kludex/uvicorn/issues/1251. From then on uvicorn sends nothing.
            if not self._is_closed():
                raise

    async def send_problem(self, problem: Problem) -> None:
        """Answer with a problem."""
        body = content_of(problem)
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body))]
        start = {"type": "http.response.start", "status": problem.kind.status, "headers": headers}
        await self.send(start)
        await self._send({"type": "http.response.body", "body": body})


def _log(exchange: _Exchange) -> None:
    scope, facts = exchange.scope, exchange.facts
    # The pattern of the path: the path itself has ids of users.
    route = getattr(scope.get("route"), "path", None)
    logger.info(
        # Without arguments: such a line is written in half of the time (app/logs.py).
        f"{scope['method']} {route}: {exchange.status}",
        extra={
            "event": "http.request",
            "method": scope["method"],
            "route": route,
            "status": exchange.status,
            "seconds": round(time.monotonic() - exchange.began, 6),
            "trace_id": trace_id_of(facts["traceparent"]),
            "request_id": facts["request_id"],
            "client": facts.get("client"),
            "count": facts.get("count"),
        },
    )


def _log_failure(exchange: _Exchange, exc: Exception) -> None:
    logger.error(
        "A request failed: %s.",
        type(exc).__name__,
        exc_info=exc,
        extra={
            "event": "http.failed",
            "trace_id": trace_id_of(exchange.facts["traceparent"]),
            "request_id": exchange.facts["request_id"],
            "error": type(exc).__name__,
        },
    )
