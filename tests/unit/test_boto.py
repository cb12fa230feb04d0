"""boto3 as a driver: its exceptions become SqsError, and no client crosses a fork."""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import quote_plus

import pytest

from devstack.waiting import wait_until
from sqs_broker.errors import ConfigurationError
from sqs_broker.machine.calls import MOST_LEFT
from sqs_broker.options import Options
from sqs_broker.sqs import requests
from sqs_broker.sqs.boto import Boto, ask, invoke, quick_client
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import HANGING, OVERDUE, SqsError, Unreached
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing, Received
from sqs_broker.testing import FakeSqs

DATE = "Fri, 02 Jan 2026 03:04:05 GMT"


class Script(BaseHTTPRequestHandler):
    """Gives the answers of a script: status, headers, body."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
    asked: ClassVar[list[dict[str, str]]] = []
    #: Of whom, by the port of each connection.
    ports: ClassVar[list[int]] = []
    #: Seconds before each byte of the next answers; of others there are none.
    drips: ClassVar[list[float]] = []

    #: The bodies that were sent.
    bodies: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.asked.append(dict(self.headers))
        self.ports.append(self.client_address[1])
        status, headers, body = self.answers.pop(0)
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), "Date": DATE, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        pause = self.drips.pop(0) if self.drips else 0.0
        for byte in body if pause else b"":
            time.sleep(pause)
            self.wfile.write(bytes([byte]))
        if not pause:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A server of this machine that answers as a script says."""
    Script.answers, Script.asked, Script.ports, Script.drips = [], [], [], []
    Script.bodies = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def queue(endpoint: str) -> Iterator[Queue]:
    driver = driver_for(options(endpoint), tries=1, read_timeout=5)
    yield Queue(f"{endpoint}/1/jobs", driver)
    driver.close()


def options(endpoint: str) -> Options:
    key = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return Options("us-east-1", {}, endpoint, key)


def answer(body: str, status: int = 200, **headers: str) -> None:
    Script.answers.append((status, headers, body.encode()))


def error_of(queue: Queue) -> SqsError:
    with pytest.raises(SqsError) as raised:
        queue.attributes("All")
    return raised.value


def test_what_sqs_refuses_has_its_code_and_the_time_of_its_answer(queue: Queue) -> None:
    answer('{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"}', 400)
    error = error_of(queue)
    assert (error.code, error.is_no_queue, error.has_reached) == ("QueueDoesNotExist", True, True)
    assert error.at is not None
    assert error.at.year == 2026


def test_the_code_of_the_older_protocol_has_no_service_before_it(queue: Queue) -> None:
    answer(
        '{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"}',
        400,
        **{"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"},
    )
    assert error_of(queue).code == "NonExistentQueue"


@pytest.mark.parametrize("body", ["", "<html>", "502 Bad Gateway"])
def test_a_fault_of_a_server_on_the_way_is_an_error(queue: Queue, body: str) -> None:
    answer(body, 502)
    error = error_of(queue)
    assert not error.is_final
    assert not error.is_denied


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ('{"Attributes": ', {}),
        ("<html></html>", {}),
        ('{"Attributes"', {"Content-Length": "90", "Connection": "close"}),
    ],
    ids=["half of JSON", "no JSON", "cut off"],
)
def test_an_answer_that_cannot_be_read_did_not_reach_us(
    queue: Queue, body: str, headers: dict[str, str]
) -> None:
    answer(body, **headers)
    assert not error_of(queue).has_reached


def test_where_nobody_listens_sqs_is_not_reached(endpoint: str) -> None:
    nobody = "http://127.0.0.1:9"
    error = error_of(Queue(f"{nobody}/1/jobs", Boto(options(nobody), tries=1)))
    assert (error.code, error.has_reached) == ("EndpointConnectionError", False)
    assert nobody in str(error)


