"""The Lambda function as a real process: AWS's own runtime client, and a Runtime API that a test
feeds. https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from devstack.ports import HOST
from tests.growing import log_lines
from tests.services import Queues

#: Seconds for the start of a sandbox, and for an invocation.
SECONDS = 60

HANDLER = "app.lambda_handler.handler"

#: The variables that Lambda sets, whose values do not matter here.
OF_LAMBDA = {
    "AWS_LAMBDA_FUNCTION_NAME": "registrations",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/registrations",
    "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
    "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
}


@dataclass(frozen=True)
class Answer:
    """How an invocation ended."""

    kind: str
    """`response` or `error`; `exit` if the process ended."""
    content: Any
    seconds: float

    @property
    def returned(self) -> list[str]:
        """The ids that the function returned. Fails if it raised."""
        assert self.kind == "response", self.content
        return [failure["itemIdentifier"] for failure in self.content["batchItemFailures"]]


@dataclass
class RuntimeApi:
    """The HTTP server that the runtime client asks for events."""

    timeout: float
    #: Pairs of a request id and the body of an event.
    events: "Queue[tuple[str, bytes]]" = field(default_factory=Queue)
    answers: "Queue[tuple[str, Any]]" = field(default_factory=Queue)
    is_ready: threading.Event = field(default_factory=threading.Event)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.is_ready.set()
                id_, event = api.events.get()
                headers = {
                    "Lambda-Runtime-Aws-Request-Id": id_,
                    "Lambda-Runtime-Deadline-Ms": str(int((time.time() + api.timeout) * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:1:function:f",
                    "Content-Type": "application/json",
                }
                with suppress(OSError):
                    self._send(200, event, headers)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = "init" if "/init/" in self.path else self.path.rsplit("/", 1)[-1]
                self._send(202, b'{"status": "OK"}', {"Content-Type": "application/json"})
                api.answers.put((kind, json.loads(body or b"null")))

            def _send(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class Sandbox:
    """A process that runs the function. Used through `sandbox`."""

    def __init__(self, api: RuntimeApi, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._api = api
        self._process = process
        self._log = log
        self._invocations = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Return once it asks for its first event. Fails if the start has failed."""
        deadline = time.monotonic() + SECONDS
        while not self._api.is_ready.wait(0.05):
            assert self._process.poll() is None, self.log_text()
            assert self._api.answers.empty(), self.log_text()
            assert time.monotonic() < deadline, self.log_text()

    def invoke(self, event: Any) -> Answer:
        """Pass one event, and wait for the end of the invocation."""
        self._invocations += 1
        began = time.monotonic()
        content = event if isinstance(event, bytes) else json.dumps(event).encode()
        self._api.events.put((f"00000000-0000-0000-0000-{self._invocations:012d}", content))
        while time.monotonic() - began < SECONDS:
            with suppress(Empty):
                return Answer(*self._api.answers.get(timeout=0.05), time.monotonic() - began)
            if (status := self._process.poll()) is not None and self._api.answers.empty():
                return Answer("exit", status, time.monotonic() - began)
        raise AssertionError(f"the invocation does not end:\n{self.log_text()}")

    def freeze(self) -> None:
        """Stop the process, as Lambda does between two invocations."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process continue."""
        self._process.send_signal(signal.SIGCONT)

    def log_text(self) -> str:
        """All it wrote to stdout and stderr."""
        return self._log.read_text(errors="replace")

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The JSON lines of its log; with `event`, those of this event."""
        return log_lines(self._log, event)

    def metrics(self) -> list[dict[str, Any]]:
        """Its metric lines."""
        return [line for line in self.log_lines() if "_aws" in line]


@contextmanager
def sandbox(
    directory: Path,
    environment: Mapping[str, str],
    *,
    root: Path,
    python: Sequence[str | Path] = (sys.executable,),
    timeout: float = 30.0,
    handler: str = HANDLER,
) -> Iterator[Sandbox]:
    """A sandbox of the function whose code is in `root`, until the end of the block. `environment`
    is all that it gets, beside what Lambda sets."""
    api = RuntimeApi(timeout)
    server = ThreadingHTTPServer((HOST, 0), api.handler())
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log = directory / "function.log"
    of_lambda = OF_LAMBDA | {"AWS_LAMBDA_RUNTIME_API": f"{HOST}:{server.server_address[1]}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*python, "-m", "awslambdaric", handler],
            cwd=root,
            env={"LAMBDA_TASK_ROOT": str(root), **of_lambda, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    made = Sandbox(api, process, log)
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        server.shutdown()
        server.server_close()
        sys.stdout.write(f"--- {log}\n{made.log_text()}")


def event_of(queues: Queues, visibility: int = 210) -> dict[str, Any]:
    """Receive a batch as Lambda does, and make an event of it."""
    received = queues.client.receive_message(
        QueueUrl=queues.url,
        MaxNumberOfMessages=10,
        VisibilityTimeout=visibility,
        WaitTimeSeconds=1,
        MessageSystemAttributeNames=["All"],
        MessageAttributeNames=["All"],
    ).get("Messages", [])
    return {"Records": [_record(message, queues.name) for message in received]}


def _record(message: Mapping[str, Any], queue: str) -> dict[str, Any]:
    spelled = {"StringValue": "stringValue", "DataType": "dataType"}
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": dict(message["Attributes"]),
        "messageAttributes": {
            name: {spelled[key]: text for key, text in value.items() if key in spelled}
            for name, value in message.get("MessageAttributes", {}).items()
        },
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:us-east-1:000000000000:{queue}",
        "awsRegion": "us-east-1",
    }
