"""Calls an ASGI application with the requests of an HTTP API of API Gateway.

API Gateway invokes a Lambda function with one event for each request (payload format 2.0), and
makes the response of what the function returns:
https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
"""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope

#: What is sent as text. Other bodies are sent in Base64.
TEXT = ("text/", "application/json", "application/problem+json", "application/javascript")


class MalformedRequest(Exception):
    """The event is no request of an HTTP API with payload format 2.0."""


class Request:
    """One request, which an application reads, and its response, which the application writes."""

    def __init__(self, event: Any) -> None:
        """Raises MalformedRequest."""
        try:
            self._body = _body(event)
            self.scope = _scope(event, len(self._body))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise MalformedRequest(
                "The event is no request of an HTTP API with payload format 2.0."
            ) from exc
        self._is_read = False
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    async def run(self, app: ASGIApp) -> None:
        """Pass the request to the application."""
        await app(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._is_read:
            # A response may listen for the end of the connection. The function does not see it.
            await asyncio.Future()
        self._is_read = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
            # The answer to a request that took too long replaces what there is of the other one.
            self._parts = []
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))

    def response(self) -> dict[str, Any]:
        """The response, for API Gateway."""
        headers: dict[str, str] = {}
        for raw, value in self._headers:
            name = raw.decode("latin-1").lower()
            text = value.decode("latin-1")
            headers[name] = f"{headers[name]},{text}" if name in headers else text
        body = b"".join(self._parts)
        is_text = headers.get("content-type", "text/").startswith(TEXT)
        return {
            "statusCode": self._status,
            "headers": headers,
            "body": body.decode() if is_text else base64.b64encode(body).decode(),
            "isBase64Encoded": not is_text,
        }


def _body(event: Mapping[str, Any]) -> bytes:
    body = event.get("body") or ""
    return base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else body.encode()


def _scope(event: Mapping[str, Any], length: int) -> Scope:
    http = event["requestContext"]["http"]
    path = event["rawPath"]
    headers = [
        (name.lower().encode("latin-1"), value.encode())
        for name, value in event.get("headers", {}).items()
        if name.lower() != "content-length"
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": http["method"],
        "scheme": "https",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": event.get("rawQueryString", "").encode(),
        "root_path": "",
        "headers": [*headers, (b"content-length", b"%d" % length)],
        "client": (http.get("sourceIp", ""), 0),
        "server": None,
        "state": {},
    }
