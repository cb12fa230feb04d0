"""What libcurl's driver does as no other one: it signs, corrects the clock, keeps its thread."""

import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from devstack.waiting import wait_until
from sqs_broker.machine.calls import MOST_LEFT
from sqs_broker.options import CURL, Options
from sqs_broker.sqs.access import Key, Route, access_for
from sqs_broker.sqs.curl import Curl
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.handle import Handle
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from tests.deployments.certificates import Certificates
from tests.unit import scripted
from tests.unit.scripted import Asked, Script

ROOT = Path(__file__).parents[2]

REFUSED = '{"__type": "com.amazon.coral.service#InvalidSignatureException"}'

KEY = Key("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)


@pytest.fixture(scope="module")
def signed() -> Iterator[Script]:
    """A server for many requests."""
    with scripted.running() as script:
        yield script


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted.running() as script:
        yield script


@pytest.fixture
def driver(script: Script) -> Iterator[Curl]:
    driver = Curl(script.options(client=CURL), tries=1)
    yield driver
    driver.close()


@pytest.fixture
def queue(script: Script, driver: Curl) -> Queue:
    return Queue(script.queue_url, driver)


def error_of(queue: Queue) -> SqsError:
    with pytest.raises(SqsError) as raised:
        queue.attributes("All")
    return raised.value


# Signatures


def signature(asked: Asked, url: str, key: Key, region: str) -> str:
    """The header `Authorization` that botocore's signer gives this request."""
    given = {name.lower(): value for name, value in asked.headers.items()}
    names = re.findall("SignedHeaders=([^,]+)", given["authorization"])[0].split(";")
    request = AWSRequest("POST", url + asked.path, {n: given[n] for n in names}, data=asked.body)
    request.context["timestamp"] = given["x-amz-date"]
    signer = SigV4Auth(Credentials(key.id, key.secret), "sqs", region)
    signed = signer.signature(
        signer.string_to_sign(request, signer.canonical_request(request)), request
    )
    scope = f"{given['x-amz-date'][:8]}/{region}/sqs/aws4_request"
    return (
        f"AWS4-HMAC-SHA256 Credential={key.id}/{scope}, SignedHeaders={';'.join(names)}, "
        f"Signature={signed}"
    )


visible = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)


@given(
    key=st.builds(Key, st.from_regex(r"\A[A-Z0-9]{4,20}\Z"), visible, st.none() | visible),
    body=st.binary(max_size=3000) | st.text(max_size=200).map(str.encode),
    region=st.sampled_from(["us-east-1", "us-gov-west-1", "elasticmq"]),
    date=st.none() | st.datetimes(timezones=st.just(UTC)).filter(lambda at: at.year >= 1000),
    action=st.sampled_from(["ReceiveMessage", "DeleteMessageBatch", "SendMessage"]),
)
def test_each_signature_is_botocore_s(
    signed: Script, key: Key, body: bytes, region: str, date: datetime | None, action: str
) -> None:
    headers = [
        "Content-Type: application/x-amz-json-1.0",
        f"X-Amz-Target: AmazonSQS.{action}",
        "x-amzn-query-mode: true",
        "Expect:",
        *([f"X-Amz-Security-Token: {key.token}"] if key.token else []),
        *([f"X-Amz-Date: {date:%Y%m%dT%H%M%SZ}"] if date else []),
    ]
    signed.answer()
    handle = Handle(Route(f"{signed.url}/", region, None, None), "test")
    try:
        handle.start(key, headers, body)
        assert handle.wait(time.monotonic() + 20, 20)
        assert handle.result().status == 200
    finally:
        handle.close()
    asked = signed.asked[-1]
    assert asked.body == body
    if date:
        assert asked.headers["X-Amz-Date"] == f"{date:%Y%m%dT%H%M%SZ}"
    assert asked.headers["Authorization"] == signature(asked, signed.url, key, region)


def test_the_token_of_a_session_is_signed_with_the_call(script: Script) -> None:
    credentials = {
        "aws_access_key_id": KEY.id,
        "aws_secret_access_key": KEY.secret,
        "aws_session_token": "token//with+odd=chars==",
    }
    driver = Curl(script.options(credentials=credentials), tries=1)
    script.answer()
    Queue(script.queue_url, driver).attributes("All")
    driver.close()
    (asked,) = script.asked
    assert asked.headers["X-Amz-Security-Token"] == "token//with+odd=chars=="
    assert "x-amz-security-token" in asked.headers["Authorization"]
    assert asked.headers["Authorization"] == signature(asked, script.url, KEY, "us-east-1")


