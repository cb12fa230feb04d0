"""What each driver promises, of libcurl's and of boto3's: errors, deadlines, forks, connections."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from devstack.waiting import wait_until
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import BOTO3, CURL
from sqs_broker.sqs import requests
from sqs_broker.sqs.boto import Boto
from sqs_broker.sqs.curl import Curl
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import OVERDUE, SqsError, Unreached
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing, Received
from sqs_broker.testing import FakeSqs
from tests.deployments.certificates import Certificates
from tests.unit import scripted
from tests.unit.scripted import MESSAGE, Script

#: Makes a driver for the scripted server.
Make = Callable[..., Driver]

THIRTY = '{"Attributes": {"VisibilityTimeout": "30"}}'


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted.running() as script:
        yield script


@pytest.fixture(params=[CURL, BOTO3])
def make(request: pytest.FixtureRequest, script: Script) -> Iterator[Make]:
    """Makes drivers of each kind, which are closed in the end."""
    made: list[Driver] = []

    def make(endpoint: str = script.url, credentials: Any = None, **how: Any) -> Driver:
        options = script.options(endpoint_url=endpoint, client=request.param)
        if credentials is not None:
            options = replace(options, credentials=credentials)
        made.append(driver_for(options, **{"tries": 1, **how}))
        return made[-1]

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def queue(script: Script, make: Make) -> Queue:
    return Queue(script.queue_url, make(read_timeout=5))


def error_of(queue: Queue) -> SqsError:
    with pytest.raises(SqsError) as raised:
        queue.attributes("All")
    return raised.value


# Errors


def test_what_sqs_refuses_has_its_code_and_the_time_of_its_answer(
    queue: Queue, script: Script
) -> None:
    script.answer('{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"}', 400)
    error = error_of(queue)
    assert (error.code, error.is_no_queue, error.has_reached) == ("QueueDoesNotExist", True, True)
    assert "calling the GetQueueAttributes operation" in str(error)
    assert str(error).endswith(": none")
    assert error.at is not None
    assert error.at.year == 2026


def test_the_code_of_the_older_protocol_has_no_service_before_it(
    queue: Queue, script: Script
) -> None:
    script.answer(
        '{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"}',
        400,
        **{"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"},
    )
    assert error_of(queue).code == "NonExistentQueue"
    assert script.asked[0].headers["x-amzn-query-mode"] == "true"


def test_an_error_of_the_key_of_a_queue_is_one(queue: Queue, script: Script) -> None:
    script.answer('{"__type": "KMS.AccessDeniedException"}', 400)
    error = error_of(queue)
    assert (error.is_of_key, error.is_denied) == (True, True)


@pytest.mark.parametrize("body", ["", "<html>", "502 Bad Gateway"])
def test_a_fault_of_a_server_on_the_way_is_an_error(
    queue: Queue, script: Script, body: str
) -> None:
    script.answer(body, 502)
    error = error_of(queue)
    assert (error.code, error.has_reached) == ("502", True)
    assert not error.is_final
    assert not error.is_denied


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ('{"Attributes": ', {}),
        ("<html></html>", {}),
        ('{"Attributes"', {"Content-Length": "90", "Connection": "close"}),
        ("[]", {}),
        ('{"Attributes": []}', {}),
    ],
    ids=["half of JSON", "no JSON", "cut off", "a list", "of another shape"],
)
def test_an_answer_that_cannot_be_read_did_not_reach_us(
    queue: Queue, script: Script, body: str, headers: dict[str, str]
) -> None:
    script.answer(body, **headers)
    assert not error_of(queue).has_reached


def test_if_nobody_listens_sqs_is_not_reached(make: Make) -> None:
    nobody = "http://127.0.0.1:9"
    error = error_of(Queue(f"{nobody}/1/jobs", make(nobody)))
    assert (error.code, error.has_reached) == ("EndpointConnectionError", False)
    assert not error.may_have_been_done
    assert nobody in str(error)


def test_a_connection_that_sqs_closes_without_an_answer_may_have_done_the_call(
    make: Make, script: Script
) -> None:
    # The server's thread ends with an exception, as it has no answer.
    error = error_of(Queue(script.queue_url, make()))
    assert (error.code, error.may_have_been_done) == ("ConnectionClosedError", True)


def answering(listener: socket.socket, *answers: bytes) -> threading.Thread:
    """A server that gives these answers on one connection, and then closes all that it has."""

    def serve() -> None:
        connection, _ = listener.accept()
        with listener, connection, connection.makefile("rb") as requests_:
            for answer in answers:
                lines = iter(requests_.readline, b"\r\n")
                lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
                requests_.read(int(lengths[0].partition(b":")[2]))
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_call_on_a_connection_that_ends_may_have_been_done_though_sqs_is_away_then(
    make: Make,
) -> None:
    # libcurl sends it again, on a new connection, which is refused.
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    queue = Queue(f"{url}/1/jobs", make(url))
    thread = answering(listener, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"")
    queue.attributes("All")
    error = error_of(queue)
    thread.join()
    assert (error.code, error.may_have_been_done) == ("ConnectionClosedError", True)


def test_an_endpoint_that_is_no_url_is_said_before_the_first_request(make: Make) -> None:
    for endpoint in ("nowhere", "http://127.0.0.1:port"):
        with pytest.raises(ConfigurationError, match="`endpoint_url`"):
            make(endpoint).open()


def test_an_exception_of_another_library_did_not_reach_sqs(queue: Queue) -> None:
    unsendable: Any = object()
    with pytest.raises(Unreached, match="TypeError") as raised:
        queue.send(Outgoing(unsendable))
    assert isinstance(raised.value.__cause__, TypeError)


def test_parameters_of_another_type_are_not_sent_if_they_are_checked(
    make: Make, script: Script
) -> None:
    wrong: Any = {"n": {"DataType": "Number", "StringValue": 5}}
    with pytest.raises(Unreached) as raised:
        Queue(script.queue_url, make(is_checked=True)).send(Outgoing("{}", wrong))
    assert (raised.value.code, raised.value.is_temporary) == ("ParamValidationError", False)
    errors = Queue(script.queue_url, make(is_checked=True)).send_once(
        [Outgoing("{}"), Outgoing("{}", wrong)]
    )
    assert [error and error.code for error in errors] == ["ParamValidationError"] * 2
    assert script.asked == []


# Answers


def test_an_answer_is_read_with_its_time(queue: Queue, script: Script) -> None:
    script.answer(THIRTY)
    attributes = queue.attributes("All")
    assert attributes.values == {"VisibilityTimeout": "30"}
    assert attributes.at is not None


def test_members_without_a_value_are_left_out(queue: Queue, script: Script) -> None:
    script.answer('{"Messages": null}')
    assert queue.receive(10, 0) == []
    attribute = '{"DataType": "Binary", "BinaryValue": "AP8=", "StringValue": null}'
    script.answer(MESSAGE.replace('"Body"', f'"MessageAttributes": {{"a": {attribute}}}, "Body"'))
    (message,) = queue.receive(10, 0)
    assert message.attributes == {"a": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}


def test_the_user_agent_is_the_package_s(queue: Queue, script: Script) -> None:
    script.answer()
    queue.attributes("All")
    assert script.asked[0].headers["User-Agent"].startswith("celery-sqs-broker ")


# Tries


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, ""), (503, ""), (500, '{"__type": "Odd"}'), (400, '{"__type": "ThrottlingException"}')],
)
def test_a_call_that_fails_for_a_moment_is_tried_again(
    make: Make, script: Script, status: int, body: str
) -> None:
    script.answer(body, status)
    script.answer(THIRTY)
    assert Queue(script.queue_url, make(tries=3)).attributes("All").values
    assert len(script.asked) == 2


def test_a_call_is_tried_no_more_often_than_asked_for(make: Make, script: Script) -> None:
    for _ in range(4):
        script.answer("", 500)
    assert error_of(Queue(script.queue_url, make(tries=3))).code == "500"
    assert len(script.asked) == 3


@pytest.mark.parametrize("code", ["AccessDenied", "QueueDoesNotExist"])
def test_what_cannot_be_better_is_not_tried_again(make: Make, script: Script, code: str) -> None:
    script.answer(f'{{"__type": "{code}"}}', 400)
    assert error_of(Queue(script.queue_url, make(tries=3))).code == code
    assert len(script.asked) == 1


def test_an_answer_that_cannot_be_read_is_not_asked_for_again(make: Make, script: Script) -> None:
    script.answer("{")
    assert error_of(Queue(script.queue_url, make(tries=3))).code == "UnreadableAnswer"
    assert len(script.asked) == 1


# Connections


def test_calls_share_a_connection(queue: Queue, script: Script) -> None:
    for _ in range(3):
        script.answer()
        queue.attributes("All")
    assert len(set(script.ports)) == 1


def test_a_driver_is_used_again_after_it_was_closed(make: Make, script: Script) -> None:
    driver = make()
    for _ in range(2):
        script.answer()
        Queue(script.queue_url, driver).attributes("All")
        driver.close()


def test_a_forked_child_has_a_connection_of_its_own(queue: Queue, script: Script) -> None:
    # On one that it shared, each would read the other's answers.
    for _ in range(3):
        script.answer()
    queue.attributes("All")
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # It ends this process if it never sends.
        try:
            queue.attributes("All")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    queue.attributes("All")
    first, childs, third = script.ports
    assert childs != first == third


def test_a_connection_that_sqs_has_closed_is_made_again(queue: Queue, script: Script) -> None:
    for _ in range(2):
        script.answer(THIRTY, Connection="close")
        assert queue.attributes("All").values
    assert len(set(script.ports)) == 2


# Credentials


def expiring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: int = 0) -> None:
    """Credentials that a program makes, each time others, and that end in five minutes: boto3
    renews them from the fifteenth minute on. The program takes long the `hangs`-th time."""
    end = datetime.now(UTC) + timedelta(minutes=5)
    program = tmp_path / "credentials"
    program.write_text(
        f"""#!/bin/sh
