"""python -m bench.proxy PORT UPSTREAM DELAY: forwards to SQS, delays each call, writes it down.

Each call waits DELAY seconds before it is forwarded, all of them at the same time if they come at
the same time: the delay of a network, not of a queue. What was forwarded is told at
`GET /progress` and `GET /calls`. Listens on 127.0.0.1 only.
"""

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from devstack import ports

#: Octets of one HTTP body: more than ten messages of the benchmark.
LONGEST = 8 * 1024 * 1024

#: (monotonic seconds of the answer, API action, messages it brought or deleted)
Call = tuple[float, str, int]


@dataclass
class Proxy:
    """The calls so far, and the way to the server."""

    upstream: int
    delay: float
    calls: list[Call] = field(default_factory=list)
    deleted: int = 0
    first_delete: float | None = None
    open: int = 0
    """Calls that wait for their answer."""
    most_open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, with a connection of its own to the server."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            server = await asyncio.open_connection(ports.HOST, self.upstream)
            try:
                while True:
                    await self._serve_one(reader, writer, *server)
            finally:
                server[1].close()
        writer.close()

    async def _serve_one(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        head, body = await _read(reader)
        if head.startswith(b"GET /"):
            writer.write(self._told(head.split(b" ", 2)[1]))
            return
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            to_server.write(head + body)
            answer_head, answer = await _read(from_server)
        finally:
            self.open -= 1
        self._note(_action(head), answer_head, answer)
        writer.write(answer_head + answer)

    def _told(self, path: bytes) -> bytes:
        told: object = self.calls
        if path == b"/progress":
            told = {
                "first_delete": self.first_delete,
                "deleted": self.deleted,
                "most_open": self.most_open,
            }
        text = json.dumps(told).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

    def _note(self, action: str, head: bytes, answer: bytes) -> None:
        messages = _messages(action, answer) if b" 200 " in head[:16] else 0
        now = monotonic()
        self.calls.append((now, action, messages))
        if action.startswith("Delete") and messages:
            self.deleted += messages
            self.first_delete = self.first_delete or now


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One HTTP message, request or answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _header(head, b"content-length")
    if length is None and _header(head, b"transfer-encoding"):
        raise NotImplementedError("a chunked body")
    return head, await reader.readexactly(int(length or 0))


def _header(head: bytes, name: bytes) -> bytes | None:
    start = head.lower().find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip()


def _action(head: bytes) -> str:
    return (_header(head, b"x-amz-target") or b"?").decode().rsplit(".", 1)[-1]


def _messages(action: str, answer: bytes) -> int:
    if action == "DeleteMessage":
        return 1
    if action == "DeleteMessageBatch":
        return len(json.loads(answer).get("Successful", ()))
    return answer.count(b'"ReceiptHandle"') if action == "ReceiveMessage" else 0


async def _main(port: int, upstream: int, delay: float) -> None:
    proxy = Proxy(upstream, delay)
    server = await asyncio.start_server(proxy.serve, ports.HOST, port, limit=LONGEST)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
