"""Channel and transport: a consumer gets what can run, and SQS hears what became of everything."""

import errno
import json
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf
from time import monotonic
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import OperationalError

from devstack.waiting import wait_until
from sqs_broker import install
from sqs_broker.errors import ConfigurationError, NoThread, PublishError, UnknownQueue
from sqs_broker.limits import BATCH, LONGEST_POLL
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.foreign import ForeignMessage
from sqs_broker.rules.lease import LIMIT_MARGIN
from sqs_broker.rules.outcomes import (
    HUNG,
    Happened,
    Interrupted,
    Outcome,
    Refused,
    RetryAsked,
    Succeeded,
)
from sqs_broker.rules.suspicion import Suspicion
from sqs_broker.sqs.errors import Unreached
from sqs_broker.sqs.leases import AHEAD, MOST_AHEAD, MOST_UNREPORTED
from sqs_broker.testing import Clock, FakeSqs, State
from sqs_broker.worker.channel import Channel, Message
from sqs_broker.worker.transport import Transport
from tests.unit.conftest import VISIBILITY_TIMEOUT, Machine

#: Seconds that nothing here comes near to.
DEADLINE = 30

#: Seconds after which what has not happened does not happen.
PATIENCE = 0.05

RECEIVE, SEND, SEND_MANY = "ReceiveMessage", "SendMessage", "SendMessageBatch"
DELETE, CHANGE = "DeleteMessageBatch", "ChangeMessageVisibilityBatch"


class Sqs(FakeSqs):
    """SQS with two queues, whose time stands still and whose polls stay open. Ids are SQS's."""

    def __init__(self) -> None:
        super().__init__(Clock(), holds_polls=True)
        self.jobs, self.mail = (
            self.create_queue(name, dead_letters=f"{name}-dlq", visibility_timeout=60)
            for name in ("jobs", "mail")
        )

    def bring(self, body: Any, url: str | None = None, count: int = 1) -> str:
        """Put a message there that was received before, if `count` says so. Its id."""
        text = body if isinstance(body, str) else json.dumps(body)
        return self.put(url or self.jobs, text, receives=count - 1)

    @property
    def polled(self) -> list[str]:
        """The queue of each receive."""
        return [call["QueueUrl"] for call in self.asked(RECEIVE)]

    @property
    def sent(self) -> list[Any]:
        """What was sent, alone or with others, in the order of the calls."""
        found: list[Any] = []
        for call in self.calls:
            if call.action == SEND:
                found.append(call.parameters)
            elif call.action == SEND_MANY:
                url = {"QueueUrl": call.parameters["QueueUrl"]}
                found += [url | entry for entry in call.parameters["Entries"]]
        return found

    @property
    def deleted(self) -> list[str]:
        """Those that SQS has deleted."""
        there = {m.message_id for url in (self.jobs, self.mail) for m in self.messages(url)}
        told = dict.fromkeys(self.message_id(e["ReceiptHandle"]) for e in self.entries(DELETE))
        return [id_ for id_ in told if id_ not in there]

    @property
    def visible(self) -> dict[str, int]:
        """The last visibility that SQS was told of each."""
        return {
            self.message_id(e["ReceiptHandle"]): e["VisibilityTimeout"]
            for e in self.entries(CHANGE)
        }

    def waiting(self) -> int:
        """Messages that were not received yet."""
        return sum(m.state is State.VISIBLE for m in self.messages(self.jobs))


class Ahead:
    """The machine's clock, which a test can put forward."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        return monotonic() + self._seconds

    def advance(self, seconds: float) -> None:
        self._seconds += seconds


@pytest.fixture
def clock() -> Ahead:
    """The worker's clock; SQS has another."""
    return Ahead()


@pytest.fixture
def sqs() -> Iterator[Sqs]:
    made = Sqs()
    yield made
    made.release()
    made.end_polls()


@pytest.fixture
def loop_clock() -> Ahead:
    """What measures the silence of the event loop."""
    return Ahead()


@pytest.fixture
def connection(sqs: Sqs, clock: Ahead, loop_clock: Ahead) -> Iterator[Connection]:
    """A connection of the transport, closed after the test."""

    class Clocked(Channel):
        pass

    class ClockedTransport(Transport):
        Channel = Clocked

    Clocked.clock = clock
    ClockedTransport.clock = loop_clock
    made = Connection(
        "sqs://", transport=ClockedTransport, transport_options=sqs.transport_options()
    )
    yield made
    sqs.release()
    sqs.end_polls()
    made.release()


class Worker:
    """Consumes, and keeps what it was given."""

    def __init__(self, connection: Connection, *queues: str, prefetch: int = 2) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.channel.basic_qos(0, prefetch, False)
        self.received: list[Any] = []
        self.on_message: Callable[[Any], None] = self.received.append
        self.consumer = Consumer(
            self.channel,
            [Queue(name, Exchange(""), routing_key=name) for name in queues],
            on_message=lambda message: self.on_message(message),
            accept=["json"],
        )
        self.consumer.consume()

    def get(self) -> Any:
        """The next message."""
        while not self.received:
            self.connection.drain_events(timeout=DEADLINE)
        return self.received.pop(0)

    def close(self, sqs: Sqs) -> None:
        """Close the channel, which waits until SQS was told all."""
        sqs.end_polls()
        self.channel.close()


def task(number: int = 1, **headers: Any) -> dict[str, Any]:
    """An envelope of our own."""
    return {
        "body": json.dumps([[number], {}, {}]),
        "headers": {"task": "job", "id": f"id-{number}"} | headers,
        "properties": {"delivery_info": {}},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }


def drain(connection: Connection) -> None:
    """Deliver until nothing comes any more."""
    with suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=PATIENCE)


def publish(connection: Connection, queue: str, **how: Any) -> None:
    Producer(connection).publish([[], {}, {}], routing_key=queue, headers={"task": "t"}, **how)


# Publishing


def test_a_message_goes_to_the_queue_of_its_name(connection: Connection, sqs: Sqs) -> None:
    publish(connection, "mail")
    assert [call["QueueUrl"] for call in sqs.sent] == [sqs.mail]


@pytest.mark.parametrize("queue", ["job", "jobs-dlq", "jobs.fifo", "celery"])
def test_a_queue_that_is_not_configured_is_an_error_at_the_caller(
    connection: Connection, sqs: Sqs, queue: str
) -> None:
    with pytest.raises(UnknownQueue):
        publish(connection, queue)
    assert sqs.sent == []


def test_a_message_without_a_route_is_an_error_at_the_caller(
    connection: Connection, sqs: Sqs
) -> None:
    with pytest.raises(PublishError, match="No queue is bound to 'somewhere' with key 'jobs'"):
        publish(connection, "jobs", exchange=Exchange("somewhere", type="direct"))
    assert sqs.sent == []


def test_a_message_for_an_exchange_of_type_fanout_is_an_error_at_the_caller(
    connection: Connection,
) -> None:
    queue = Queue("jobs", Exchange("all", "fanout"))
    with connection.channel() as channel, pytest.raises(PublishError, match="'all' is of the type"):
        Producer(channel).publish([], exchange=queue.exchange, declare=[queue])


