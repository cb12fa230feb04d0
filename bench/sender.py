"""Puts messages on a queue without a client's cost: what is measured shares the machine."""

import http.client
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import uuid4

from bench.bodies import Body
from bench.errors import BenchError
from devstack import ports

#: Messages in one call, SQS's limit.
BATCH = 10
#: Seconds between two calls of a steady flow.
TICK = 0.01
HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    # The servers ask for credentials and believe any.
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, "
    "SignedHeaders=host, Signature=0",
    "X-Amz-Date": "20260101T000000Z",
}


@dataclass
class Sender:
    """One queue, on one connection that is kept."""

    port: int
    queue_url: str

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection(ports.HOST, self.port, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def fill(self, body: Body, size: int) -> None:
        """Send so many users."""
        for users in batches((user_id() for _ in range(size)), BATCH):
            self.send([body(user) for user in users])

    def flow(self, body: Body, rate: float, seconds: float) -> dict[str, float]:
        """Send `rate` users a second for so long, evenly; when each was sent, in seconds since
        the epoch."""
        sent: dict[str, float] = {}
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            due = int(rate * passed) - len(sent)
            for users in batches((user_id() for _ in range(due)), BATCH):
                now = time.time()
                self.send([body(user) for user in users])
                sent |= dict.fromkeys(users, now)
            time.sleep(TICK)
        return sent

    def send(self, bodies: list[str]) -> None:
        """Send up to ten messages in one call. Raises BenchError where one is not taken."""
        entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)]
        request = {"QueueUrl": self.queue_url, "Entries": entries}
        answer = call(self._connection, "SendMessageBatch", request)
        if len(answer.get("Successful", ())) != len(bodies):
            raise BenchError(f"the SQS server did not take the messages: {answer}")


def call(connection: http.client.HTTPConnection, action: str, request: Any) -> dict[str, Any]:
    """One call of SQS's API. Raises BenchError where it is refused."""
    headers = HEADERS | {"X-Amz-Target": f"AmazonSQS.{action}"}
    connection.request("POST", "/", json.dumps(request).encode(), headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise BenchError(f"{action}: the SQS server answered {response.status}: {answer[:200]!r}")
    return dict(json.loads(answer))


def batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """The items in lists of `size`, the last one shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def user_id() -> str:
    return uuid4().hex
