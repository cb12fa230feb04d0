"""What the broker asks of SQS, asked of FakeSqs and of real servers: one answer from all.

What local servers do not know of Amazon's SQS is in tests/unit/test_testing.py.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from devstack import sqs
from devstack.sqs import SqsServer
from sqs_broker.options import Options
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import ALL, Outgoing, Received, Request, nothing
from sqs_broker.testing import Clock, FakeSqs
from tests.services import wait_until

#: Seconds within which a real server does what it is to do.
DEADLINE = 10

#: Seconds of a lease where a test waits for its end.
SHORT = 1

TEXT = {"DataType": "String", "StringValue": "정보"}
BINARY = {"DataType": "Binary", "BinaryValue": b"\x00\xff"}

#: X-Ray's tracing header.
XRAY = "Root=1-67a1b2c3-0123456789abcdef01234567;Parent=0123456789abcdef;Sampled=1"


@dataclass
class Server:
    """A queue and its dead letters, and how time passes there."""

    jobs: Queue
    dead: Queue
    nobody: Queue
    pass_time: Callable[[float], None]

    def received(self, most: int = 10, **how: Any) -> list[Received]:
        """What can be received now."""
        return self.jobs.receive(most, 0, **how)

    def one(self) -> Received:
        """The next message. On a real server it may take a moment."""
        return wait_until(lambda: self.received(1), DEADLINE, "a message")[0]


@pytest.fixture(
    params=[
        "fake",
        "roto-curl",
        pytest.param("roto-boto3", marks=pytest.mark.slow),
        "moto-curl",
        "moto-boto3",
    ]
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A queue on each of the servers, by each of the clients: of each lease 30 s, of each message
    two receives."""
    name, _, library = request.param.partition("-")
    if name == "fake":
        clock = Clock()
        fake = FakeSqs(clock)
        url = fake.create_queue("jobs", dead_letters="jobs-dlq", max_receive_count=2)
        yield Server(
            Queue(url, fake), Queue(f"{url}-dlq", fake), Queue(f"{url}-no", fake), clock.advance
        )
        return
    if name == "roto":
        server: SqsServer = request.getfixturevalue("sqs_server")
        endpoint = server.endpoint_url
    else:
        endpoint = request.getfixturevalue("moto_url")
    yield from on_server(endpoint, library)


def on_server(endpoint: str, library: str) -> Iterator[Server]:
    client = sqs.client_for(endpoint)
    name = f"contract-{uuid.uuid4().hex}"
    pair = sqs.create_queues(client, name, visibility_timeout=30, max_receive_count=2)
    key = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    driver = driver_for(Options(sqs.REGION, {}, endpoint, key, client=library))
    yield Server(
        Queue(pair.url, driver),
        Queue(pair.dead_letter_url, driver),
        Queue(f"{pair.url}-no", driver),
        really_wait,
    )
    driver.close()
    client.delete_queue(QueueUrl=pair.url)
    client.delete_queue(QueueUrl=pair.dead_letter_url)
    client.close()


def really_wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, seconds + DEADLINE, "the time")


def codes(errors: list[SqsError | None]) -> list[str | None]:
    return [error and error.code for error in errors]


# Sending and receiving


def test_a_message_comes_as_it_was_sent(server: Server) -> None:
    sent = Outgoing('{"nickname": "정보"}', {"text": TEXT, "binary": BINARY})
    server.jobs.send(sent)
    message = server.one()
    assert message.body == sent.body
    assert message.attributes == sent.attributes
    assert message.receives == 1
    assert message.message_id
    assert message.receipt_handle
    server.jobs.send(Outgoing(message.body, message.attributes))


def test_a_message_comes_with_the_tracing_header_that_it_was_sent_with(server: Server) -> None:
    server.jobs.send(Outgoing("traced", trace_header=XRAY))
    assert server.one().trace_header == XRAY


# Not on moto, whose SendMessageBatch drops the header (moto 5 sqs/responses.py).
@pytest.mark.parametrize(
    "server",
    ["fake", "roto-curl", pytest.param("roto-boto3", marks=pytest.mark.slow)],
    indirect=True,
)
def test_each_message_of_a_batch_comes_with_its_tracing_header(server: Server) -> None:
    server.jobs.send_many([Outgoing("traced", trace_header=XRAY), Outgoing("not traced")])
    came: dict[str, str | None] = {}
    while len(came) < 2:
        came |= {m.body: m.trace_header for m in wait_until(server.received, DEADLINE, "more")}
    assert came == {"traced": XRAY, "not traced": None}


def test_a_batch_comes_as_it_was_sent(server: Server) -> None:
    bodies = [f"body {number}" for number in range(12)]
    assert server.jobs.send_many([Outgoing(body) for body in bodies]) == [None] * 12
    came: list[str] = []
    while len(came) < 12:
        came += [message.body for message in wait_until(server.received, DEADLINE, "more")]
    assert sorted(came) == sorted(bodies)


def test_a_receive_brings_no_more_than_was_asked_for(server: Server) -> None:
    server.jobs.send_many([Outgoing("{}")] * 5)
    assert 1 <= len(server.received(3)) <= 3


def test_what_was_received_is_hidden_for_as_long_as_its_receive_asked_for(server: Server) -> None:
    server.jobs.send(Outgoing("{}"))
    (first,) = wait_until(lambda: server.received(visibility=SHORT), DEADLINE, "the message")
    assert server.received() == []
    server.pass_time(SHORT + 0.1)
    again = server.one()
    assert (again.message_id, again.receives) == (first.message_id, 2)
    assert again.receipt_handle != first.receipt_handle
    assert again.sent_at == first.sent_at