def test_a_message_goes_where_its_exchange_is_bound(connection: Connection, sqs: Sqs) -> None:
    exchange = Exchange("letters", type="direct")
    queue = Queue("mail", exchange, routing_key="urgent")
    publish(connection, "urgent", exchange=exchange, declare=[queue])
    assert [call["QueueUrl"] for call in sqs.sent] == [sqs.mail]


@pytest.mark.parametrize("exchange", ["celeryev", "reply.celery.pidbox"])
def test_nothing_of_the_control_plane_goes_to_sqs(
    connection: Connection, sqs: Sqs, exchange: str
) -> None:
    publish(connection, "worker.heartbeat", exchange=exchange)
    assert sqs.sent == []


def test_a_command_without_a_control_plane_is_an_error_at_the_caller(
    connection: Connection, sqs: Sqs
) -> None:
    with pytest.raises(ConfigurationError, match="go through MongoDB"):
        publish(connection, "", exchange="celery.pidbox")
    assert sqs.sent == []


def test_a_revoke_without_a_control_plane_is_an_error_at_the_caller(sqs: Sqs) -> None:
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.broker_transport_options = sqs.transport_options()
    with pytest.raises(ConfigurationError, match="go through MongoDB"):
        app.control.revoke("id-1")
    app.close()
    assert sqs.calls == []


AWAY = Unreached("EndpointConnectionError", "Could not connect to https://sqs.test")


@pytest.mark.parametrize("fault", [AWAY, Unreached("ReadTimeoutError"), ConnectionResetError()])
def test_a_producer_tries_again_where_sqs_cannot_be_reached(
    connection: Connection, sqs: Sqs, fault: Exception
) -> None:
    sqs.fail(SEND, error=fault)
    publish(connection, "jobs", retry=True, retry_policy={"interval_start": 0, "max_retries": 3})
    assert len(sqs.sent) == 2
    assert len(sqs.messages(sqs.jobs)) == 1


def test_a_producer_hears_in_the_end_that_sqs_cannot_be_reached(sqs: Sqs) -> None:
    sqs.fail(SEND, error=AWAY, times=inf)
    options = sqs.transport_options(publish_timeout=0.2)
    with Connection("sqs://", transport=Transport, transport_options=options) as hasty:
        # As any transport of kombu says it.
        with pytest.raises(
            OperationalError, match=r"'jobs' at .*EndpointConnectionError"
        ) as raised:
            publish(hasty, "jobs", retry=True)
        assert raised.value.__cause__ is AWAY
    assert sqs.messages(sqs.jobs) == []


def test_what_fails_for_the_system_alone_is_no_lost_connection(connection: Connection) -> None:
    # Celery would connect anew, and release what runs.
    for error in (BlockingIOError, FileNotFoundError, PermissionError, OSError):
        assert not issubclass(error, connection.connection_errors + connection.channel_errors)


def test_a_producer_calls_nothing_but_send(connection: Connection, sqs: Sqs) -> None:
    # Declaring asks stock kombu for the length of the queue, which a producer may not see.
    publish(connection, "jobs", declare=[Queue("jobs", Exchange(""), routing_key="jobs")])
    assert sqs.counts == {SEND: 1}


def test_no_queue_is_made_or_deleted_at_run_time(connection: Connection) -> None:
    channel = connection.channel()
    Queue("jobs", Exchange("jobs"), routing_key="jobs")(channel).declare()
    with pytest.raises(UnknownQueue):
        channel.queue_declare("job")
    with pytest.raises(PublishError, match="not deleted at run time"):
        channel.queue_delete("jobs")


def test_a_purge_is_one_call_and_says_how_many_messages_there_were(
    connection: Connection, sqs: Sqs
) -> None:
    for _ in range(3):
        publish(connection, "jobs")
    assert connection.channel().queue_purge("jobs") == 3
    assert [call["QueueUrl"] for call in sqs.asked("PurgeQueue")] == [sqs.jobs]


def test_without_a_consumer_there_is_no_thread_and_no_call(
    connection: Connection, sqs: Sqs
) -> None:
    before = set(threading.enumerate())
    connection.channel()
    connection.channel()
    assert (set(threading.enumerate()) - before, sqs.calls) == (set(), [])


# Consuming


def test_consuming_without_acks_is_refused_because_no_message_would_be_deleted(
    connection: Connection, sqs: Sqs
) -> None:
    sqs.bring(task(1))
    with pytest.raises(ConfigurationError, match="Queue 'jobs': no_ack=True is not supported"):
        connection.channel().basic_consume("jobs", True, list, "tag-1")
    assert sqs.calls == []


def test_a_message_that_is_acknowledged_is_deleted(connection: Connection, sqs: Sqs) -> None:
    receipt = sqs.bring(task(1), count=3)
    worker = Worker(connection, "jobs")
    message = worker.get()
    assert message.payload == [[1], {}, {}]
    assert message.deliveries == 3
    message.ack()
    worker.close(sqs)
    assert sqs.deleted == [receipt]
    assert sqs.visible == {}


@pytest.mark.parametrize("end", ["ack", "reject", "requeue"])
def test_a_message_that_has_ended_is_forgotten(connection: Connection, sqs: Sqs, end: str) -> None:
    worker = Worker(connection, "jobs")
    sqs.bring(task(1))
    message = worker.get()
    getattr(message, end)()
    assert not worker.channel.deliveries.holds(message.delivery_tag)
    # kombu forgets what has ended when the next message comes.
    sqs.bring(task(2))
    other = worker.get()
    assert list(worker.channel.qos._delivered) == [other.delivery_tag]