echo >> "$0.runs"
n=$(wc -l < "$0.runs" | tr -d " ")
test $n = {hangs} && sleep 5
echo '{{"Version": 1, "AccessKeyId": "KEY'$n'", "SecretAccessKey": "s", \
"SessionToken": "token'$n'", "Expiration": "{end:%Y-%m-%dT%H:%M:%SZ}"}}'
"""
    )
    program.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))


def test_credentials_are_renewed_between_two_calls_with_their_token(
    make: Make, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expiring(tmp_path, monkeypatch)
    queue = Queue(script.queue_url, make(credentials={}))
    for _ in range(3):
        script.answer()
        queue.attributes("All")
    used = [
        (
            asked.headers["Authorization"].partition("Credential=")[2].partition("/")[0],
            asked.headers["X-Amz-Security-Token"],
        )
        for asked in script.asked
    ]
    numbers = [int(key.removeprefix("KEY")) for key, _ in used]
    assert used == [(f"KEY{n}", f"token{n}") for n in numbers]
    assert numbers == sorted(set(numbers))


def test_a_call_ends_in_time_although_its_credentials_are_not_renewed(
    make: Make, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expiring(tmp_path, monkeypatch, hangs=2)
    driver = make(credentials={})
    driver.open()
    began = time.monotonic()
    with pytest.raises(Unreached, match=OVERDUE):
        driver.carry(replace(requests.attributes(script.queue_url, "All"), seconds=1))
    assert time.monotonic() - began < 4
    script.answer(THIRTY)
    assert Queue(script.queue_url, driver).attributes("All").values


def test_a_call_without_credentials_was_not_made(make: Make, script: Script) -> None:
    error = error_of(Queue(script.queue_url, make(credentials={})))
    assert (error.code, error.has_no_credentials) == ("NoCredentialsError", True)
    assert not error.may_have_been_done
    assert script.asked == []


# Proxies and certificates


def test_a_call_goes_through_the_proxy_of_the_environment(
    make: Make, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", script.url)
    script.answer(THIRTY)
    queue = Queue("http://sqs.test/1/jobs", make("http://sqs.test"))
    assert queue.attributes("All").values
    (asked,) = script.asked
    assert (asked.path, asked.headers["Host"]) == ("http://sqs.test/", "sqs.test")


def test_a_call_to_a_host_without_a_proxy_goes_there(
    make: Make, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "sqs.test,127.0.0.1")
    script.answer(THIRTY)
    assert Queue(script.queue_url, make()).attributes("All").values
    assert script.asked[0].path == "/"


def test_a_proxy_that_is_not_there_got_no_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    error = error_of(Queue("https://sqs.test/1/jobs", make("https://sqs.test")))
    assert (error.code, error.may_have_been_done) == ("ProxyConnectionError", False)


def test_a_proxy_of_tls_sees_neither_the_call_nor_its_token(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(65_536))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        token = {
            "aws_access_key_id": "AKID",
            "aws_secret_access_key": "b",
            "aws_session_token": "token",
        }
        driver = make("https://sqs.test", credentials=token)
        error = error_of(Queue("https://sqs.test/1/jobs", driver))
        thread.join()
    assert (error.code, error.may_have_been_done) == ("ProxyConnectionError", False)
    assert seen[0].startswith(b"CONNECT sqs.test:443 ")
    assert b"token" not in seen[0].lower()
    assert b"AKID" not in seen[0]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates.made_in(tmp_path)


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_server_is_trusted_by_the_certificates_of_the_environment(
    make: Make, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(certificates.authority))
    with scripted.running(certificates.server) as script:
        script.answer(THIRTY)
        assert Queue(script.queue_url, make(script.url)).attributes("All").values


def test_a_server_that_nobody_vouches_for_gets_no_call(
    make: Make, certificates: Certificates
) -> None:
    with scripted.running(certificates.server) as script:
        error = error_of(Queue(script.queue_url, make(script.url)))
        assert (error.code, error.may_have_been_done) == ("SSLError", False)
        assert script.asked == []


# Deadlines


def test_a_call_ends_at_its_deadline_though_the_answer_comes_byte_by_byte(
    make: Make, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    driver = make()
    driver.open()
    script.answer(THIRTY, drip=1)
    began = time.monotonic()
    with pytest.raises(Unreached) as raised:
        # The log has one line a minute for each action: no other test purges.
        driver.carry(replace(requests.purge(script.queue_url), seconds=1))
    assert script.asked
    assert time.monotonic() - began < 10
    assert (raised.value.code, raised.value.may_have_been_done) == (OVERDUE, True)
    assert [getattr(record, "event", None) for record in caplog.records] == ["sqs.overdue"]


def test_a_request_can_have_a_deadline_of_its_own(make: Make, script: Script) -> None:
    driver = make(seconds=600)
    driver.open()
    script.answer(THIRTY, drip=0.1)
    with pytest.raises(Unreached, match=OVERDUE):
        driver.carry(replace(requests.attributes(script.queue_url, "All"), seconds=1))


def test_a_try_ends_if_nothing_arrives_for_its_time(make: Make, script: Script) -> None:
    driver = make(read_timeout=0.2, seconds=60)
    script.answer(THIRTY, drip=30)
    began = time.monotonic()
    error = error_of(Queue(script.queue_url, driver))
    assert (error.code, error.may_have_been_done) == ("ReadTimeoutError", True)
    assert time.monotonic() - began < 20


def test_the_call_after_one_that_is_overdue_succeeds_at_once(make: Make, script: Script) -> None:
    driver = make(seconds=1)
    # Otherwise the time could be over before the call has reached the server.
    script.answer()
    driver.carry(replace(requests.attributes(script.queue_url, "All"), seconds=20))
    script.answer(THIRTY, drip=1)
    assert error_of(Queue(script.queue_url, driver)).code == OVERDUE
    script.answer('{"Attributes": {"VisibilityTimeout": "31"}}')
    # Enough for a new client on a busy machine.
    request = replace(requests.attributes(script.queue_url, "All"), seconds=20)
    assert request.read(driver.carry(request)).values == {"VisibilityTimeout": "31"}
    assert len(set(script.ports)) == 2


def test_a_long_poll_has_its_own_time_in_addition(make: Make, script: Script) -> None:
    driver = make(seconds=0.5)
    script.answer()
    driver.carry(replace(requests.attributes(script.queue_url, "All"), seconds=20))
    script.answer('{"Messages": []}', drip=0.05)
    assert Queue(script.queue_url, driver).receive(10, 5) == []


def test_what_an_overdue_receive_brings_is_passed_on_late(make: Make, script: Script) -> None:
    driver = make(seconds=0.5)
    script.answer()
    driver.carry(replace(requests.attributes(script.queue_url, "All"), seconds=20))
    come: list[Received] = []
    script.answer(MESSAGE, drip=0.01)
    with pytest.raises(Unreached):
        Queue(script.queue_url, driver).receive(10, 0, on_late=come.extend)
    wait_until(lambda: come, 30, "the late message")
    assert [message.receipt_handle for message in come] == ["r"]


def test_an_exception_of_a_signal_handler_ends_the_call(make: Make, script: Script) -> None:
    # As Celery's soft time limit does.
    class Limit(Exception):
        pass

    def raise_limit(*_: object) -> None:
        raise Limit

    driver = make()
    driver.open()
    script.answer(THIRTY, drip=1)
    before = signal.signal(signal.SIGALRM, raise_limit)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        with pytest.raises(Limit):
            driver.carry(replace(requests.attributes(script.queue_url, "All"), seconds=60))
        assert time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGALRM, before)
    script.answer(THIRTY)
    assert Queue(script.queue_url, driver).attributes("All").values


# The choice


def test_the_options_name_the_driver(fake: FakeSqs, script: Script) -> None:
    assert isinstance(driver_for(script.options(client=BOTO3)), Boto)
    assert isinstance(driver_for(script.options(client=CURL)), Curl)
    assert driver_for(fake.options(), tries=7) is fake
    assert fake.drivers[-1] == {
        "read_timeout": 10,
        "tries": 7,
        "seconds": 20,
        "is_checked": False,
    }
