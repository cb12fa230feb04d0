"""A client of an ASGI application in this process: no socket, no thread."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote


@dataclass
class Answer:
    """What the application answered."""

    status: int
    headers: dict[str, str]
    body: bytes
    bytes_read: int
    """How much of the body of the request the application took."""

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Makes requests, each with these headers."""

    def __init__(self, app: Any, headers: Mapping[str, str] | None = None) -> None:
        self._app = app
        self._headers = dict(headers or {})

    async def get(self, target: str, **headers: str) -> Answer:
        return await self.request("GET", target, headers=headers)

    async def post(
        self, target: str, content: Any, *, kind: str = "application/json", **headers: str
    ) -> Answer:
        """Send content as JSON; bytes, and parts of bytes, as they are."""
        if not isinstance(content, bytes | AsyncIterable):
            content = json.dumps(content).encode()
        return await self.request("POST", target, content, headers={"Content-Type": kind} | headers)

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | AsyncIterable[bytes] = b"",
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """One request. In the names of headers, an underscore is a hyphen."""
        given = list(self._headers.items())
        given += headers.items() if isinstance(headers, Mapping) else headers
        if isinstance(body, bytes):
            given.append(("Content-Length", str(len(body))))
        raw, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw),
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.replace("_", "-").lower().encode(), value.encode("latin-1"))
                for name, value in given
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        sent: list[dict[str, Any]] = []
        parts = _parts(body)
        taken = 0

        async def receive() -> dict[str, Any]:
            nonlocal taken
            async for part, more in parts:
                taken += len(part)
                return {"type": "http.request", "body": part, "more_body": more}
            if not isinstance(body, CutOff):
                # The client waits for the answer.
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        start, *rest = sent
        return Answer(
            start["status"],
            {name.decode(): value.decode("latin-1") for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in rest),
            taken,
        )


async def _parts(body: bytes | AsyncIterable[bytes]) -> Any:
    """Each part, and whether more follow."""
    if isinstance(body, bytes):
        yield body, False
        return
    async for part in body:
        yield part, True
    if not isinstance(body, CutOff):
        yield b"", False


class CutOff:
    """A body whose client is gone before its end."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