def test_a_token_that_would_add_a_header_is_not_sent_and_not_shown(script: Script) -> None:
    token = "secret\r\nX-Evil: 1"
    credentials = {
        "aws_access_key_id": "a",
        "aws_secret_access_key": "b",
        "aws_session_token": token,
    }
    driver = Curl(script.options(credentials=credentials), tries=1)
    error = error_of(Queue(script.queue_url, driver))
    assert not error.has_reached
    assert "secret" not in str(error)
    assert script.asked == []


# The clock


def signed_at(asked: Asked) -> datetime:
    return datetime.strptime(asked.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def is_about(at: datetime, other: datetime) -> bool:
    return abs((at - other).total_seconds()) < 60


@pytest.mark.parametrize(
    "code", ["InvalidSignatureException", "RequestTimeTooSkewed", "SignatureDoesNotMatch"]
)
@pytest.mark.parametrize("off", [timedelta(minutes=10), timedelta(days=-40)])
def test_a_call_that_is_refused_for_its_time_is_signed_with_that_of_sqs(
    queue: Queue, script: Script, off: timedelta, code: str
) -> None:
    theirs = datetime.now(UTC) + off
    script.answer(f'{{"__type": "{code}"}}', 403, Date=format_datetime(theirs, usegmt=True))
    script.answer()
    script.answer()
    queue.attributes("All")
    queue.attributes("All")
    first, second, third = map(signed_at, script.asked)
    assert is_about(first, datetime.now(UTC))
    assert is_about(second, theirs)
    assert is_about(third, theirs)


def test_a_clock_that_is_right_again_is_used_again(queue: Queue, script: Script) -> None:
    now = datetime.now(UTC)
    ahead = format_datetime(now + timedelta(hours=1), usegmt=True)
    script.answer(REFUSED, 403, Date=ahead)
    script.answer()
    queue.attributes("All")
    script.answer(REFUSED, 403, Date=format_datetime(now, usegmt=True))
    script.answer()
    queue.attributes("All")
    assert is_about(signed_at(script.asked[-1]), now)


def test_a_call_that_was_signed_before_another_one_corrected_the_clock_is_signed_again(
    script: Script,
) -> None:
    access = access_for(script.options())
    theirs, before = datetime.now(UTC) + timedelta(hours=1), access.ahead
    assert access.correct_clock(theirs, before)
    assert access.correct_clock(theirs, before)
    assert not access.correct_clock(theirs, access.ahead)


def test_a_wrong_key_is_refused_once(queue: Queue, script: Script) -> None:
    script.answer(REFUSED, 403, Date=format_datetime(datetime.now(UTC), usegmt=True))
    assert error_of(queue).code == "InvalidSignatureException"
    assert len(script.asked) == 1


def test_a_time_that_does_not_help_is_tried_once(queue: Queue, script: Script) -> None:
    for _ in range(2):
        script.answer(REFUSED, 403)
    assert error_of(queue).code == "InvalidSignatureException"
    assert len(script.asked) == 2


def test_a_wrong_clock_is_logged(
    queue: Queue, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    # The log has one line a minute of all tests of a process.
    with caplog.at_level(logging.WARNING):
        theirs = datetime.now(UTC) - timedelta(seconds=700)
        script.answer(REFUSED, 403, Date=format_datetime(theirs, usegmt=True))
        script.answer()
        queue.attributes("All")
    for record in caplog.records:
        assert vars(record)["event"] == "sqs.clock"
        assert "ahead of that of SQS" in record.getMessage()


# Answers and bodies


def test_an_answer_whose_headers_are_cut_off_cannot_be_read() -> None:
    # libcurl takes it for a whole one.
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while not connection.recv(65_536).endswith(b"}"):
                    pass
                connection.sendall(b"HTTP/1.1 200 OK\r\nConte")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        key = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        driver = Curl(Options("us-east-1", {}, url, key), tries=1)
        error = error_of(Queue(f"{url}/1/jobs", driver))
        thread.join()
    assert (error.code, error.may_have_been_done) == ("UnreadableAnswer", True)


def test_a_long_body_is_sent_without_a_question_before_it(queue: Queue, script: Script) -> None:
    script.answer()
    queue.send(Outgoing("x" * 2_000_000))
    (asked,) = script.asked
    assert "Expect" not in asked.headers
    assert len(asked.body) > 2_000_000


# Threads and connections


def test_a_call_takes_no_second_thread(queue: Queue, script: Script) -> None:
    script.answer()
    queue.attributes("All")
    names: list[str] = []

    def look() -> None:
        wait_until(lambda: len(script.asked) == 2, 20, "the call")
        names.extend(thread.name for thread in threading.enumerate())

    looks = threading.Thread(target=look)
    before = {thread.name for thread in threading.enumerate()}
    looks.start()
    script.answer('{"Attributes": {}}', drip=0.03)
    queue.attributes("All")
    looks.join()
    new = set(names) - before - {looks.name}
    assert not [name for name in new if name.startswith("sqs")], new


def test_calls_of_several_threads_do_not_wait_for_each_other(queue: Queue, script: Script) -> None:
    script.answer('{"Attributes": {}}', drip=0.06)
    slow = threading.Thread(target=queue.attributes, args=("All",))
    slow.start()
    wait_until(lambda: script.asked, 20, "the slow call")
    script.answer()
    queue.attributes("All")
    assert slow.is_alive()
    slow.join()
    assert len(set(script.ports)) == 2


def test_a_late_answer_waits_on_no_more_than_some_threads(script: Script) -> None:
    Curl(script.options()).open()
    driver = Curl(script.options(), tries=1, seconds=0.01)
    queue = Queue(script.queue_url, driver)
    before = set(threading.enumerate())
    for _ in range(25):
        script.answer('{"Messages": []}', drip=3)
        with pytest.raises(Unreached):
            queue.receive(10, 0, on_late=lambda _: None)
    new = set(threading.enumerate()) - before
    assert len([thread for thread in new if thread.name == "sqs-call"]) <= MOST_LEFT


def test_the_drivers_of_a_process_share_one_session(script: Script) -> None:
    options = script.options()
    assert access_for(options) is access_for(options)
    assert access_for(options) is not access_for(script.options(region="eu-west-1"))


def test_a_session_is_not_shared_if_the_environment_has_changed(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = access_for(script.options())
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test")
    assert access_for(script.options()) is not before


# Forks

#: Calls the server, forks a child that collects all that it has and ends as any program does, and
#: calls the server again.
FORKS = """
import gc, os, sys
from sqs_broker.options import Options
from sqs_broker.sqs.curl import Curl
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing

key = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
url = sys.argv[1]
queue = Queue(f"{url}/1/jobs", Curl(Options("us-east-1", {}, url, key), tries=1))
queue.attributes("All")
if pid := os.fork():
    os.waitpid(pid, 0)
    queue.attributes("All")
else:
    del queue
    gc.collect()
"""


def test_a_child_neither_closes_nor_collects_what_it_inherited(tmp_path: Path) -> None:
    # The end of a TLS connection would be sent on the parent's.
    certificates = Certificates.made_in(tmp_path)
    with scripted.running(certificates.server) as script:
        script.answer()
        script.answer()
        environment = {"PYTHONPATH": str(ROOT), "AWS_CA_BUNDLE": str(certificates.authority)}
        run([sys.executable, "-c", FORKS, script.url], environment)
        first, second = script.ports
        assert first == second


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# A machine without it

CHOICE = """
import logging
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(event)s %(message)s")
from sqs_broker.options import Options
from sqs_broker.sqs.drivers import driver_for

for _ in range(2):
    print(type(driver_for(Options("us-east-1", {}, client=CLIENT))).__name__)
"""

OLD = "import pycurl; pycurl.version_info = lambda: (11, '8.9.1')"
WITHOUT_DNS = """
import pycurl
built = pycurl.version_info()
pycurl.version_info = lambda: (*built[:4], built[4] & ~pycurl.VERSION_ASYNCHDNS, *built[5:])
"""
UNSIGNED = "import pycurl; del pycurl.AWS_SIGV4"
NONE = "import sys; sys.modules['pycurl'] = None"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (NONE, "pycurl cannot be imported"),
        (OLD, "libcurl 8.9.1, older than 8.10.0"),
        (UNSIGNED, "pycurl without AWS_SIGV4"),
        (WITHOUT_DNS, "libcurl without AsynchDNS"),
    ],
    ids=["none", "old", "unsigned", "dns"],
)
@pytest.mark.parametrize(("client", "level"), [(None, "INFO"), ("curl", "WARNING")])
def test_without_a_libcurl_that_can_sign_boto3_calls_sqs_and_one_line_says_so(
    change: str, why: str, client: str | None, level: str
) -> None:
    program = f"{change}\nCLIENT = {client!r}\n{CHOICE}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["Boto", "Boto"]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{level} sqs.client SQS is called with boto3, not with libcurl: {why}")
