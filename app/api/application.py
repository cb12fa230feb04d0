"""The ASGI application: routes, description, documentation, and what surrounds them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from app.api import description
from app.api.bodies import Bodies
from app.api.front import Front
from app.api.problems import Kind, Problem, response_of
from app.api.routes import Raw, Routes
from app.api.service import Phase, Service
from app.api.shortcut import Shortcut

#: Seconds for which a browser remembers that an origin may call the API.
CORS_SECONDS = 600

#: Longest time that an answer is held until the state is final, in seconds.
LONGEST_WAIT = 60

#: Where the files of Swagger UI are, which FastAPI would load from another host.
ASSETS = "/docs/static"


def application(
    service: Service,
    *,
    send_timeout: float,
    origins: Sequence[str] = (),
    longest_wait: int = LONGEST_WAIT,
    read: Bodies | None = None,
) -> tuple[ASGIApp, FastAPI]:
    """The whole application, and the FastAPI application inside. `longest_wait`: seconds that an
    answer may be held until the state is final. `read` reads the bodies of requests."""
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
    _add_routes(inner, Routes(service, read or Bodies(), send_timeout, longest_wait))
    _add_docs(inner)
    inner.add_exception_handler(HTTPException, _refused)
    inner.add_exception_handler(Exception, _failed)
    described = inner.openapi
    # The documented way: https://fastapi.tiangolo.com/how-to/extending-openapi/
    inner.openapi = lambda: description.completed(described(), service.has_keys, longest_wait)  # type: ignore[method-assign]
    outer: ASGIApp = Front(Shortcut(inner), lambda: service.is_draining, service.tracing)
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
    table = (
        ("POST", "/registrations", routes.register, "registerUser"),
        ("POST", "/registrations/batch", routes.register_many, "registerUsers"),
        ("GET", "/registrations/{id}", routes.registration, "getRegistration"),
        ("GET", "/users", routes.users, "listUsers"),
        ("GET", "/users/{stockId}/{userId:path}", routes.user, "getUser"),
        ("GET", "/queues", routes.queues, "listQueues"),
        ("POST", "/produce", routes.produce, "produce"),
        ("GET", "/count", routes.count, "getCount"),
        ("GET", "/healthz", routes.healthz, "isAlive"),
        ("GET", "/readyz", routes.readyz, "isReady"),
    )
    for method, path, function, name in table:
        inner.add_api_route(
            path,
            function,
            methods=[method],
            response_class=Response,
            **description.OPERATIONS[name],
        )