def test_an_answer_is_read_with_its_time(queue: Queue) -> None:
    answer('{"Attributes": {"VisibilityTimeout": "30"}}')
    attributes = queue.attributes("All")
    assert attributes.values == {"VisibilityTimeout": "30"}
    assert attributes.at is not None


def test_the_user_agent_is_the_packages(queue: Queue) -> None:
    answer("{}")
    queue.attributes("All")
    assert Script.asked[0]["User-Agent"].startswith("celery-sqs-broker Boto3/")


def test_what_the_library_lets_through_of_others_is_left_as_it_is() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ZeroDivisionError):
        invoke(fail, error=ZeroDivisionError())
    with pytest.raises(Unreached, match="reset"):
        invoke(fail, error=ConnectionResetError("reset"))


def test_an_endpoint_that_is_no_url_is_said_before_the_first_request() -> None:
    for endpoint in ("nowhere", "http://127.0.0.1:port"):
        with pytest.raises(ConfigurationError, match="`endpoint_url`"):
            Boto(options(endpoint)).open()


def test_a_driver_is_used_again_after_it_was_closed(endpoint: str) -> None:
    driver = Boto(options(endpoint))
    queue = Queue(f"{endpoint}/1/jobs", driver)
    for _ in range(2):
        answer("{}")
        queue.attributes("All")
        driver.close()


def test_a_forked_child_has_a_client_of_its_own(endpoint: str) -> None:
    # On a connection that it shared, each would read the other's answers.
    driver = Boto(options(endpoint), tries=1)
    queue = Queue(f"{endpoint}/1/jobs", driver)
    for _ in range(3):
        answer("{}")
    queue.attributes("All")
    pid = os.fork()
    if pid == 0:
        try:
            queue.attributes("All")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    queue.attributes("All")
    first, childs, third = Script.ports
    assert childs != first == third
    driver.close()


# Deadlines

MESSAGE = (
    '{"Messages": [{"MessageId": "1", "ReceiptHandle": "r", "Body": "{}", "Attributes": '
    '{"ApproximateReceiveCount": "1", "SentTimestamp": "1"}}]}'
)


def drip(body: str, pause: float = 0.05) -> None:
    """Answer with one byte after the other: no single read takes long."""
    answer(body)
    Script.drips.append(pause)


