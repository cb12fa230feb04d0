"""A call that sends a message ends in time, and its error says all that is known."""

import asyncio
import json
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from sqs_broker import PublishError, SendError, SqsError, install
from sqs_broker.errors import ConfigurationError
from sqs_broker.machine.offloading import THREADS
from sqs_broker.options import CLIENTS, Options
from sqs_broker.sqs.errors import OVERDUE, NoCredentials, Unreached
from sqs_broker.sqs.requests import Answer, Request
from sqs_broker.sqs.sender import sender_for
from sqs_broker.testing import FakeSqs
from tests.services import wait_until

SEND = "SendMessage"
JOBS = "jobs"

#: Seconds that no call of these tests needs.
LONG = 60.0
#: Seconds that a call has, if it is to fail.
SHORT = 1.0

Make = Callable[..., Any]


@pytest.fixture
def make_task(fake: FakeSqs) -> Iterator[Make]:
    """Makes a task of an app on this broker."""
    apps = []

    def make(publish_timeout: float = LONG) -> Any:
        app = Celery("tests", set_as_current=False)
        install(app)
        app.conf.update(
            task_default_queue=JOBS,
            task_create_missing_queues=False,
            broker_transport_options=fake.transport_options(publish_timeout=publish_timeout),
        )
        apps.append(app)
        return app.task(shared=False, name="job")(job)

    yield make
    fake.release()
    for app in apps:
        app.close()


def job(number: int = 0) -> None:
    """The task."""


@pytest.mark.parametrize(
    ("code", "way_out"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", "There is no such queue: check its URL"),
        ("QueueDoesNotExist", "There is no such queue: check its URL"),
        ("AccessDenied", "Allow sqs:SendMessage on it"),
    ],
)
def test_what_the_project_can_mend_has_a_way_out(
    make_task: Make, fake: FakeSqs, code: str, way_out: str
) -> None:
    fake.fail(SEND, code)
    with pytest.raises(SendError, match=f"Queue 'jobs' at .* was not sent. {way_out}"):
        make_task().delay()


def sent_ids(fake: FakeSqs) -> list[str]:
    return [json.loads(call["MessageBody"])["headers"]["id"] for call in fake.asked(SEND)]


# One exception


@pytest.mark.parametrize(
    ("error", "may_have_been_sent"),
    [
        (Unreached("EndpointConnectionError"), False),
        (Unreached("ConnectTimeoutError"), False),
        (Unreached("ReadTimeoutError"), True),
        (Unreached("ConnectionClosedError"), True),
        (Unreached("UnreadableAnswer"), True),
        (NoCredentials("NoCredentialsError"), False),
        (SqsError("AccessDenied"), False),
        (SqsError("QueueDoesNotExist"), False),
        (SqsError("RequestThrottled"), False),
        (SqsError("ServiceUnavailable"), True),
        (ValueError("secret"), True),
    ],
)
def test_the_error_names_the_queue_and_the_endpoint_and_what_is_known(
    fake: FakeSqs, make_task: Make, error: Exception, may_have_been_sent: bool
) -> None:
    fake.fail(SEND, error=error, times=inf)
    with pytest.raises(SendError) as raised:
        make_task(SHORT).apply_async(task_id="id-1")
    found, text = raised.value, str(raised.value)
    assert isinstance(found, PublishError)
    assert isinstance(found, OperationalError)  # As Celery's documentation promises.
    assert (found.queue, found.message_id) == (JOBS, "id-1")
    assert isinstance(found.__cause__, SqsError)
    assert found.code == found.__cause__.code
    assert found.may_have_been_sent is may_have_been_sent
    assert f"'jobs' at {found.endpoint}: {found.code}" in text
    assert ("was not sent" in text) is not may_have_been_sent
    assert ("may have been sent" in text and "task_id='id-1'" in text) is may_have_been_sent
    assert "secret" not in text


def test_a_try_that_may_have_been_done_is_not_forgotten(fake: FakeSqs, make_task: Make) -> None:
    fake.fail(SEND, error=Unreached("ReadTimeoutError"))
    fake.fail(SEND, error=Unreached("EndpointConnectionError"), times=inf)
    with pytest.raises(SendError, match="EndpointConnectionError") as raised:
        make_task(0.5).delay()
    assert raised.value.may_have_been_sent


def test_the_error_survives_the_way_out_of_a_process() -> None:
    error = SendError(JOBS, "https://sqs.test", "id-1", OVERDUE, True)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.message_id) == (str(error), "id-1")


def test_a_message_is_sent_again_under_the_id_that_the_error_names(
    fake: FakeSqs, make_task: Make
) -> None:
    fake.fail(SEND, error=Unreached("ReadTimeoutError"), times=inf)
    task = make_task(SHORT)
    with pytest.raises(SendError) as raised:
        task.delay()
    fake.heal()
    assert task.apply_async(task_id=raised.value.message_id).id == raised.value.message_id


