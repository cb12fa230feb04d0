"""The HTTP API as it is run: the Procfile's command, in a process of its own."""

import http.client
import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.acceptance.worker import READY_SECONDS, Place, Program

#: Seconds that any answer takes at the most.
ANSWER_SECONDS = 60

JSON = "application/json"
NDJSON = "application/x-ndjson"


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Api(Program):
    """The API's process."""

    name = "api"

    def wait_until_ready(self) -> None:
        """Returns once it takes connections."""
        self.wait_for(lambda: self.log_lines("api.started"), READY_SECONDS, "an API that listens")

    @property
    def port(self) -> int:
        """The port that it listens on."""
        line, *_ = self.log_lines("api.started")  # each process writes one
        return int(line["message"].rstrip(".").rpartition(":")[2])

    def connections(self) -> int:
        """How many connections of clients the process has taken and not closed."""
        table = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        port, listens = f":{self.port:04X}", "0A"
        rows = (row.split() for row in table)
        # A connection that no process has any more has no inode.
        return sum(r[1].endswith(port) and r[3] != listens and r[9] != "0" for r in rows)

    def connect(self) -> http.client.HTTPConnection:
        """A connection of the test's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)

    def get(self, target: str, **headers: str) -> Reply:
        """One request, on a new connection."""
        return self._ask("GET", target, None, headers)

    def post(self, target: str, content: Any, kind: str = JSON, **headers: str) -> Reply:
        """Send content as JSON, or bytes as they are, on a new connection."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self._ask("POST", target, body, {"Content-Type": kind} | headers)

    def _ask(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body, named)
            return reply_of(connection)
        finally:
            connection.close()


def reply_of(connection: http.client.HTTPConnection) -> Reply:
    """The answer on a connection."""
    answer = connection.getresponse()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Reply(answer.status, headers, answer.read())


def user(stock: str, n: int) -> dict[str, Any]:
    """The body of a registration."""
    return {"stockId": stock, "userId": f"u{n}", "userInfo": {"nickname": "kim", "gender": "F"}}


def lines(stock: str, count: int) -> bytes:
    """The body of a batch."""
    return b"".join(json.dumps(user(stock, n)).encode() + b"\n" for n in range(count))


def drained(where: Place) -> list[dict[str, Any]]:
    """The bodies of all messages on the queue, which are deleted."""
    found = []
    queue = {"QueueUrl": where.queues.url}
    while received := where.queues.client.receive_message(**queue, MaxNumberOfMessages=10).get(
        "Messages"
    ):
        found += [json.loads(message["Body"]) for message in received]
        entries = [
            {"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]}
            for n, message in enumerate(received)
        ]
        where.queues.client.delete_message_batch(**queue, Entries=entries)
    return found


class StartApi(Protocol):
    """Starts an API that lives until the end of the test, or shorter. `environment` is all it gets.
    Returns once it listens, or with `ready=False` at once."""

    def __call__(self, environment: Mapping[str, str], *, ready: bool = True) -> Api: ...


@contextmanager
def apis(directory: Path) -> Iterator[StartApi]:
    """A function that starts APIs, each on a free port. At the end they are killed."""
    started: list[Api] = []

    def start(environment: Mapping[str, str], *, ready: bool = True) -> Api:
        home = directory / f"api-{uuid.uuid4().hex[:8]}"
        api = Api({"API_PORT": "0"} | dict(environment), home)
        started.append(api)
        if ready:
            api.wait_until_ready()
        return api

    try:
        yield start
    finally:
        for api in started:
            api.kill()
            # pytest shows it where the test failed.
            sys.stdout.write(f"--- {api.log}\n{api.log_text()[-20_000:]}")