def test_the_end_of_a_message_is_logged_with_its_ids(
    connection: Connection, sqs: Sqs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sqs.bring(task(1))
    Worker(connection, "jobs").get().ack()
    (facts,) = (vars(r) for r in caplog.records if vars(r).get("event") == "message.done")
    assert (facts["task"], facts["message_id"], facts["sqs_message_id"]) == ("job", "id-1", "sqs-1")


def test_a_rejected_message_is_dead_lettered(connection: Connection, sqs: Sqs) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    worker.get().reject()
    worker.close(sqs)
    assert [call["QueueUrl"] for call in sqs.sent] == [f"{sqs.jobs}-dlq"]
    assert sqs.deleted == [receipt]


def test_a_requeued_message_is_visible_again_at_once(connection: Connection, sqs: Sqs) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    worker.get().requeue()
    worker.close(sqs)
    assert sqs.visible == {receipt: 0}
    assert sqs.deleted == []


def test_what_was_noted_on_a_message_counts_more_than_its_ack(
    connection: Connection, sqs: Sqs
) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    message = worker.get()
    message.note(RetryAsked(7, "KeyError"))
    message.ack()
    worker.close(sqs)
    assert sqs.visible == {receipt: 7}
    assert sqs.deleted == []


def test_a_message_is_settled_once(connection: Connection, sqs: Sqs) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    message = worker.get()
    message.ack()
    worker.channel.basic_ack(message.delivery_tag)
    worker.channel.basic_reject(message.delivery_tag, requeue=True)
    worker.channel.basic_ack("unknown")
    worker.close(sqs)
    assert (sqs.deleted, sqs.visible, sqs.sent) == ([receipt], {}, [])


def test_a_body_that_cannot_run_is_dead_lettered_and_never_delivered(
    connection: Connection, sqs: Sqs
) -> None:
    bad = [sqs.bring("not JSON"), sqs.bring({"plain": "JSON"}), sqs.bring(task(id=None))]
    good = sqs.bring(task(4))
    worker = Worker(connection, "jobs")
    worker.get().ack()
    assert worker.received == []
    worker.close(sqs)
    assert sorted(sqs.deleted) == sorted([*bad, good])
    notes = [read_note(call["MessageAttributes"]) or {} for call in sqs.sent]
    assert [note["error"] for note in notes] == ["Undecodable"] * 3
    assert sqs.sent[0]["MessageBody"] == "not JSON"


def test_a_decoder_that_fails_holds_no_message_up(connection: Connection, sqs: Sqs) -> None:
    def fail(_: dict[str, Any]) -> ForeignMessage:
        raise RuntimeError("Kim-1f9c")

    connection.transport_options["decode_json"] = fail
    again = sqs.bring({"plain": "JSON"})
    sqs.bring(task(2))
    sqs.bring({"plain": "JSON"}, count=3)
    worker = Worker(connection, "jobs")
    worker.get().ack()
    wait_until(lambda: sqs.sent, DEADLINE, "the dead letter")
    worker.close(sqs)
    assert sqs.visible[again] >= 1
    (note,) = (read_note(call["MessageAttributes"]) or {} for call in sqs.sent)
    assert (note["error"], note["reason"]) == (
        "RuntimeError",
        "the worker could not accept the message (RuntimeError) (deliveries: 3)",
    )


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), OSError(errno.EMFILE, "Kim-1f9c"), RuntimeError("can't start new thread")],
    ids=repr,
)
def test_what_this_machine_has_no_room_for_is_handed_back_with_its_class_in_the_log(
    connection: Connection, sqs: Sqs, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def fail(_: dict[str, Any]) -> ForeignMessage:
        raise fault

    connection.transport_options["decode_json"] = fail
    # However often it was delivered: its failures would be counted, and this is none.
    receipts = [sqs.bring({"plain": "JSON"}, count=number) for number in (1, 3, 7)]
    sqs.bring({"plain": "JSON"}, count=8)
    worker = Worker(connection, "jobs")
    wait_until(lambda: sqs.visible.keys() >= set(receipts) and sqs.sent, DEADLINE, "four ends")
    worker.close(sqs)
    assert all(sqs.visible[receipt] >= 1 for receipt in receipts)
    # Where SQS allows few more deliveries it is sent on, for SQS would dead-letter it.
    assert [call["QueueUrl"] for call in sqs.sent] == [sqs.jobs]
    lines = [vars(r) for r in caplog.records if vars(r).get("event") == "message.not_taken"]
    assert [line["error"] for line in lines] == [type(fault).__name__] * 4
    assert "Kim-1f9c" not in caplog.text


@pytest.mark.parametrize("event", ["message.dead-letter", "message.not_taken"])
def test_an_error_in_the_middle_of_a_batch_costs_no_other_message(
    connection: Connection, sqs: Sqs, event: str
) -> None:
    def run_short(*_: Any) -> Any:
        raise MemoryError

    def fail(record: logging.LogRecord) -> bool:
        return vars(record).get("event") != event or run_short()

    log = logging.getLogger("sqs_broker.observers.log")
    log.addFilter(fail)
    connection.transport_options["decode_json"] = run_short
    try:
        sqs.bring(task(1))
        sqs.bring("not JSON")
        sqs.bring({"plain": "JSON"})
        sqs.bring(task(3))
        worker = Worker(connection, "jobs")
        assert [worker.get().payload[0], worker.get().payload[0]] == [[1], [3]]
    finally:
        log.removeFilter(fail)


def test_messages_that_cannot_be_handed_over_are_handed_back(
    connection: Connection, sqs: Sqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both ends of the inbox's pipe have its inode.
    pipe, write = os.fstat(connection.transport.inbox.fileno()), os.write

    def fail(to: int, data: bytes) -> int:
        if os.path.samestat(os.fstat(to), pipe):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return write(to, data)

    monkeypatch.setattr(os, "write", fail)
    receipts = {sqs.bring(task(1)), sqs.bring(task(2))}
    worker = Worker(connection, "jobs")
    wait_until(lambda: sqs.visible.keys() == receipts, DEADLINE, "both handed back")
    monkeypatch.setattr(os, "write", write)
    drain(connection)
    assert worker.received == []
    assert all(wait >= 1 for wait in sqs.visible.values())


def test_a_message_that_is_not_due_waits_in_sqs(connection: Connection, sqs: Sqs) -> None:
    eta = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    receipt = sqs.bring(task(1, eta=eta))
    worker = Worker(connection, "jobs")
    wait_until(lambda: sqs.sent, DEADLINE, "the message sent on")
    worker.close(sqs)
    assert worker.received == []
    assert [(call["QueueUrl"], call["DelaySeconds"]) for call in sqs.sent] == [(sqs.jobs, 900)]
    assert json.loads(sqs.sent[0]["MessageBody"])["headers"]["eta"] == eta
    assert sqs.deleted == [receipt]


@pytest.mark.parametrize("late", [timedelta(hours=1), timedelta(seconds=0), timedelta(seconds=-1)])
def test_a_message_that_is_due_arrives_with_its_eta(
    connection: Connection, sqs: Sqs, late: timedelta
) -> None:
    eta = (datetime.now(UTC) - late).isoformat()
    sqs.bring(task(1, eta=eta))
    assert Worker(connection, "jobs").get().headers["eta"] == eta


def test_a_message_that_the_worker_cannot_take_holds_no_other_up(
    connection: Connection, sqs: Sqs
) -> None:
    first, second = sqs.bring(task(1)), sqs.bring(task(2))
    worker = Worker(connection, "jobs")

    def take(message: Any) -> None:
        if message.payload[0] == [1]:
            raise RuntimeError
        worker.received.append(message)

    worker.on_message = take
    worker.get().ack()
    worker.close(sqs)
    assert sqs.deleted == [second]
    # A failure of its first attempt: again, after the backoff.
    assert sqs.visible[first] >= 1


def test_every_queue_is_asked_although_one_is_empty(connection: Connection, sqs: Sqs) -> None:
    sqs.bring(task(1), url=sqs.mail)
    worker = Worker(connection, "jobs", "mail")
    # The long poll of the empty queue is open for five times as long.
    wait_until(lambda: sqs.mail in sqs.polled, DEADLINE / 5, "a poll of the second queue")
    assert worker.get().delivery_info["routing_key"] == "mail"


@pytest.mark.parametrize(("prefetch", "held"), [(2, AHEAD + 1), (12, AHEAD + BATCH + 1)])
def test_no_more_is_held_than_the_pool_runs_and_of_short_tasks_than_full_batches_beyond(
    connection: Connection, sqs: Sqs, prefetch: int, held: int
) -> None:
    def wait_until_held(number: int) -> None:
        wait_until(lambda: taken() == number, DEADLINE, f"{number} messages")
        with pytest.raises(TimeoutError):
            wait_until(lambda: taken() > number, PATIENCE, "one more")

    def taken() -> int:
        return 100 - sqs.waiting() - len(sqs.deleted)

    for number in range(100):
        sqs.bring(task(number))
    worker = Worker(connection, "jobs", prefetch=prefetch)
    # Nobody knows how long its tasks are.
    wait_until_held(prefetch)
    message = worker.get()
    worker.channel.deliveries.started(message.delivery_tag, 30)
    message.ack()
    wait_until_held(held)


def test_a_message_that_was_dead_lettered_before_is_deleted_and_does_not_run(
    connection: Connection, sqs: Sqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQS took the copy and did not hear the delete, so it delivers the message again.
    monkeypatch.setattr("sqs_broker.sqs.settler.RETRY_PAUSE", 100)  # One try, no second one.
    id_ = sqs.bring(task(1), count=3)
    worker = Worker(connection, "jobs")
    sqs.fail(DELETE)
    message = worker.get()
    message.note(Refused("no such user"))
    message.reject()
    wait_until(lambda: sqs.asked(DELETE), DEADLINE, "the delete that fails")
    sqs.pause(61)
    wait_until(lambda: sqs.deleted == [id_], DEADLINE, "the delete")
    drain(connection)
    assert worker.received == []
    assert [call["QueueUrl"] for call in sqs.sent] == [f"{sqs.jobs}-dlq"]


def test_what_sqs_was_not_told_yet_bounds_what_is_received(
    connection: Connection, sqs: Sqs
) -> None:
    # Else messages that are done pile up here until their leases are over.
    sqs.hold(DELETE)
    for number in range(300):
        sqs.bring(task(number))
    worker = Worker(connection, "jobs")
    worker.on_message = lambda message: message.ack()
    drain(connection)
    # The window widens, for these messages are short.
    assert 300 - sqs.waiting() <= MOST_UNREPORTED + MOST_AHEAD + 2 + BATCH
    sqs.release(DELETE)
    wait_until(lambda: drain(connection) or len(sqs.deleted) == 300, DEADLINE, "all deleted")


def test_each_client_waits_and_tries_as_its_calls_need(connection: Connection, sqs: Sqs) -> None:
    Worker(connection, "jobs")
    publish(connection, "jobs")
    purger, settler, heartbeat, receiver, producer = sqs.drivers
    assert purger == settler
    assert settler == {"read_timeout": 10, "tries": 3, "seconds": 20, "is_checked": False}
    # A producer waits for its timeout alone, and tries again itself. What it sends may have
    # attributes of the caller's own.
    assert producer == {"read_timeout": 5, "tries": 1, "seconds": 5, "is_checked": True}
    # These try again themselves: the first before a third of its leases is over, and the second
    # waits longer than the long poll.
    assert heartbeat == settler | {"tries": 1, "seconds": 60 / 3}
    assert receiver == settler | {"tries": 1, "read_timeout": 25, "seconds": 10}


def test_the_event_loop_delivers_what_a_receiver_brought(connection: Connection, sqs: Sqs) -> None:
    sqs.bring(task(1))
    loop = Loop()
    worker = Worker(connection, "jobs")
    connection.transport.register_with_event_loop(connection, loop)
    (descriptor, deliver), *_ = loop.readers
    readable, _, _ = select.select([descriptor], [], [], DEADLINE)
    assert readable
    deliver()
    assert [message.payload[0] for message in worker.received] == [[1]]


def test_celery_runs_its_event_loop_for_this_transport(connection: Connection) -> None:
    assert connection.transport.implements.asynchronous
    assert connection.transport.driver_type == "sqs"
    assert "topic" in connection.transport.implements.exchange_type


# Leases


@pytest.fixture
def _beats_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat beats every few milliseconds."""
    monkeypatch.setattr("sqs_broker.sqs.heartbeat.BEATS_PER_LEASE", 10_000)


class Loop:
    """Celery's event loop, which turns when it is told to."""

    def __init__(self) -> None:
        self.beat: Callable[[], None] = lambda: None
        self.readers: list[tuple[int, Callable[[], None]]] = []

    def add_reader(self, descriptor: int, callback: Callable[[], None]) -> None:
        self.readers.append((descriptor, callback))

    def call_repeatedly(self, _: float, beat: Callable[[], None]) -> None:
        self.beat = beat


def test_under_a_lease_that_was_lost_nothing_is_settled(
    connection: Connection, sqs: Sqs, clock: Ahead, caplog: pytest.LogCaptureFixture
) -> None:
    # The message may be another worker's by now.
    id_ = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    message = worker.get()
    clock.advance(61)
    message.ack()
    worker.close(sqs)
    assert (sqs.deleted, sqs.visible, sqs.sent) == ([], {}, [])
    (record,) = (r for r in caplog.records if vars(r).get("event") == "lease.lost")
    assert vars(record)["sqs_message_id"] == id_


@pytest.mark.usefixtures("_beats_fast")
def test_a_lost_lease_is_told_to_the_worker_by_its_tag(
    connection: Connection, sqs: Sqs, clock: Ahead
) -> None:
    sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    lost: list[str] = []
    worker.channel.deliveries.attach(pool_has_processes=False, on_lease_lost=lost.append)
    message = worker.get()
    clock.advance(61)
    wait_until(lambda: lost, DEADLINE, "the loss")
    worker.close(sqs)
    assert lost == [message.delivery_tag]


@pytest.mark.usefixtures("_beats_fast")
def test_a_message_whose_lease_was_lost_on_its_way_is_not_delivered(
    connection: Connection, sqs: Sqs, clock: Ahead
) -> None:
    sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    lost: list[str] = []
    worker.channel.deliveries.attach(pool_has_processes=False, on_lease_lost=lost.append)
    assert connection.transport.inbox.wait(DEADLINE)
    clock.advance(61)
    wait_until(lambda: lost, DEADLINE, "the loss")
    connection.drain_events(timeout=DEADLINE)
    assert worker.received == []


@pytest.mark.usefixtures("_beats_fast")
def test_what_waits_behind_a_loop_that_hangs_is_handed_back_and_nothing_is_received(
    connection: Connection, sqs: Sqs, loop_clock: Ahead, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sqs_broker.sqs.deliveries")
    receipt = sqs.bring(task(1))
    loop = Loop()
    connection.transport.register_with_event_loop(connection, loop)
    loop.beat()
    worker = Worker(connection, "jobs")
    assert connection.transport.inbox.wait(DEADLINE)
    wait_until(lambda: len(sqs.polled) > 1, DEADLINE, "the poll that is open while the loop hangs")
    loop_clock.advance(61)
    # Not before its own poll is over; before that, its lease is extended.
    soon = LONGEST_POLL + 2
    wait_until(lambda: 0 < sqs.visible.get(receipt, inf) <= soon, DEADLINE, "the release")
    connection.drain_events(timeout=DEADLINE)
    # What the poll brings that was open before.
    late = sqs.bring(task(2))
    wait_until(lambda: late in sqs.visible, DEADLINE, "the second release")
    asked = len(sqs.polled)
    with pytest.raises(TimeoutError):
        wait_until(lambda: len(sqs.polled) > asked, PATIENCE, "a poll in the pause")
    loop.beat()
    wait_until(lambda: len(sqs.polled) > asked, DEADLINE, "a poll after the beat")
    assert worker.received == []
    events = [vars(record)["event"] for record in caplog.records]
    assert [event for event in events if event.startswith("loop.")] == ["loop.hangs", "loop.beats"]


@pytest.mark.usefixtures("_beats_fast")
def test_a_message_that_waits_for_too_long_is_released_and_cannot_start_any_more(
    connection: Connection, sqs: Sqs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    connection.transport_options["longest_wait"] = 0.2
    runs, waits = sqs.bring(task(1)), sqs.bring(task(2))
    worker = Worker(connection, "jobs")
    deliveries = worker.channel.deliveries
    started, waiting = worker.get(), worker.get()
    deliveries.started(started.delivery_tag, 600)
    wait_until(lambda: sqs.visible.get(waits) == 0, DEADLINE, "the release")
    for processes in (True, False):
        deliveries.attach(pool_has_processes=processes, on_lease_lost=lambda _: None)
        assert not deliveries.hand_over(waiting.delivery_tag)
    assert deliveries.started(waiting.delivery_tag, 600) is None
    # What Celery says when it finds out, and it ends nothing.
    waiting.ack()
    started.ack()
    worker.close(sqs)
    assert sqs.deleted == [runs]
    lines = [vars(record) for record in caplog.records]
    # SQS delivers it again, and it waits again.
    line, *_ = (line for line in lines if line.get("event") == "message.released")
    assert (line["task"], line["message_id"], line["delay"]) == ("job", "id-2", 0)
    assert not [line for line in lines if line.get("event") == "lease.lost"]


@pytest.mark.usefixtures("_beats_fast")
def test_a_message_that_waits_on_its_way_to_the_worker_is_released_and_not_delivered(
    connection: Connection, sqs: Sqs
) -> None:
    connection.transport_options["longest_wait"] = 0.2
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    wait_until(lambda: sqs.visible.get(receipt) == 0, DEADLINE, "the release")
    connection.drain_events(timeout=DEADLINE)
    assert worker.received == []


@pytest.mark.usefixtures("_beats_fast")
def test_what_waits_for_too_long_in_the_last_delivery_that_sqs_allows_is_sent_on(
    connection: Connection, sqs: Sqs
) -> None:
    # Else SQS would dead-letter it, without a reason, and it never ran.
    connection.transport_options["longest_wait"] = 0.2
    receipt = sqs.bring(task(1), count=10)
    worker = Worker(connection, "jobs")
    worker.get()
    wait_until(lambda: sqs.deleted == [receipt], DEADLINE, "the delete")
    assert [call["QueueUrl"] for call in sqs.sent] == [sqs.jobs]


@pytest.mark.usefixtures("_beats_fast")
def test_a_loop_that_a_running_task_keeps_quiet_does_not_hang(
    connection: Connection, sqs: Sqs, loop_clock: Ahead
) -> None:
    # In the solo pool the task runs on the loop.
    receipt = sqs.bring(task(1))
    loop = Loop()
    connection.transport.register_with_event_loop(connection, loop)
    loop.beat()
    worker = Worker(connection, "jobs")
    message = worker.get()
    worker.channel.deliveries.started(message.delivery_tag, 600)
    loop_clock.advance(61)
    wait_until(lambda: receipt in sqs.visible, DEADLINE, "an extension")
    assert sqs.visible[receipt] == 60
    assert worker.channel.deliveries.holds(message.delivery_tag)


def test_without_an_event_loop_there_is_nothing_that_could_hang(
    connection: Connection, loop_clock: Ahead
) -> None:
    loop_clock.advance(100_000)
    assert connection.transport.silence() == 0


# Tasks that hang

#: Seconds of a hard time limit.
LIMIT = 30


def hang(worker: Worker, clock: Ahead, *, seconds: float = LIMIT + LIMIT_MARGIN + 1) -> Any:
    """The message of a task that has started and runs for so long."""
    message = worker.get()
    worker.channel.deliveries.started(message.delivery_tag, LIMIT)
    clock.advance(seconds)
    return message


def ends(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str | None]]:
    """How messages have ended, and of what, as the log says it."""
    lines = [vars(record) for record in caplog.records]
    kinds = ("message.", "lease.lost")
    ended = [line for line in lines if line.get("event", "").startswith(kinds)]
    return [(line["event"], line.get("error")) for line in ended]


@pytest.mark.usefixtures("_beats_fast")
@pytest.mark.parametrize("end", ["ack", "reject", "never"])
def test_a_task_that_hangs_is_a_failed_attempt_and_its_end_settles_nothing_more(
    connection: Connection,
    sqs: Sqs,
    clock: Ahead,
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    caplog.set_level(logging.INFO)
    id_ = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    lost: list[Any] = []
    worker.channel.deliveries.attach(
        pool_has_processes=False,
        on_lease_lost=lost.append,
        on_given_up=lambda *given_up: lost.append(given_up),
    )
    message = hang(worker, clock)
    # The backoff, and no extension.
    wait_until(lambda: 1 <= sqs.visible.get(id_, inf) <= 2, DEADLINE, "the retry")
    if end == "ack":
        message.ack()
    if end == "reject":
        message.note(RetryAsked(7, "KeyError"))
        message.reject(requeue=True)
    worker.close(sqs)
    assert (sqs.deleted, sqs.sent, sqs.visible[id_] <= 2) == ([], [], True)
    assert lost == [(message.delivery_tag, HUNG), message.delivery_tag]
    assert ends(caplog) == [("message.retry", "TimeLimitExceeded")]


@pytest.mark.usefixtures("_beats_fast")
@pytest.mark.parametrize(("max_attempts", "count"), [(3, 3), (1, 1)])
def test_a_task_that_hangs_in_its_last_attempt_is_dead_lettered_with_a_reason(
    connection: Connection, sqs: Sqs, clock: Ahead, max_attempts: int, count: int
) -> None:
    id_ = sqs.bring(task(1), count=count)
    worker = Worker(connection, "jobs")
    message = worker.get()
    # The policy of its task counts.
    message.policy = replace(connection.transport.options.policy, max_attempts=max_attempts)
    worker.channel.deliveries.started(message.delivery_tag, LIMIT)
    clock.advance(LIMIT + LIMIT_MARGIN + 1)
    wait_until(lambda: sqs.deleted == [id_], DEADLINE, "the delete")
    message.ack()
    worker.close(sqs)
    (sent,) = sqs.sent
    note = json.loads(sent["MessageAttributes"]["dead-letter"]["StringValue"])
    assert note["error"] == "TimeLimitExceeded"
    assert note["reason"].startswith("the task did not end at its hard time limit in the last")


@pytest.mark.usefixtures("_beats_fast")
def test_a_task_that_ends_just_before_it_is_found_to_hang_has_ended(
    connection: Connection, sqs: Sqs, clock: Ahead, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    id_ = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    message = hang(worker, clock, seconds=LIMIT + LIMIT_MARGIN - 1)
    message.ack()
    clock.advance(2)
    worker.close(sqs)
    assert sqs.deleted == [id_]
    assert ends(caplog) == [("message.done", None)]


@pytest.mark.usefixtures("_beats_fast")
@pytest.mark.parametrize("is_suspect", [False, True])
def test_a_task_that_has_ended_does_not_hang_although_the_loop_does(
    connection: Connection,
    sqs: Sqs,
    clock: Ahead,
    caplog: pytest.LogCaptureFixture,
    is_suspect: bool,
) -> None:
    caplog.set_level(logging.INFO)
    id_ = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    given_up: list[Any] = []
    worker.channel.deliveries.attach(
        pool_has_processes=False,
        on_lease_lost=given_up.append,
        on_given_up=lambda *what: given_up.append(what),
    )
    message = worker.get()
    message.is_suspect = is_suspect
    worker.channel.deliveries.started(message.delivery_tag, LIMIT)
    message.note(Succeeded())
    clock.advance(LIMIT + LIMIT_MARGIN + 1)
    wait_until(lambda: sqs.deleted == [id_], DEADLINE, "the delete")
    message.ack()
    worker.close(sqs)
    assert given_up == []
    assert ends(caplog) == [("message.done", None)]


@pytest.mark.usefixtures("_beats_fast")
def test_a_task_that_hangs_and_has_noted_its_end_ends_with_what_it_noted(
    connection: Connection, sqs: Sqs, clock: Ahead
) -> None:
    id_ = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    message = worker.get()
    message.note(RetryAsked(7, "KeyError"))
    worker.channel.deliveries.started(message.delivery_tag, LIMIT)
    clock.advance(LIMIT + LIMIT_MARGIN + 1)
    wait_until(lambda: sqs.visible.get(id_) == 7, DEADLINE, "the retry")


@pytest.mark.usefixtures("_beats_fast")
@pytest.mark.parametrize("silence", [0, 30])
def test_a_task_of_a_process_hangs_only_if_the_loop_that_ends_it_responds(
    connection: Connection,
    sqs: Sqs,
    clock: Ahead,
    loop_clock: Ahead,
    caplog: pytest.LogCaptureFixture,
    silence: int,
) -> None:
    # Else the loop may not have read yet that it has ended.
    caplog.set_level(logging.INFO)
    id_ = sqs.bring(task(1))
    loop = Loop()
    connection.transport.register_with_event_loop(connection, loop)
    loop.beat()
    worker = Worker(connection, "jobs")
    worker.channel.deliveries.attach(pool_has_processes=True, on_lease_lost=lambda _: None)
    loop_clock.advance(silence)
    hang(worker, clock, seconds=LIMIT + LIMIT_MARGIN + 2)
    if not silence:
        wait_until(lambda: 1 <= sqs.visible.get(id_, inf) <= 2, DEADLINE, "the retry")
        return
    with pytest.raises(TimeoutError):
        wait_until(lambda: ends(caplog), PATIENCE, "an end")
    clock.advance(100)
    wait_until(lambda: ends(caplog) == [("lease.lost", None)], DEADLINE, "the loss")


@pytest.mark.usefixtures("_beats_fast")
@pytest.mark.parametrize("is_outage", [True, False])
def test_an_outage_that_may_make_a_task_hang_is_looked_for_once(
    connection: Connection,
    sqs: Sqs,
    clock: Ahead,
    caplog: pytest.LogCaptureFixture,
    is_outage: bool,
) -> None:
    caplog.set_level(logging.INFO)
    id_ = sqs.bring(task(1), count=3)
    worker = Worker(connection, "jobs")
    suspicions: list[Suspicion] = []
    worker.channel.deliveries.on_suspicion = suspicions.append
    message = worker.get()
    message.is_suspect = True
    worker.channel.deliveries.started(message.delivery_tag, LIMIT)
    clock.advance(LIMIT + LIMIT_MARGIN + 1)
    wait_until(lambda: suspicions, DEADLINE, "the suspicion")
    with pytest.raises(TimeoutError):
        wait_until(lambda: ends(caplog) or len(suspicions) > 1, PATIENCE, "more")
    (suspicion,) = suspicions
    assert (suspicion.error, suspicion.otherwise) == ("TimeLimitExceeded", HUNG)
    if is_outage:
        suspicion.confirm(25)
        wait_until(lambda: sqs.visible.get(id_) == 25, DEADLINE, "the release")
    else:
        suspicion.dismiss()
        wait_until(lambda: sqs.deleted == [id_], DEADLINE, "the dead letter")


@pytest.mark.usefixtures("_beats_fast")
def test_while_each_thread_hangs_nothing_waits_for_one_and_nothing_is_received(
    connection: Connection, sqs: Sqs, clock: Ahead, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sqs.bring(task(1))
    waits = sqs.bring(task(2))
    worker = Worker(connection, "jobs")
    deliveries = worker.channel.deliveries
    first, second = worker.get(), worker.get()
    deliveries.resize(1)
    deliveries.started(first.delivery_tag, LIMIT)
    clock.advance(LIMIT + LIMIT_MARGIN + 1)
    wait_until(lambda: sqs.visible.get(waits) == 0, DEADLINE, "the release")
    assert not deliveries.hand_over(second.delivery_tag)
    asked = len(sqs.polled)
    with pytest.raises(TimeoutError):
        wait_until(lambda: len(sqs.polled) > asked, PATIENCE, "a poll while it hangs")
    # An outage that begins and ends meanwhile leaves no trace.
    pause(worker, 30)
    deliveries.resume("away")
    assert deliveries.release_after == 0
    first.ack()
    wait_until(lambda: len(sqs.polled) > asked, DEADLINE, "a poll after its end")
    events = [vars(record).get("event", "") for record in caplog.records]
    assert [event for event in events if event.startswith("pool.")] == ["pool.hangs", "pool.works"]


@pytest.mark.parametrize(
    ("seconds", "is_suspect", "happened"),
    [
        (LIMIT - 1, False, Interrupted("WorkerShutdown", 0)),
        (LIMIT + 1, False, HUNG),
        (LIMIT + 1, True, HUNG),
    ],
)
def test_a_forced_stop_interrupts_what_is_within_its_limit_and_fails_what_is_beyond(
    connection: Connection,
    sqs: Sqs,
    clock: Ahead,
    seconds: float,
    is_suspect: bool,
    happened: Happened,
) -> None:
    seen: list[Happened] = []
    connection.transport_options["observers"] = [Seen(seen)]
    sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    hang(worker, clock, seconds=seconds).is_suspect = is_suspect
    sqs.end_polls()
    worker.channel.deliveries.stop_receiving()
    worker.channel.deliveries.await_polls()
    assert worker.channel.deliveries.release(running=True) == 1
    assert seen == [happened]


def test_what_is_beyond_its_limit_in_an_outage_does_not_fail_by_a_stop(
    connection: Connection, sqs: Sqs, clock: Ahead
) -> None:
    seen: list[Happened] = []
    connection.transport_options["observers"] = [Seen(seen)]
    sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    hang(worker, clock, seconds=LIMIT + 1).is_suspect = True
    pause(worker, 30)
    worker.channel.deliveries.release(running=True)
    assert [type(happened) for happened in seen] == [Interrupted]


class Seen(Observer):
    """Keeps what has happened to messages."""

    def __init__(self, seen: list[Happened]) -> None:
        self._seen = seen

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        self._seen.append(happened)


# A pause


def pause(worker: Worker, release_after: float = 1) -> None:
    worker.channel.deliveries.pause("away", release_after)


@pytest.mark.parametrize(("asked", "given"), [(1, 25), (25.1, 26), (100, 100)])
def test_a_pause_hands_back_what_has_not_started_until_after_the_open_polls(
    connection: Connection, sqs: Sqs, asked: float, given: int
) -> None:
    running, waiting = sqs.bring(task(1)), sqs.bring(task(2))
    worker = Worker(connection, "jobs")
    message = worker.get()
    worker.channel.deliveries.started(message.delivery_tag, 600)
    pause(worker, asked)
    wait_until(lambda: sqs.visible == {waiting: given}, DEADLINE, "the release")
    assert worker.channel.deliveries.holds(message.delivery_tag)
    message.ack()
    wait_until(lambda: sqs.deleted == [running], DEADLINE, "the end of what was running")


def test_what_an_open_poll_brings_in_a_pause_is_handed_back_too(
    connection: Connection, sqs: Sqs
) -> None:
    worker = Worker(connection, "jobs")
    wait_until(lambda: sqs.polled, DEADLINE, "the poll")
    pause(worker)
    receipt = sqs.bring(task(1))
    wait_until(lambda: sqs.visible == {receipt: 25}, DEADLINE, "the release")
    drain(connection)
    assert (worker.received, len(sqs.polled)) == ([], 1)


def test_a_pause_that_begins_while_messages_are_read_hands_all_of_them_back(
    connection: Connection, sqs: Sqs
) -> None:
    workers: list[Worker] = []

    def begin_a_pause(_: dict[str, Any]) -> ForeignMessage:
        wait_until(lambda: workers, DEADLINE, "the worker")
        pause(workers[0])
        return ForeignMessage("job", {}, None)

    connection.transport_options["decode_json"] = begin_a_pause
    received = [sqs.bring(body) for body in (task(1), {"plain": "JSON"}, task(2))]
    workers.append(Worker(connection, "jobs", prefetch=3))
    wait_until(lambda: sqs.visible == dict.fromkeys(received, 25), DEADLINE, "the releases")
    drain(connection)
    assert (workers[0].received, len(sqs.polled)) == ([], 1)


def test_what_was_handed_back_on_its_way_to_the_worker_is_not_delivered(
    connection: Connection, sqs: Sqs
) -> None:
    sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    assert connection.transport.inbox.wait(DEADLINE)
    pause(worker)
    connection.drain_events(timeout=DEADLINE)
    assert worker.received == []


def test_after_a_pause_messages_come_again(connection: Connection, sqs: Sqs) -> None:
    worker = Worker(connection, "jobs")
    pause(worker)
    worker.channel.deliveries.resume("away")
    assert worker.channel.deliveries.pauses == frozenset()
    sqs.bring(task(1))
    assert worker.get().headers["id"] == "id-1"


def test_a_suspicion_that_nobody_looks_into_is_dismissed(connection: Connection, sqs: Sqs) -> None:
    concluded: list[Happened] = []
    otherwise = RetryAsked(7, "OSError")
    worker = Worker(connection, "jobs")
    worker.channel.deliveries.on_suspicion(
        Suspicion("OSError", 0.0, 7, otherwise, concluded.append)
    )
    assert concluded == [otherwise]


@pytest.mark.usefixtures("_beats_fast")
def test_without_heartbeat_no_lease_is_extended_and_the_loop_is_watched_all_the_same(
    connection: Connection, sqs: Sqs, clock: Ahead, loop_clock: Ahead
) -> None:
    connection.transport_options["heartbeat"] = False
    receipt = sqs.bring(task(1))
    loop = Loop()
    connection.transport.register_with_event_loop(connection, loop)
    loop.beat()
    worker = Worker(connection, "jobs")
    assert connection.transport.inbox.wait(DEADLINE)
    clock.advance(40)  # Two thirds of the lease: an extension is long due.
    loop_clock.advance(61)
    wait_until(lambda: receipt in sqs.visible, DEADLINE, "the release")
    # Before that release there was no extension.
    assert sqs.entries(CHANGE)[0]["VisibilityTimeout"] <= LONGEST_POLL + 2 < VISIBILITY_TIMEOUT
    worker.close(sqs)


# Stopping


def test_what_an_open_poll_brings_after_the_cancel_is_released(
    connection: Connection, sqs: Sqs
) -> None:
    worker = Worker(connection, "jobs")
    wait_until(lambda: sqs.polled, DEADLINE, "the poll")
    worker.consumer.cancel()
    receipt = sqs.bring(task(1))
    worker.close(sqs)
    assert worker.received == []
    assert sqs.visible == {receipt: 0}


def test_a_worker_that_stops_hands_back_what_waits_and_then_what_runs(
    connection: Connection, sqs: Sqs
) -> None:
    running, waiting = sqs.bring(task(1)), sqs.bring(task(2))
    worker = Worker(connection, "jobs")
    channel = worker.channel
    started, queued = worker.get(), worker.get()
    channel.deliveries.started(started.delivery_tag, 30)

    channel.deliveries.stop_receiving()
    assert channel.deliveries.release(running=False) == 1
    wait_until(lambda: sqs.visible == {waiting: 0}, DEADLINE, "the release of what waits")
    assert not channel.deliveries.hand_over(queued.delivery_tag)

    assert channel.deliveries.release(running=True) == 1
    wait_until(lambda: running in sqs.visible, DEADLINE, "the release of what runs")
    assert sqs.visible == {waiting: 0, running: 0}
    sqs.end_polls()
    channel.deliveries.await_polls()
    assert channel.deliveries.is_empty
    assert sqs.deleted == []


def test_what_is_released_at_a_stop_does_not_come_back_to_the_open_polls_of_this_worker(
    connection: Connection, sqs: Sqs
) -> None:
    waiting = sqs.bring(task(1))
    worker = Worker(connection, "jobs", prefetch=30)
    worker.get()
    wait_until(lambda: sqs.open_polls == 2, DEADLINE, "the polls")
    worker.channel.deliveries.stop_receiving()
    assert worker.channel.deliveries.release(running=False) == 1
    wait_until(lambda: waiting in sqs.visible, DEADLINE, "the release")
    # The rest of the longer poll, and 2 s.
    assert LONGEST_POLL - DEADLINE < sqs.visible[waiting] <= LONGEST_POLL + 2
    assert len(sqs.polled) == 3
    worker.close(sqs)


def test_what_was_promised_to_a_process_is_not_released_before_its_end(
    connection: Connection, sqs: Sqs
) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    worker.channel.deliveries.attach(pool_has_processes=True, on_lease_lost=lambda _: None)
    message = worker.get()
    assert worker.channel.deliveries.hand_over(message.delivery_tag)
    assert worker.channel.deliveries.release(running=False) == 0
    message.ack()
    worker.close(sqs)
    assert (sqs.deleted, sqs.visible) == ([receipt], {})


def test_what_came_before_the_cancel_and_was_not_delivered_is_released(
    connection: Connection, sqs: Sqs
) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    assert connection.transport.inbox.wait(DEADLINE)
    worker.consumer.cancel()
    connection.drain_events(timeout=DEADLINE)
    # At once, and not only when the worker has stopped.
    wait_until(lambda: sqs.visible == {receipt: 0}, DEADLINE, "the release")
    assert worker.received == []


def test_closing_settles_by_what_was_noted(connection: Connection, sqs: Sqs) -> None:
    # Celery noted it, and its ack has not come through yet.
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    worker.get().note(RetryAsked(7, "KeyError"))
    worker.close(sqs)
    assert sqs.visible == {receipt: 7}


def test_closing_the_connection_gives_its_descriptors_back(
    connection: Connection, sqs: Sqs
) -> None:
    Worker(connection, "jobs")
    inbox = connection.transport.inbox
    sqs.end_polls()
    connection.release()
    assert inbox.fileno() == -1


@pytest.mark.parametrize("taken", [True, False])
def test_closing_releases_what_was_not_settled(
    connection: Connection, sqs: Sqs, taken: bool
) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    if taken:
        worker.get()
    else:
        wait_until(lambda: len(sqs.polled) == 2, DEADLINE, "the poll after the message")
    worker.close(sqs)
    assert sqs.visible == {receipt: 0}
    assert sqs.deleted == []


def test_closing_ends_the_threads(connection: Connection, sqs: Sqs) -> None:
    before = set(threading.enumerate())
    worker = Worker(connection, "jobs", "mail")
    names = {thread.name.rstrip("-0123456789") for thread in set(threading.enumerate()) - before}
    assert names == {"sqs-heartbeat", "sqs-receiver-jobs", "sqs-receiver-mail", "sqs-settler"}
    worker.close(sqs)
    assert set(threading.enumerate()) - before == set()


@pytest.mark.parametrize("thread", ["sqs-settler", "sqs-heartbeat", "sqs-receiver"])
def test_consuming_that_there_is_no_room_for_raises_and_can_be_tried_again(
    connection: Connection, sqs: Sqs, machine: Machine, thread: str
) -> None:
    before = set(threading.enumerate())
    receipt = sqs.bring(task(1))
    machine.has_no_room_for(thread)
    channel, got = connection.channel(), list[Any]()
    channel.basic_qos(0, 1, False)
    with pytest.raises(NoThread, match=thread):
        channel.basic_consume("jobs", False, got.append, "tag-1")
    machine.has_room()
    channel.basic_consume("jobs", False, got.append, "tag-2")
    connection.drain_events(timeout=DEADLINE)
    got[0].ack()
    sqs.end_polls()
    channel.close()
    assert sqs.deleted == [receipt]
    assert set(threading.enumerate()) - before == set()


def test_a_channel_that_there_was_no_room_for_closes(
    connection: Connection, machine: Machine
) -> None:
    machine.has_no_room_for("sqs-")
    channel = connection.channel()
    with pytest.raises(NoThread):
        channel.basic_consume("jobs", False, print, "tag-1")
    channel.close()


def test_closing_twice_does_nothing_more(connection: Connection, sqs: Sqs) -> None:
    receipt = sqs.bring(task(1))
    worker = Worker(connection, "jobs")
    worker.get()
    worker.close(sqs)
    worker.channel.close()
    assert sqs.visible == {receipt: 0}


def test_waiting_for_nothing_ends_with_a_timeout(connection: Connection) -> None:
    Worker(connection, "jobs")
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)


# The control plane


@pytest.fixture
def _has_a_control_plane(connection: Connection) -> None:
    # Nothing connects to this MongoDB: the queue of `hear` has no bindings to read.
    connection.transport_options["control"] = {"database_uri": "mongodb://127.0.0.1:1/control"}


def hear(connection: Connection, callback: Callable[[Any], None]) -> None:
    """Put one message of the control plane into the inbox, for a consumer of ours."""
    transport = connection.transport
    channel = connection.channel()
    payload = {"body": "{}", "headers": {}, "properties": {"delivery_tag": "1"}}
    transport.control.consume(channel, "one@host.celery.pidbox", callback)
    transport.control.put("one@host.celery.pidbox", Message(payload, channel=channel), events=0)


@pytest.mark.usefixtures("_has_a_control_plane")
def test_a_command_that_fails_is_no_fault_of_the_loop(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError

    loop = Loop()
    connection.transport.register_with_event_loop(connection, loop)
    hear(connection, fail)
    loop.readers[0][1]()
    assert [r for r in caplog.records if vars(r).get("event") == "deliver.failed"]


@pytest.mark.usefixtures("_has_a_control_plane")
def test_a_consumer_without_a_loop_hears_of_its_own_fault(connection: Connection) -> None:
    # Else `celery events` would print into a closed pipe for ever.
    def fail(_: Any) -> None:
        raise BrokenPipeError

    hear(connection, fail)
    with pytest.raises(BrokenPipeError):
        connection.drain_events(timeout=DEADLINE)


@pytest.mark.usefixtures("_has_a_control_plane")
def test_a_command_to_shut_down_ends_the_loop(connection: Connection) -> None:
    def shut_down(_: Any) -> None:
        raise SystemExit(0)

    loop = Loop()
    connection.transport.register_with_event_loop(connection, loop)
    hear(connection, shut_down)
    with pytest.raises(SystemExit):
        loop.readers[0][1]()


@pytest.mark.usefixtures("_has_a_control_plane")
def test_one_call_delivers_one_message(connection: Connection) -> None:
    got: list[Any] = []
    hear(connection, got.append)
    hear(connection, got.append)
    connection.drain_events(timeout=DEADLINE)
    assert len(got) == 1
