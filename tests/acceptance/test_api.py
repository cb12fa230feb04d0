"""The HTTP API in a process of its own, in front of a real SQS server and a worker."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.api_process import (
    NDJSON,
    Api,
    Reply,
    StartApi,
    apis,
    drained,
    lines,
    reply_of,
    user,
)
from tests.acceptance.worker import Place, StartWorker
from tests.faults import proxy
from tests.faults.proxy import RESET, SILENT, THROTTLED, FaultProxy
from tests.services import wait_until

SEND = "SendMessageBatch"


@pytest.fixture
def start_api(tmp_path: Path) -> Iterator[StartApi]:
    """Starts APIs that live until the end of the test, or shorter."""
    with apis(tmp_path) as start:
        yield start


@pytest.fixture
def faults(where: Place) -> Iterator[FaultProxy]:
    """A proxy in front of the SQS server."""
    with proxy.running(where.queues.endpoint_url) as (made, _):
        yield made


def test_a_registration_over_http_is_a_user_in_mongodb(
    where: Place, start_api: StartApi, start_worker: StartWorker
) -> None:
    api = start_api(where.environment)
    answer = api.post("/registrations", user("http", 1), X_Request_Id="r-1")
    assert (answer.status, answer.headers["x-request-id"]) == (202, "r-1")
    again = api.post("/registrations", user("http", 1))
    assert again.json() == answer.json()
    assert api.post("/produce", {"input": 41}).status == 202
    target = answer.headers["location"]
    assert api.get(target).json()["state"] == "pending"
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(api.get, f"{target}?wait=50")
        worker = start_worker(where.environment)
        state = waiting.result(60).json()
    assert (state["state"], state["user"]["userId"]) == ("registered", "u1")
    assert api.get("/users/http/u1").json() == state["user"]
    assert api.get("/users?stockId=http").json() == {"users": [state["user"]], "next": None}
    conflict = api.post("/registrations", user("http", 1) | {"money": 5}).headers["location"]
    assert api.get(f"{conflict}?wait=30").json()["state"] == "conflict"
    worker.wait_for(where.queues.is_empty, 60, "an empty queue")
    assert api.get("/count").json() == {"count": 1}
    assert api.get("/readyz").json()["dependencies"] == {"sqs": "ok", "mongodb": "ok"}
    (stored,) = where.database["users"].find({"stock_id": "http"})
    assert stored["registration"]["message_id"] == answer.json()["id"]
    assert where.database["increments"].count_documents({"input": 41}) == 1


def test_the_queue_and_its_dead_letters_are_counted(own: Place, start_api: StartApi) -> None:
    api = start_api(own.environment)
    client, url, dead = own.queues.client, own.queues.url, own.queues.dead_letter_url
    for each in (url, dead):
        client.send_message(QueueUrl=each, MessageBody="x")
    client.receive_message(QueueUrl=url, WaitTimeSeconds=5, VisibilityTimeout=60)
    for delay in (0, 0, 60):
        client.send_message(QueueUrl=url, MessageBody="x", DelaySeconds=delay)
    queue, letters = api.get("/queues").json()["queues"]
    counts = [queue["visible"], queue["inFlight"], queue["delayed"], letters["visible"]]
    assert counts == [2, 1, 1, 1]
    assert (queue["isKnown"], queue["deadLettersOf"]) == (True, None)
    assert letters["deadLettersOf"] == queue["queue"]
    # Only CloudWatch knows the age.
    assert queue["oldest"] is None


@pytest.mark.slow
def test_what_was_answered_before_a_kill_is_stored_and_the_rest_may_be_repeated(
    where: Place, start_api: StartApi, start_worker: StartWorker, faults: FaultProxy
) -> None:
    environment = {**where.environment, "AWS_ENDPOINT_URL": faults.url}
    api = start_api(environment)
    accepted: set[str] = set()
    lock = threading.Lock()

    def register(n: int) -> None:
        with suppress(OSError, HTTPException):
            answer = api.post("/registrations", user("single", n))
            if answer.status == 202:
                with lock:
                    accepted.add(answer.json()["id"])

    body = lines("batch", 3_000)
    with ThreadPoolExecutor(20) as clients:
        batch = clients.submit(lambda: api.post("/registrations/batch", body, NDJSON))
        singles = [clients.submit(register, n) for n in range(1_000)]
        # In the middle of the batch: not before its first calls, and not after its last.
        wait_until(lambda: faults.calls[SEND] > 100, 60, "a hundred calls")
        api.kill()
        assert isinstance(batch.exception(60), OSError | HTTPException)
        for single in singles:
            single.result(60)
    assert accepted

    again = start_api(environment)
    answer = again.post("/registrations/batch", body, NDJSON)
    assert (answer.status, answer.json()["accepted"]) == (202, 3_000)
    with ThreadPoolExecutor(20) as clients:
        statuses = set(
            clients.map(
                lambda n: again.post("/registrations", user("single", n)).status, range(1_000)
            )
        )
    assert statuses == {202}
    worker = start_worker(where.environment)
    worker.wait_for(where.queues.is_empty, 90, "an empty queue")
    users = where.database["users"]
    stored = users.distinct("registration.message_id", {"stock_id": "single"})
    assert accepted <= set(stored)
    assert users.count_documents({"stock_id": "single"}) == 1_000
    assert users.count_documents({"stock_id": "batch"}) == 3_000
    stocks = {
        json.loads(letter["Body"])["data"]["stockId"] for letter in where.queues.dead_letters()
    }
    assert not stocks & {"single", "batch"}


def test_a_stop_cuts_off_no_request_and_sends_what_was_gathered(
    where: Place, start_api: StartApi, faults: FaultProxy
) -> None:
    api = start_api({**where.environment, "AWS_ENDPOINT_URL": faults.url})
    faults.hold(SEND)
    with ThreadPoolExecutor(50) as clients:
        batch = clients.submit(
            lambda: api.post("/registrations/batch", lines("stop-batch", 500), NDJSON)
        )
        singles = [
            clients.submit(lambda n=n: api.post("/registrations", user("stop", n)))
            for n in range(40)
        ]
        wait_until(lambda: faults.is_holding(SEND), 30, "a call")
        # All are in the process: the server has taken their connections.
        wait_until(lambda: api.connections() >= 41, 30, "all connections")
        stopping = clients.submit(api.stop, 60)
        wait_until(lambda: api.log_lines("api.stopping"), 30, "the stop")
        faults.let_go(SEND)
        answers = [single.result(60) for single in singles]
        assert [answer.status for answer in answers] == [202] * 40
        assert batch.result(60).json()["accepted"] == 500
        assert stopping.result(60) == 0
    ids = {body["id"] for body in drained(where)}
    assert {answer.json()["id"] for answer in answers} <= ids
    assert len(ids) == 540


def test_while_it_drains_it_serves_and_is_not_ready(where: Place, start_api: StartApi) -> None:
    api = start_api({**where.environment, "API_DRAIN_SECONDS": "3"})
    assert api.get("/readyz").status == 200
    with ThreadPoolExecutor(1) as clients:
        stopping = clients.submit(api.stop, 60)
        wait_until(lambda: api.log_lines("api.stopping"), 30, "the stop")
        ready = api.get("/readyz")
        assert (ready.status, ready.json()["status"]) == (503, "draining")
        assert ready.headers["connection"] == "close"
        assert api.post("/registrations", user("drain", 1)).status == 202
        assert stopping.result(60) == 0
    drained(where)


@pytest.mark.parametrize("fault", [SILENT, RESET, THROTTLED], ids=lambda fault: fault.name)
def test_while_sqs_fails_nothing_is_accepted_and_each_answer_comes_in_time(
    where: Place, start_api: StartApi, faults: FaultProxy, fault: Any
) -> None:
    api = start_api({**where.environment, "AWS_ENDPOINT_URL": faults.url, "API_SEND_TIMEOUT": "2"})
    faults.fail(SEND, fault)
    with ThreadPoolExecutor(30) as clients:
        singles = [
            clients.submit(lambda n=n: api.post("/registrations", user("away", n)))
            for n in range(30)
        ]
        answers = [single.result(10) for single in singles]
    assert {answer.status for answer in answers} == {503}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert api.get("/healthz").status == 200
    faults.heal(SEND)

    def is_back() -> Reply | None:
        answer = api.post("/registrations", user("away", 1))
        return answer if answer.status == 202 else None

    assert api.wait_for(is_back, 30, "an accepted registration")
    assert api.get("/readyz").json()["dependencies"]["sqs"] == "ok"
    assert {line["error"] for line in api.log_lines("send.failed")}
    assert {body["data"]["userId"] for body in drained(where)} == {"u1"}


# Connections


def raw(api: Api, data: bytes, seconds: float = 30) -> bytes:
    """What the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=seconds) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        found = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                found += part
        return found


