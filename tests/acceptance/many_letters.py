"""Reads and redrives many dead letters as Flower does, and prints by how many KiB the memory of
this process grew. SQS is made up: it has its messages nowhere.

    python -m tests.acceptance.many_letters 50000
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devstack.waiting import wait_until
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.requests import Answer, Request
from sqs_broker.testing import FakeSqs
from sqs_broker.tools.commands.dead_letter_queues import Filter
from sqs_broker.tools.flower.letters import Job, Letters

#: Bytes of each body. All of them together are far larger than the memory that may be used.
BODY = 4_096

#: Dead letters that are read first, so that all code is loaded and SQLite's caches are full.
FIRST = 3_000

SECONDS = 120


class MadeUp:
    """An SQS whose dead-letter queue has many messages. Each is received once a read."""

    def __init__(self) -> None:
        self.messages = 0
        self.calls: Counter[str] = Counter()
        self.entries: Counter[str] = Counter()
        self._received = 0

    def open(self) -> None: ...

    def close(self) -> None: ...

    def pause(self, seconds: float) -> None: ...

    def carry(self, request: Request[Any]) -> Answer:
        """Answer a call."""
        self.calls[request.action] += 1
        given = request.parameters.get("Entries", ())
        self.entries[request.action] += len(given)
        return Answer(self._content(request.action, given), "Fri, 02 Jan 2099 03:04:05 GMT")

    def _content(self, action: str, given: Any) -> dict[str, Any]:
        if action == "GetQueueAttributes":
            self._received = 0
            counts = {"ApproximateNumberOfMessages": str(self.messages)}
            return {"Attributes": counts | {"ApproximateNumberOfMessagesNotVisible": "0"}}
        if action == "ReceiveMessage":
            return {"Messages": list(self._next())}
        ids = [{"Id": entry["Id"], "MessageId": "sent"} for entry in given]
        return {"Successful": ids, "Failed": []}

    def _next(self) -> Iterator[dict[str, Any]]:
        for _ in range(min(10, self.messages - self._received)):
            number, self._received = self._received, self._received + 1
            note = {"reason": f"reason {number}", "source_queue": "jobs", "task": "registerUser"}
            body = {"id": f"m-{number}", "action": "registerUser", "data": {"text": "x" * BODY}}
            yield {
                "MessageId": f"sqs-{number}",
                "ReceiptHandle": f"handle-{number}" + "h" * 300,
                "Body": json.dumps(body),
                "Attributes": {
                    "ApproximateReceiveCount": "1",
                    "SentTimestamp": str(int(datetime.now(UTC).timestamp() * 1000)),
                },
                "MessageAttributes": {
                    "dead-letter": {"DataType": "String", "StringValue": json.dumps(note)}
                },
            }


def main(number: int) -> None:
    """Print what was done, as JSON."""
    fake = FakeSqs()
    fake.create_queue("jobs", dead_letters="dead")
    made: Driver = (sqs := MadeUp())
    letters = Letters(fake.options(), made)
    work(letters, sqs, FIRST)
    before = peak()
    seen, redriven = work(letters, sqs, number)
    did = {"kib": peak() - before, "seen": seen, "redriven": redriven}
    sys.stdout.write(json.dumps(did) + "\n")


def work(letters: Letters, sqs: MadeUp, number: int) -> tuple[int, int]:
    """Read so many, look at the last page, and redrive all. Returns how many of each."""
    sqs.messages = number
    assert letters.read(Filter(), "kim")
    ended(letters)
    snapshot = letters.snapshot
    assert snapshot is not None
    assert snapshot.page(number // 50 - 1)
    assert letters.redrive(None, "kim", is_dry=False)
    return snapshot.seen, ended(letters).results["redriven"]


def ended(letters: Letters) -> Job:
    """The job, once it is over."""
    job = letters.job
    assert job is not None
    wait_until(lambda: job.is_over, SECONDS, "the end of the job")
    assert job.error is None, job.error
    return job


def peak() -> int:
    """The most memory that this process had so far, in KiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    main(int(sys.argv[1]))