def test_a_call_ends_at_its_deadline_though_the_answer_comes_byte_by_byte(
    endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Boto(options(endpoint), tries=1, seconds=2)
    drip('{"Attributes": {"VisibilityTimeout": "30"}}', 1)
    began = time.monotonic()
    error = error_of(Queue(f"{endpoint}/1/jobs", driver))
    assert Script.asked
    assert time.monotonic() - began < 10
    assert (error.code, error.has_reached) == (OVERDUE, False)
    assert [getattr(record, "event", None) for record in caplog.records] == ["sqs.overdue"]


def test_a_request_can_have_a_deadline_of_its_own(endpoint: str) -> None:
    driver = Boto(options(endpoint), tries=1, seconds=600)
    driver.open()
    drip('{"Attributes": {"VisibilityTimeout": "30"}}', 0.1)
    with pytest.raises(Unreached, match=OVERDUE):
        driver.carry(replace(requests.attributes(f"{endpoint}/1/jobs", "All"), seconds=1))


def test_an_exception_of_another_library_did_not_reach_sqs(endpoint: str) -> None:
    unsendable: Any = object()
    with pytest.raises(Unreached, match="TypeError") as raised:
        Queue(f"{endpoint}/1/jobs", Boto(options(endpoint))).send(Outgoing(unsendable))
    assert isinstance(raised.value.__cause__, TypeError)


def test_the_call_after_one_that_is_overdue_succeeds_at_once(endpoint: str) -> None:
    # Enough for a new client.
    driver = Boto(options(endpoint), tries=1, seconds=2)
    queue = Queue(f"{endpoint}/1/jobs", driver)
    drip('{"Attributes": {"VisibilityTimeout": "30"}}', 1)
    assert error_of(queue).code == OVERDUE
    answer('{"Attributes": {"VisibilityTimeout": "31"}}')
    assert queue.attributes("All").values == {"VisibilityTimeout": "31"}
    assert len(set(Script.ports)) == 2  # The connection of the first call is still in use.


def test_a_long_poll_has_its_own_time_in_addition(endpoint: str) -> None:
    driver = Boto(options(endpoint), tries=1, seconds=0.1)
    drip('{"Messages": []}')
    assert Queue(f"{endpoint}/1/jobs", driver).receive(10, 5) == []


def test_what_an_overdue_receive_brings_is_passed_on_late(endpoint: str) -> None:
    driver = Boto(options(endpoint), tries=1, seconds=0.1)
    come: list[Received] = []
    drip(MESSAGE, 0.01)
    with pytest.raises(Unreached):
        Queue(f"{endpoint}/1/jobs", driver).receive(10, 0, on_late=come.extend)
    wait_until(lambda: come, 10, "the late message")
    assert [message.receipt_handle for message in come] == ["r"]


def test_calls_that_hang_are_bounded_in_number(endpoint: str) -> None:
    driver = Boto(options(endpoint), tries=1, seconds=0.01)
    queue = Queue(f"{endpoint}/1/jobs", driver)
    for _ in range(MOST_LEFT + 1):
        drip('{"Attributes": {}}', 1)
    codes = [error_of(queue).code for _ in range(MOST_LEFT + 1)]
    assert codes == [*[OVERDUE] * MOST_LEFT, HANGING]


def test_other_services_have_a_deadline_too(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
    sts = quick_client(options(endpoint), "sts")
    drip("<x></x>", 1)
    with pytest.raises(Unreached, match=OVERDUE):
        ask(sts.get_caller_identity, seconds=0.2)


def test_the_options_name_the_driver(fake: FakeSqs) -> None:
    assert isinstance(driver_for(options("http://127.0.0.1:9")), Boto)
    assert driver_for(fake.options(), tries=7) is fake
    assert fake.drivers[-1] == {
        "read_timeout": 10,
        "tries": 7,
        "seconds": 20,
        "is_checked": False,
    }


# Credentials of a queue, and of a role ---------------------------------------------------------

ROLE = "arn:aws:iam::123456789012:role/worker"


def asked_with() -> list[tuple[str, str, str]]:
    """The key, region and service that each request was signed for."""
    signed = [
        re.search(r"Credential=(\w+)/\d+/([\w-]+)/(\w+)", a["Authorization"]) for a in Script.asked
    ]
    return [match.groups() for match in signed if match]  # type: ignore[misc]


def role_answer(key: str, seconds: float) -> None:
    """STS's answer: credentials that expire in so many seconds."""
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer(
        "<AssumeRoleResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><AssumeRoleResult>"
        f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        f"<SessionToken>t</SessionToken><Expiration>{until}</Expiration></Credentials>"
        "</AssumeRoleResult></AssumeRoleResponse>"
    )


def read(endpoint: str, **given: Any) -> Options:
    """The options of two queues, one of which has credentials and a region of its own."""
    own = {"access_key_id": "AKIAOWN", "secret_access_key": "s", "region": "eu-west-1"}
    urls = {"url": f"{endpoint}/1/own", "dead_letter_url": f"{endpoint}/1/own-dlq"}
    queues = {"jobs": {"url": f"{endpoint}/1/jobs"}, "own": urls | own}
    key = {"aws_access_key_id": "AKIAALL", "aws_secret_access_key": "s"}
    return Options.read(
        {
            "region": "us-east-1",
            "endpoint_url": endpoint,
            "credentials": key,
            "predefined_queues": queues,
        }
        | given
    )


def test_a_queue_is_called_with_its_own_credentials_and_region(endpoint: str) -> None:
    options = read(endpoint)
    with closing(driver_for(options, tries=1)) as driver:
        driver.open()
        for name in ("jobs", "own", "own-dlq", "own"):
            answer("{}")
            Queue(f"{endpoint}/1/{name}", driver).attributes("All")
    own = ("AKIAOWN", "eu-west-1", "sqs")
    assert asked_with() == [("AKIAALL", "us-east-1", "sqs"), own, own, own]


@pytest.fixture
def sts(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint that is also that of STS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
    return endpoint


def test_a_role_is_assumed_and_its_credentials_are_used(sts: str) -> None:
    options = read(sts, sts_role_arn=ROLE, sts_token_timeout=1_800)
    role_answer("ASIAROLE", 1_800)
    with closing(driver_for(options, tries=1)) as driver:
        for _ in range(2):
            answer("{}")
            Queue(f"{sts}/1/jobs", driver).attributes("All")
    calls = asked_with()
    assert calls == [("AKIAALL", "us-east-1", "sts"), *[("ASIAROLE", "us-east-1", "sqs")] * 2]
    assert f"RoleArn={quote_plus(ROLE)}" in Script.bodies[0]
    assert "DurationSeconds=1800" in Script.bodies[0]


def test_a_role_of_fifteen_minutes_is_not_assumed_for_each_call(sts: str) -> None:
    options = read(sts, sts_role_arn=ROLE)
    role_answer("ASIAROLE", 900)
    with closing(driver_for(options, tries=1)) as driver:
        for _ in range(3):
            answer("{}")
            Queue(f"{sts}/1/jobs", driver).attributes("All")
    assert [service for _, _, service in asked_with()] == ["sts", "sqs", "sqs", "sqs"]


@pytest.mark.parametrize(("early", "is_renewed"), [(0, False), (500, True)])
def test_the_credentials_of_a_role_are_renewed_before_they_expire(
    sts: str, early: int, is_renewed: bool
) -> None:
    options = read(sts, sts_role_arn=ROLE, sts_token_buffer_time=early)
    role_answer("ASIAFIRST", 400)
    if is_renewed:
        role_answer("ASIASECOND", 900)
    answer("{}")
    with closing(driver_for(options, tries=1)) as driver:
        Queue(f"{sts}/1/jobs", driver).attributes("All")
    assert asked_with()[-1][0] == ("ASIASECOND" if is_renewed else "ASIAFIRST")


def test_a_queue_s_own_credentials_assume_the_role(sts: str) -> None:
    options = read(sts, sts_role_arn=ROLE)
    role_answer("ASIAROLE", 900)
    answer("{}")
    with closing(driver_for(options, tries=1)) as driver:
        Queue(f"{sts}/1/own", driver).attributes("All")
    assert asked_with() == [("AKIAOWN", "eu-west-1", "sts"), ("ASIAROLE", "eu-west-1", "sqs")]


def test_a_role_that_sts_refuses_is_named(sts: str) -> None:
    options = read(sts, sts_role_arn=ROLE)
    answer("<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>", 403)
    with closing(driver_for(options, tries=1)) as driver:
        error = error_of(Queue(f"{sts}/1/jobs", driver))
    assert (error.code, error.has_no_credentials) == ("AssumeRole: AccessDenied", True)


def test_the_project_s_client_config_is_used(endpoint: str) -> None:
    options = read(endpoint, **{"client-config": {"user_agent_extra": "shop/7"}})
    with closing(driver_for(options, tries=1)) as driver:
        answer("{}")
        Queue(f"{endpoint}/1/jobs", driver).attributes("All")
    assert "shop/7" in Script.asked[0]["User-Agent"]


@pytest.mark.parametrize("given", [{"proxis": 1}, {"s3": {"addressing_style": "x"}}])
def test_a_client_config_that_botocore_does_not_take_is_named(
    endpoint: str, given: dict[str, Any]
) -> None:
    options = read(endpoint, **{"client-config": given})
    with pytest.raises(ConfigurationError, match="`client-config` has a name or a value"):
        driver_for(options, tries=1)
