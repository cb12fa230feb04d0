"""The way to the routes without parameters, past the layers of FastAPI and Starlette.

The routes use none of what these layers do, and they are half of the CPU time of a request that
registers a user (FastAPI 0.165, Starlette 1.10).
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.routes import Raw


class Shortcut:
    """Calls the function of a route of `inner` itself, and `inner` for every other request."""

    def __init__(self, inner: FastAPI) -> None:
        self._inner = inner
        self._routes: dict[
            tuple[str, str], tuple[Raw, Callable[[Request], Awaitable[Response]]]
        ] = {
            (method, route.path): (route, route.get_route_handler())
            for route in inner.routes
            if isinstance(route, Raw) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http" and not scope.get("root_path"):
            found = self._routes.get((scope["method"], scope["path"]))
        if found is None:
            await self._inner(scope, receive, send)
            return
        scope["route"], handle = found
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)