def test_a_delayed_message_comes_when_it_is_due(server: Server) -> None:
    server.jobs.send(Outgoing("later", delay=SHORT))
    server.jobs.send(Outgoing("now", delay=0))
    assert [message.body for message in server.received()] == ["now"]
    server.pass_time(SHORT + 0.1)
    assert server.one().body == "later"


def test_a_long_poll_waits_for_a_message(server: Server) -> None:
    server.jobs.send(Outgoing("later", delay=SHORT))
    assert [message.body for message in server.jobs.receive(10, 5)] == ["later"]


def test_a_long_poll_that_finds_nothing_is_empty(server: Server) -> None:
    assert server.jobs.receive(10, SHORT) == []


def test_a_message_that_was_received_too_often_moves_to_the_dead_letters(server: Server) -> None:
    server.jobs.send(Outgoing("{}", {"text": TEXT}))
    first = server.one()
    assert server.jobs.change_visibility([(first.receipt_handle, 0)]) == [None]
    assert server.jobs.change_visibility([(server.one().receipt_handle, 0)]) == [None]
    assert server.received() == []
    (dead,) = wait_until(
        lambda: server.dead.receive(10, 0, system=(ALL,)), DEADLINE, "the dead letter"
    )
    assert (dead.message_id, dead.body) == (first.message_id, "{}")
    assert dead.attributes == first.attributes


# Settling


def test_what_was_deleted_never_comes_again(server: Server) -> None:
    server.jobs.send_many([Outgoing("{}")] * 3)
    messages = [server.one() for _ in range(3)]
    assert server.jobs.delete([m.receipt_handle for m in messages]) == [None] * 3
    server.pass_time(0)
    counted = server.jobs.attributes(ALL).values
    assert counted["ApproximateNumberOfMessages"] == "0"
    assert counted["ApproximateNumberOfMessagesNotVisible"] == "0"


def test_a_deletion_can_be_told_twice(server: Server) -> None:
    server.jobs.send(Outgoing("{}"))
    handle = server.one().receipt_handle
    assert server.jobs.delete([handle]) == [None]
    assert server.jobs.delete([handle]) == [None]


def test_a_message_that_is_handed_back_comes_at_once_and_counts(server: Server) -> None:
    server.jobs.send(Outgoing("{}"))
    message = server.one()
    assert server.jobs.change_visibility([(message.receipt_handle, 0)]) == [None]
    assert server.one().receives == 2


def test_an_extended_lease_lasts_longer(server: Server) -> None:
    server.jobs.send(Outgoing("{}"))
    (message,) = wait_until(lambda: server.received(visibility=SHORT), DEADLINE, "the message")
    assert server.jobs.change_visibility([(message.receipt_handle, 30)]) == [None]
    server.pass_time(SHORT + 0.1)
    assert server.received() == []


def test_a_handle_that_nobody_was_given_is_refused_and_those_beside_it_are_not(
    server: Server,
) -> None:
    server.jobs.send(Outgoing("{}"))
    handle = server.one().receipt_handle
    none, refused = server.jobs.change_visibility([(handle, 0), ("not-a-receipt-handle", 0)])
    assert none is None
    assert refused is not None
    assert refused.is_of_entry
    assert refused.is_lost_lease
    assert refused.is_final
    assert not refused.is_worth_another_try


# The queue


def test_the_attributes_of_a_queue_are_read(server: Server) -> None:
    asked = server.jobs.attributes("VisibilityTimeout", "RedrivePolicy")
    assert asked.values["VisibilityTimeout"] == "30"
    assert int(json.loads(asked.values["RedrivePolicy"])["maxReceiveCount"]) == 2
    assert server.jobs.attributes("QueueArn").values["QueueArn"].startswith("arn:aws:sqs:")


def test_messages_are_counted_by_where_they_are(server: Server) -> None:
    server.jobs.send_many([Outgoing("{}")] * 3)
    server.jobs.send(Outgoing("{}", delay=600))
    server.one()
    counted = server.jobs.attributes(ALL).values
    names = ("", "NotVisible", "Delayed")
    assert [counted[f"ApproximateNumberOfMessages{name}"] for name in names] == ["2", "1", "1"]


def test_a_purge_leaves_nothing(server: Server) -> None:
    server.jobs.send_many([Outgoing("{}")] * 3)
    server.one()
    server.jobs.purge()
    counted = server.jobs.attributes(ALL).values
    assert counted["ApproximateNumberOfMessages"] == "0"


def test_sqs_says_that_there_is_no_such_queue(server: Server) -> None:
    def error_of(call: Callable[[], Any]) -> SqsError:
        with pytest.raises(SqsError) as raised:
            call()
        return raised.value

    for call in (
        lambda: server.nobody.attributes(ALL),
        lambda: server.nobody.send(Outgoing("{}")),
        lambda: server.nobody.receive(1, 0),
    ):
        error = error_of(call)
        assert error.is_no_queue
        assert error.has_reached
    (error, _) = server.nobody.delete(["a", "b"])
    assert error is not None
    assert error.is_no_queue
    assert not error.is_of_entry


def test_an_empty_batch_is_refused_for_what_it_asks(server: Server) -> None:
    request = Request("SendMessageBatch", {"QueueUrl": server.jobs.url, "Entries": []}, nothing)
    with pytest.raises(SqsError) as raised:
        server.jobs.ask(request)
    assert raised.value.is_refusal
