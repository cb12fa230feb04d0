"""The ASGI application: routes, description, documentation, and what surrounds them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from app.api import description
from app.api.description import (
    ACCEPTED,
    AT,
    BATCH_BODY,
    ID,
    REGISTRATION,
    USER,
    json_body,
    operation,
)
from app.api.front import Front
from app.api.keys import Scope
from app.api.problems import Kind, Problem, response_of
from app.api.routes import Raw, Routes
from app.api.service import Phase, Service

#: Seconds for which a browser remembers that an origin may call the API.
CORS_SECONDS = 600

#: Where the files of Swagger UI are, which FastAPI would load from another host.
ASSETS = "/docs/static"


def application(
    service: Service, *, send_timeout: float, origins: Sequence[str] = ()
) -> tuple[ASGIApp, FastAPI]:
    """The whole application, and the FastAPI application inside."""
    inner = FastAPI(
        title=description.TITLE,
        version=description.VERSION,
        description=description.ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=partial(_lifespan, service=service),
    )
    inner.router.route_class = Raw
    _add_routes(inner, Routes(service, send_timeout))
    _add_docs(inner)
    inner.add_exception_handler(HTTPException, _refused)
    inner.add_exception_handler(Exception, _failed)
    described = inner.openapi
    # The documented way: https://fastapi.tiangolo.com/how-to/extending-openapi/
    inner.openapi = lambda: description.completed(described(), service.has_keys)  # type: ignore[method-assign]
    outer: ASGIApp = Front(inner, lambda: service.is_draining)
    if origins:
        outer = CORSMiddleware(
            outer,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "Content-Type",
                "X-API-Key",
                "Idempotency-Key",
                "X-Request-Id",
                "traceparent",
            ],
            expose_headers=["Location", "Retry-After", "X-Request-Id", "traceparent"],
            max_age=CORS_SECONDS,
        )
    return outer, inner


@asynccontextmanager
async def _lifespan(_: FastAPI, service: Service) -> AsyncIterator[None]:
    service.phase = Phase.READY
    yield
    service.begin_stop()
    await service.close()


async def _refused(_: Request, exc: Exception) -> Response:
    """What Starlette refuses: a path or a method."""
    assert isinstance(exc, HTTPException)
    kind = {404: Kind.NOT_FOUND, 405: Kind.METHOD}.get(exc.status_code, Kind.INTERNAL)
    return response_of(Problem(kind, headers=dict(exc.headers or {})))


async def _failed(_: Request, __: Exception) -> Response:
    """An error of the program. `Front` logs it."""
    return response_of(Problem(Kind.INTERNAL))


def _add_docs(inner: FastAPI) -> None:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=description.TITLE,
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )

    async def docs(request: Request) -> Response:
        return page

    inner.add_api_route("/docs", docs, include_in_schema=False)
    directory = str(files("fastapi_offline") / "static")
    inner.mount(ASSETS, StaticFiles(directory=directory), "docs")


def _add_routes(inner: FastAPI, routes: Routes) -> None:
    register, read, operate = Scope.REGISTER, Scope.READ, Scope.OPERATE
    post: dict[str, Any] = {"methods": ["POST"], "response_class": Response}
    get: dict[str, Any] = {"methods": ["GET"], "response_class": Response}
    location = {
        "Location": {
            "description": "Where to ask for the state.",
            "required": True,
            "schema": {"type": "string"},
        }
    }
    inner.add_api_route(
        "/registrations",
        routes.register,
        **post,
        **operation(
            "registerUser",
            "Register a user",
            "The message is on the queue when the answer comes. A repeat of the request has the "
            "same id.",
            scopes=[register],
            parameters=["Idempotency-Key"],
            body=json_body("Registration", REGISTRATION),
            answer=json_body("Accepted", ACCEPTED),
            status=202,
            problems=[Kind.UNAVAILABLE],
            headers=location,
        ),
    )
    item = {"state": "pending", "id": ID, "links": {"self": f"/registrations/{ID}"}}
    inner.add_api_route(
        "/registrations/batch",
        routes.register_many,
        **post,
        **operation(
            "registerUsers",
            "Register many users",
            "At most 10,000 registrations: a line of at most 1 MiB for each, together at most 64 "
            "MiB; or a JSON array of at most 1 MiB. The answer comes after the last one. It is 202 "
            "if any was accepted.",
            scopes=[register],
            parameters=["Idempotency-Key"],
            body=BATCH_BODY,
            answer=json_body(
                "BatchAnswer", {"accepted": 1, "invalid": 0, "unavailable": 0, "items": [item]}
            ),
            status=202,
            problems=[Kind.UNAVAILABLE],
        ),
    )
    inner.add_api_route(
        "/registrations/{id}",
        routes.registration,
        **get,
        **operation(
            "getRegistration",
            "What became of a registration",
            "A key without the scope `read` sees only what it has sent itself, without the user.",
            scopes=[register, read],
            parameters=["id", "wait"],
            answer=json_body(
                "RegistrationState",
                {"id": ID, "state": "registered", "at": AT, "links": item["links"]},
            ),
            problems=[Kind.INVALID, Kind.NOT_FOUND, Kind.UNAVAILABLE],
        ),
    )
    inner.add_api_route(
        "/users",
        routes.users,
        **get,
        **operation(
            "listUsers",
            "The users of a stock",
            "In a stable order, by pages.",
            scopes=[read],
            parameters=["stock", "limit", "after"],
            answer=json_body("Users", {"users": [USER], "next": None}),
            problems=[Kind.INVALID, Kind.UNAVAILABLE],
        ),
    )
    inner.add_api_route(
        "/users/{stockId}/{userId:path}",
        routes.user,
        **get,
        **operation(
            "getUser",
            "One user",
            "A slash in an id is written as `%2F`.",
            scopes=[read],
            parameters=["stockId", "userId"],
            answer=json_body("User", USER),
            problems=[Kind.NOT_FOUND, Kind.UNAVAILABLE],
        ),
    )
    queue = {
        "queue": "sdc-sqs",
        "isKnown": True,
        "visible": 3,
        "inFlight": 2,
        "delayed": 0,
        "oldest": 4,
        "deadLettersOf": None,
    }
    inner.add_api_route(
        "/queues",
        routes.queues,
        **get,
        **operation(
            "listQueues",
            "How many messages each queue has",
            "As SQS counts them: approximately.",
            scopes=[operate],
            answer=json_body("Queues", {"queues": [queue]}),
            problems=[Kind.UNAVAILABLE],
        ),
    )
    inner.add_api_route(
        "/produce",
        routes.produce,
        **post,
        **operation(
            "produce",
            "Add one to the running count",
            "Queues the task `increment`. Without an Idempotency-Key each request counts.",
            scopes=[register],
            parameters=["Idempotency-Key"],
            body=json_body("Increment", {"input": 41}),
            answer=json_body("Accepted", {**ACCEPTED, "links": {"count": "/count"}}),
            status=202,
            problems=[Kind.UNAVAILABLE],
        ),
    )
    inner.add_api_route(
        "/count",
        routes.count,
        **get,
        **operation(
            "getCount",
            "The running count",
            "How many increments were applied.",
            answer=json_body("Count", {"count": 7}),
            problems=[Kind.UNAVAILABLE],
        ),
    )
    inner.add_api_route(
        "/healthz",
        routes.healthz,
        **get,
        **operation(
            "isAlive",
            "Whether the process runs",
            "Always 200.",
            scopes=None,
            answer=json_body("Health", {"status": "ok"}),
        ),
    )
    ready = {"status": "ready", "dependencies": {"sqs": "ok", "mongodb": "degraded"}}
    readiness = operation(
        "isReady",
        "Whether the process takes requests",
        "It fails only while the process starts or stops. A dependency that is away is `degraded`.",
        scopes=None,
        answer=json_body("Readiness", ready),
    )
    readiness["openapi_extra"]["responses"]["503"] = {
        "description": "The process starts or stops",
        "content": json_body("Readiness", {**ready, "status": "draining"}),
        "headers": readiness["openapi_extra"]["responses"]["200"]["headers"],
    }
    inner.add_api_route("/readyz", routes.readyz, **get, **readiness)
