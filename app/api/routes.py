"""The routes. Each reads its request itself, so that FastAPI adds nothing to its time."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.api import batch as batches
from app.api import bodies
from app.api.batch import Batch
from app.api.bodies import Bodies
from app.api.checking import Invalid, Malformed, check, encode, parse
from app.api.gatherer import Full, Mark
from app.api.keys import Client, Scope
from app.api.problems import (
    Fault,
    Kind,
    Problem,
    invalid,
    response_of,
    unavailable,
)
from app.api.service import Service, idempotency_key
from app.errors import Unavailable
from app.messages import Increment, Registration
from app.outcomes.reader import Outcome
from app.registration_ids import (
    INCREMENT,
    REGISTRATION,
    increment_id,
    is_of,
    is_registration_id,
    registration_id,
)
from sqs_broker.sqs.requests import Outgoing

#: Seconds after which an unknown id is looked up again: another process may have taken the
#: registration, and not stored yet that it did.
SECOND_LOOK = 0.2

#: Longest id of a message (app/messages.py of any producer).
LONGEST_ID = 255

#: Users of a page.
MOST_USERS, DEFAULT_USERS = 1_000, 100

#: Seconds that a client waits before it repeats a request that was refused at once, and any other.
SOON, LATER = 1, 5

#: Seconds that `/readyz` waits for MongoDB.
PROBE_SECONDS = 1.0

#: The status in the log of a request whose client did not wait for the answer.
CLIENT_GONE = 499

#: An id that no message has.
NO_ID = "0" * 40


class Raw(APIRoute):
    """A route whose function gets the request, and returns the answer or raises Problem."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself, with its problems as answers."""
        endpoint: Callable[[Request], Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            try:
                return await endpoint(request)
            except Problem as problem:
                return response_of(problem)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Malformed as exc:
                return response_of(Problem(Kind.MALFORMED, str(exc)))
            except Invalid as exc:
                return response_of(invalid(*exc.faults))
            except Full as exc:
                return response_of(unavailable(str(exc), SOON))
            except Unavailable as exc:
                return response_of(unavailable(str(exc), LATER))

        return handle


class Parts(Response):
    """An answer whose body is made part by part."""

    def __init__(self, parts: Iterable[bytes], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(None, status, headers)
        del self.headers["content-length"]
        self._parts = parts

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Accepted(Response):
    """The answer to one registration. Its headers are complete: Starlette would look through those
    of each answer for what is missing."""

    media_type = bodies.JSON

    def __init__(self, id_: str) -> None:
        path = f"/registrations/{id_}"
        self.status_code, self.background = 202, None
        body = f'{{"id":"{id_}","state":"pending","links":{{"self":"{path}"}}}}'
        self.body = body.encode()
        self.raw_headers = [
            (b"location", path.encode()),
            (b"content-length", b"%d" % len(self.body)),
            (b"content-type", b"application/json"),
        ]


class Routes:
    """The functions of the routes."""

    def __init__(
        self, service: Service, read: Bodies, send_timeout: float, longest_wait: int
    ) -> None:
        self._service = service
        self._bodies = read
        self._send_timeout = send_timeout
        self._longest_wait = longest_wait

    # Sending ----------------------------------------------------------------------------------

    async def register(self, request: Request) -> Response:
        """POST /registrations"""
        client = self._service.admit(request, Scope.REGISTER)
        key = idempotency_key(request)
        bodies.check_media_type(request, bodies.JSON)
        content = parse(await self._bodies.whole(request))
        registration = check(Registration, content)
        with self._service.sending(request, REGISTRATION):
            mark, message = self._registration(request, client, key, content, registration)
            await self._service.gatherers[REGISTRATION].send(message, mark)
        return Accepted(mark.id)

    async def register_many(self, request: Request) -> Response:
        """POST /registrations/batch"""
        client = self._service.admit(request, Scope.REGISTER, items=0)
        key = idempotency_key(request)
        kind = bodies.check_media_type(request, bodies.NDJSON, bodies.JSON)

        def prepare(content: Any) -> tuple[Mark, Outgoing]:
            registration = check(Registration, content)
            return self._registration(request, client, key, content, registration)

        batch = Batch(self._service.gatherers[REGISTRATION], prepare, self._send_timeout)
        with self._service.sending(request, REGISTRATION):
            await self._send(request, client, kind, batch)
        status, headers, body = batches.answer(batch)
        return Parts(body, status, headers)

    async def _send(self, request: Request, client: Client, kind: str, batch: Batch) -> None:
        try:
            if kind == bodies.NDJSON:
                with self._bodies.all_lines():
                    await batch.read(self._bodies.lines(request))
            else:
                for item in _array(parse(await self._bodies.whole(request))):
                    await batch.add(item)
        except Exception:
            await batch.end()
            raise
        finally:
            self._service.count(client, len(batch.items) or 1)
            request.scope["state"]["count"] = len(batch.items)
        await batch.end()

    async def produce(self, request: Request) -> Response:
        """POST /produce"""
        client = self._service.admit(request, Scope.REGISTER)
        key = idempotency_key(request)
        bodies.check_media_type(request, bodies.JSON)
        content = parse(await self._bodies.whole(request))
        check(Increment, content)
        id_ = increment_id(client.name, key)
        with self._service.sending(request, INCREMENT):
            message = self._service.message(request, INCREMENT, id_, encode(content))
            await self._service.gatherers[INCREMENT].send(message)
        return _json({"id": id_, "state": "pending", "links": {"count": "/count"}}, 202)

    def _registration(
        self,
        request: Request,
        client: Client,
        key: str | None,
        content: Any,
        registration: Registration,
    ) -> tuple[Mark, Outgoing]:
        id_ = registration_id(client.name, key, registration)
        mark = Mark(id_, registration.stock_id, registration.user_id)
        return mark, self._service.message(request, REGISTRATION, id_, encode(content))

    # Reading ----------------------------------------------------------------------------------

    async def registration(self, request: Request) -> Response:
        """GET /registrations/{id}"""
        client = self._service.admit(request, Scope.REGISTER, Scope.READ)
        seconds = _number(request, "wait", 0, self._longest_wait, 0)
        id_ = request.path_params["id"]
        if not _may_ask(client, id_):
            raise Problem(Kind.NOT_FOUND)
        outcome = await self._outcome(id_, seconds)
        if outcome is not None:
            return _json(_shown(outcome, client))
        if (at := self._service.taken_at(id_)) is not None:
            return _json({"id": id_, "state": "pending", "at": at, "links": _links(id_)})
        raise Problem(Kind.NOT_FOUND, "No registration with this id is known.")

    async def _outcome(self, id_: str, seconds: float) -> Outcome | None:
        outcome = await self._waited(id_, seconds)
        if outcome is None and self._service.taken_at(id_) is None:
            await asyncio.sleep(SECOND_LOOK)
            outcome = await self._waited(id_, seconds)
        return outcome

    async def _waited(self, id_: str, seconds: float) -> Outcome | None:
        """The final state within this time, or the present one: also at once, if the process
        stops."""
        outcomes, stopping = self._service.outcomes, self._service.stopping
        if not seconds or stopping.is_set():
            return await outcomes.state(id_)
        final = asyncio.ensure_future(outcomes.wait(id_, seconds))
        stop = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait((final, stop), return_when=asyncio.FIRST_COMPLETED)
            return await final if final.done() else await outcomes.state(id_)
        finally:
            final.cancel()
            stop.cancel()

    async def user(self, request: Request) -> Response:
        """GET /users/{stockId}/{userId}"""
        self._service.admit(request, Scope.READ)
        # An id may have a slash, which is escaped only in the raw path.
        raw = request.scope.get("raw_path") or request.scope["path"].encode()
        stock_id, separator, user_id = raw.decode().removeprefix("/users/").partition("/")
        if not separator or "/" in user_id:
            raise Problem(Kind.NOT_FOUND)
        user = await self._service.outcomes.user(unquote(stock_id), unquote(user_id))
        if user is None:
            raise Problem(Kind.NOT_FOUND, "There is no such user.")
        return _json(user)

    async def users(self, request: Request) -> Response:
        """GET /users?stockId="""
        self._service.admit(request, Scope.READ)
        stock_id = request.query_params.get("stockId")
        if not stock_id:
            raise invalid(Fault("is required", parameter="stockId"))
        limit = int(_number(request, "limit", 1, MOST_USERS, DEFAULT_USERS))
        after = request.query_params.get("after") or None
        page = await self._service.outcomes.users(stock_id, after, limit)
        return _json({"users": page.users, "next": page.next})

    async def queues(self, request: Request) -> Response:
        """GET /queues"""
        self._service.admit(request, Scope.OPERATE)
        counted = await asyncio.to_thread(lambda: list(self._service.count_queues()))
        if not any(queue["isKnown"] for queue in counted):
            raise unavailable("SQS does not count its messages now.", LATER)
        return _json({"queues": counted})

    async def count(self, request: Request) -> Response:
        """GET /count"""
        self._service.admit(request)
        return _json({"count": await self._service.outcomes.count()})

    # Health -----------------------------------------------------------------------------------

    async def healthz(self, request: Request) -> Response:
        """GET /healthz"""
        return _json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz"""
        phase = self._service.phase
        failed = any(g.error is not None for g in self._service.gatherers.values())
        content = {
            "status": phase,
            "dependencies": {
                "sqs": "degraded" if failed else "ok",
                "mongodb": "ok" if await self._has_mongodb() else "degraded",
            },
        }
        return _json(content, 200 if phase == "ready" else 503)

    async def _has_mongodb(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._service.outcomes.state(NO_ID)
        except (Unavailable, TimeoutError):
            return False
        return True


def _may_ask(client: Client, id_: str) -> bool:
    if client.may(Scope.READ):
        return len(id_) <= LONGEST_ID
    return is_registration_id(id_) and is_of(id_, client.name)


def _shown(outcome: Outcome, client: Client) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": outcome.id, "state": outcome.state, "at": outcome.at}
    if outcome.reason is not None:
        shown["reason"] = outcome.reason
    if outcome.user is not None and client.may(Scope.READ):
        shown["user"] = outcome.user
    if outcome.conflicts:
        shown["conflicts"] = outcome.conflicts
    return shown | {"links": _links(outcome.id)}


def _links(id_: str) -> dict[str, str]:
    return {"self": f"/registrations/{id_}"}


def _array(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise invalid(Fault("should be a JSON array", "#"))
    return content


def _number(request: Request, name: str, least: int, most: int, default: int) -> float:
    """A query parameter that is a number. Raises Problem."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        detail = f"should be a whole number from {least} to {most}"
        raise invalid(Fault(detail, parameter=name))
    return int(text)


def _json(content: Any, status: int = 200) -> Response:
    body = json.dumps(content, default=_plain, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, media_type="application/json")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    raise TypeError(f"{type(value).__name__} is no JSON")