@pytest.mark.slow
def test_slow_and_large_headers_end_the_connection(where: Place, start_api: StartApi) -> None:
    api = start_api(where.environment)
    with ThreadPoolExecutor(5) as clients:
        slow = clients.submit(raw, api, b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        silent = clients.submit(raw, api, b"")
        large = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40_000
        whole = raw(api, large + b"\r\n\r\n")
        endless = raw(api, large)
        none = raw(api, b"nonsense\r\n\r\n")
        assert api.get("/healthz").status == 200
        assert slow.result(30).startswith(b"HTTP/1.1 408 ")
        assert silent.result(30).startswith(b"HTTP/1.1 408 ")
    assert whole.startswith(b"HTTP/1.1 431 ")
    assert endless.startswith(b"HTTP/1.1 431 ")
    assert none.startswith(b"HTTP/1.1 400 ")
    for answer in (whole, endless, none):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == int(head[9:12])


def test_a_connection_is_kept_for_the_next_request(where: Place, start_api: StartApi) -> None:
    api = start_api({**where.environment, "API_KEEP_ALIVE": "1"})
    connection = api.connect()
    for _ in range(3):
        connection.request("GET", "/healthz")
        assert reply_of(connection).status == 200
    kept = connection.sock
    assert kept is not None
    # The server closes it once it is idle for too long.
    kept.settimeout(20)
    assert kept.recv(1) == b""
    connection.close()


def test_a_large_upload_is_refused_before_it_is_sent(where: Place, start_api: StartApi) -> None:
    api = start_api(where.environment)
    head = (
        b"POST /registrations/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
    )
    answer = raw(api, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_each_form_of_a_request_has_its_answer_on_one_connection(
    where: Place, start_api: StartApi
) -> None:
    api = start_api(where.environment)
    body = json.dumps(user("forms", 1)).encode()
    head = (
        b"POST /registrations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n" % len(body)
    )
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        answers = connection.makefile("rb")

        def answered() -> tuple[int, bytes]:
            status = int(answers.readline().split()[1])
            headers = dict(line.split(b": ", 1) for line in iter(answers.readline, b"\r\n"))
            return status, headers.get(b"content-length", b"0").strip()

        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert answered() == (100, b"0")
        connection.sendall(body)
        status, length = answered()
        assert (status, json.loads(answers.read(int(length)))["state"]) == (202, "pending")
        # An answer to HEAD has no body, and the next one follows it at once.
        for _ in range(2):
            connection.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answered()[0] == 405
        connection.sendall((head + b"\r\n" + body) * 2)
        ids = []
        for _ in range(2):
            status, length = answered()
            ids.append(json.loads(answers.read(int(length)))["id"])
            assert status == 202
        assert ids[0] == ids[1]
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        status, length = answered()
        assert (status, json.loads(answers.read())) == (200, {"status": "ok"})
    drained(where)


# The start


def started(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.api", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"API_ADDRESS": "0.0.0.0"}, "API_KEYS"),
        ({"API_KEYS": "nonsense"}, "API_KEYS"),
        ({"API_PORT": "x"}, "API_PORT"),
        ({"MONGO_URI": ""}, "MONGO_URI"),
        ({"API_ADDRESS": "192.0.2.1", "API_KEYS": f"a:{'0' * 64}"}, "API_ADDRESS"),
    ],
)
def test_it_does_not_start_open_or_without_a_setting(
    where: Place, settings: dict[str, str], named: str
) -> None:
    outcome = started({**where.environment, "API_PORT": "0", **settings})
    assert outcome.returncode == 1
    (line,) = outcome.stderr.strip().splitlines()
    assert named in line


def test_a_key_that_the_command_makes_opens_the_api(where: Place, start_api: StartApi) -> None:
    outcome = started(dict(os.environ), "key", "app", "--scope", "operate", "--scope", "register")
    key, entry = (line.rpartition(": ")[2] for line in outcome.stdout.splitlines())
    api = start_api({**where.environment, "API_KEYS": entry})
    assert api.get("/queues").status == 401
    queues = api.get("/queues", X_API_Key=key).json()["queues"]
    assert [queue["queue"] for queue in queues] == [
        where.queues.name,
        where.queues.dead_letter_url.rpartition("/")[2],
    ]
    assert key not in api.log_text()
