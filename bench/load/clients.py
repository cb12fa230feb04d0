"""python -m bench.load.clients LOG: what registrations.js does, where there is no k6.

Reads the same environment variables, and writes the same lines to LOG.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.load.shape import Shape
from sqs_broker.machine import files

#: Seconds until a request without an answer is given up.
TIMEOUT = 15
#: k6's code for it, and for every other failure of a connection.
TIMED_OUT, FAILED = 1050, 1000

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Clients:
    """Connections, each with one request at a time. The one that was used last is used next."""

    def __init__(self, host: str, port: int, run: str) -> None:
        self.lines: list[str] = []
        self._host, self._port, self._run = host, port, run
        self._free: list[Connection] = []

    async def register(self, number: int) -> None:
        """One request. Adds its line."""
        user = f"u{number}"
        info = {"nickname": "kim", "gender": "F", "introduction": "hello"}
        body = json.dumps({"stockId": self._run, "userId": user, "userInfo": info}).encode()
        began, clock = time.time(), time.perf_counter()
        status, id_, fault = 0, None, None
        try:
            async with asyncio.timeout(TIMEOUT):
                status, content = await self._post(body)
            id_ = json.loads(content)["id"] if status == 202 else None
        except TimeoutError:
            fault = TIMED_OUT
        except (OSError, EOFError):
            fault = FAILED
        line = {
            "user": user,
            "id": id_,
            "began": began * 1000,
            "milliseconds": (time.perf_counter() - clock) * 1000,
            "status": status,
            "fault": fault,
        }
        self.lines.append(json.dumps(line))

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        reader, writer = await self._connection()
        try:
            writer.write(
                b"POST /registrations HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            content = await reader.readexactly(int(length))
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        return int(head[9:12]), content

    async def _connection(self) -> Connection:
        while self._free:
            reader, writer = self._free.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
        return await asyncio.open_connection(self._host, self._port)


async def send(shape: Shape, url: str, run: str) -> list[str]:
    """The lines of all requests."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    clients = Clients(address.hostname, address.port, run)
    start, open_ = time.perf_counter(), set[asyncio.Task[None]]()
    for number, due in enumerate(shape.due()):
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        if len(open_) < shape.most_clients:  # k6 drops what no client is free for, too.
            task = asyncio.create_task(clients.register(number))
            open_.add(task)
            task.add_done_callback(open_.discard)
    if open_:
        await asyncio.wait(open_)
    return clients.lines


def main() -> None:
    names = Shape().environment()
    numbers = {name: int(os.environ[name]) for name in names}
    shape = Shape(**{name.lower(): number for name, number in numbers.items()})
    lines = asyncio.run(send(shape, os.environ["API_URL"], os.environ["RUN"]))
    files.replace(Path(sys.argv[1]), "".join(f"{line}\n" for line in lines), files.PRIVATE)


if __name__ == "__main__":
    main()