# Tries


@pytest.mark.parametrize(
    "error",
    [
        Unreached("EndpointConnectionError"),
        Unreached("ReadTimeoutError"),
        ConnectionResetError(),
        SqsError("RequestThrottled"),
        SqsError("ServiceUnavailable"),
    ],
)
def test_what_may_be_better_a_moment_later_is_tried_again(
    fake: FakeSqs, make_task: Make, error: Exception
) -> None:
    fake.fail(SEND, error=error, times=2)
    make_task().delay()
    assert fake.counts[SEND] == 3


@pytest.mark.parametrize(
    "error",
    [
        SqsError("AccessDenied"),
        SqsError("QueueDoesNotExist"),
        NoCredentials("NoCredentialsError"),
        Unreached("ParamValidationError"),
    ],
)
def test_what_cannot_be_better_is_not_tried_again(
    fake: FakeSqs, make_task: Make, error: Exception
) -> None:
    fake.fail(SEND, error=error)
    with pytest.raises(SendError):
        make_task().delay()
    assert fake.counts[SEND] == 1


def test_a_setting_that_boto3_cannot_use_is_no_failed_call(fake: FakeSqs, make_task: Make) -> None:
    fake.fail(SEND, error=ConfigurationError("Correct AWS_PROFILE."))
    with pytest.raises(ConfigurationError, match="AWS_PROFILE"):
        make_task().delay()


# Silence


def test_a_call_ends_in_time_although_sqs_is_silent(fake: FakeSqs, make_task: Make) -> None:
    # Without a limit this test would not end: nothing ever answers.
    fake.hold(SEND)
    with pytest.raises(SendError, match=f"{OVERDUE}.*may have been sent"):
        make_task(SHORT).delay()


@pytest.mark.parametrize("way", ["by its name", "with a retry policy"])
def test_the_limit_holds_for_each_way_to_send(fake: FakeSqs, make_task: Make, way: str) -> None:
    fake.hold(SEND)
    task = make_task(SHORT)
    policy = {"max_retries": None, "interval_start": 0}
    send = {
        "by its name": lambda: task.app.send_task("job"),
        "with a retry policy": lambda: task.apply_async(retry=True, retry_policy=policy),
    }[way]
    with pytest.raises(SendError, match=OVERDUE):
        send()
    assert fake.counts[SEND] == 1


def test_no_thread_waits_for_the_connection_of_another(fake: FakeSqs, make_task: Make) -> None:
    fake.hold(SEND)
    task = make_task()
    threads = [threading.Thread(target=task.delay) for _ in range(30)]
    for thread in threads:
        thread.start()
    wait_until(lambda: fake.counts[SEND] == 30, timeout=20, what="30 open calls")
    fake.release()
    for thread in threads:
        thread.join()


def test_all_tries_of_a_call_have_its_time_together(fake: FakeSqs, make_task: Make) -> None:
    seconds: list[float] = []

    class Noting(FakeSqs):
        def carry(self, request: Request[Any]) -> Answer:
            assert request.seconds is not None
            seconds.append(request.seconds)
            return fake.carry(request)

    task = make_task()
    task.app.conf.broker_transport_options["driver"] = Noting().driver
    fake.fail(SEND, error=Unreached("EndpointConnectionError"), times=2)
    task.delay()
    assert LONG >= seconds[0] > seconds[1] > seconds[2] > 0


def test_calls_that_follow_each_other_use_one_thread(fake: FakeSqs, make_task: Make) -> None:
    used = set()
    fake.on_call = lambda _: used.add(threading.current_thread())
    task = make_task()
    for number in range(20):
        task.delay(number=number)
    assert len(used) == 1


def test_an_exception_of_a_signal_handler_ends_the_call(fake: FakeSqs, make_task: Make) -> None:
    # As Celery's soft time limit does.
    class Limit(Exception):
        pass

    def raise_limit(*_: object) -> None:
        raise Limit

    task = make_task()
    fake.hold(SEND)
    before = signal.signal(signal.SIGALRM, raise_limit)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Limit):
            task.delay()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert fake.counts[SEND] == 1


# With a client


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """What calls SQS."""
    name: str = request.param
    return name


def task_over(client: str, endpoint: str, publish_timeout: float = SHORT) -> Any:
    """A task whose messages this client sends to this server."""
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(
        task_default_queue=JOBS,
        broker_transport_options={
            "region": "us-east-1",
            "endpoint_url": endpoint,
            "credentials": {"aws_access_key_id": "k", "aws_secret_access_key": "s"},
            "predefined_queues": {JOBS: {"url": f"{endpoint}/1/jobs"}},
            "publish_timeout": publish_timeout,
            "client": client,
        },
    )
    return app.task(shared=False, name="job")(job)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Takes connections, and does nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def url_of(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_call_to_a_silent_server_ends_in_time(server: socket.socket, client: str) -> None:
    with pytest.raises(SendError, match="may have been sent") as raised:
        task_over(client, url_of(server)).delay()
    assert raised.value.endpoint == url_of(server)


def test_a_call_to_a_server_that_sends_a_byte_at_a_time_ends_in_time(
    server: socket.socket, client: str
) -> None:
    ended = threading.Event()

    def trickle() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
            while not ended.wait(0.05):
                connection.sendall(b" ")

    # Enough for a new client on a busy machine, which must reach the server.
    task = task_over(client, url_of(server), publish_timeout=3)
    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    try:
        with pytest.raises(SendError, match=f"{OVERDUE}.*may have been sent"):
            task.delay()
    finally:
        ended.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_call_to_nobody_sends_nothing_and_says_so(server: socket.socket, client: str) -> None:
    endpoint = url_of(server)
    server.close()
    with pytest.raises(SendError, match=f"at {endpoint}: EndpointConnectionError.*was not sent"):
        # Enough for a new client on a busy machine.
        task_over(client, endpoint, publish_timeout=5).delay()


# Coroutines


def test_a_coroutine_goes_on_while_another_one_sends_to_a_silent_sqs(
    fake: FakeSqs, make_task: Make
) -> None:
    task = make_task()
    fake.hold(SEND)

    async def both() -> Any:
        sending = asyncio.ensure_future(task.adelay(number=1))
        # If `adelay` blocked the loop, this would not be reached before the message is sent.
        while not fake.counts[SEND]:
            await asyncio.sleep(0.001)
        assert not sending.done()
        fake.release()
        return await sending

    result = asyncio.run(both())
    assert [result.id] == sent_ids(fake)


def test_many_coroutines_wait_no_longer_than_one(fake: FakeSqs, make_task: Make) -> None:
    fake.hold(SEND)
    task = make_task(2.0)

    async def all_of_them() -> list[Any]:
        calls = (task.adelay(number=n) for n in range(3 * THREADS))
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(all_of_them())
    # Those that found no free thread in time were never tried: nothing was sent.
    codes = {OVERDUE: True, "NotTried": False}
    assert {error.code: error.may_have_been_sent for error in found} == codes
    assert len(found) == 3 * THREADS


@pytest.mark.parametrize("way", ["adelay", "aapply_async"])
def test_a_coroutine_gets_what_a_call_would_raise(make_task: Make, way: str) -> None:
    task = make_task()
    call = {
        "adelay": lambda: task.adelay(nmber=1),
        "aapply_async": lambda: task.aapply_async(kwargs={"nmber": 1}),
    }[way]
    with pytest.raises(TypeError, match="nmber"):
        asyncio.run(call())


# One client


def test_all_connections_of_a_process_share_one_client() -> None:
    given = {"region": "us-east-1", "predefined_queues": {JOBS: {"url": "http://127.0.0.1:1/q"}}}
    first = sender_for(Options.read(given))
    assert sender_for(Options.read(dict(given))) is first
    assert sender_for(Options.read(given | {"region": "eu-west-1"})) is not first


def test_other_credentials_in_the_environment_get_another_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"region": "us-east-1", "predefined_queues": {JOBS: {"url": "http://127.0.0.1:1/q"}}}
    first = sender_for(Options.read(given))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert sender_for(Options.read(given)) is not first


def test_an_app_of_another_broker_in_the_same_process_keeps_its_pool(make_task: Make) -> None:
    # kombu's pools have one limit for all apps of a process.
    make_task().delay()
    other = Celery("other", broker="memory://", set_as_current=False)
    with other.producer_or_acquire() as producer:
        make_task().delay()
        assert producer.connection.transport.driver_type == "memory"
    assert other.pool.limit == 10
    other.close()


def test_an_app_that_is_given_another_broker_has_the_pool_of_that_one() -> None:
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(broker_url="memory://", broker_transport="memory")
    assert app.producer_pool.limit == 10
    app.close()


@pytest.mark.parametrize("wrong", [0, -1, "5", True, inf, None])
def test_a_timeout_that_is_none_is_refused_by_its_name(fake: FakeSqs, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="`publish_timeout` must be a number of seconds"):
        fake.options(publish_timeout=wrong)


def test_a_child_of_a_fork_sends_too(fake: FakeSqs, make_task: Make) -> None:
    task = make_task()
    asyncio.run(task.adelay())
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # It ends this process if it never sends.
        try:
            asyncio.run(task.adelay())
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
