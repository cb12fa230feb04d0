"""Two operators at once on the same dead letters: none is lost, and none is sent twice."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from app.messages import decode_json
from devstack.waiting import wait_until
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import Call, Clock, FakeSqs
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.commands.dead_letter_queues import Filter
from sqs_broker.tools.dead_letters import DeadLetterMessage, Reader
from sqs_broker.tools.flower.letters import NOT_FOUND, Job, Letters
from sqs_broker.tools.ledger import NoLedger
from sqs_broker.tools.redrive import HELD, OUT_OF_TIME, Redrive

DEADLINE = 30
MESSAGES = 60


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    made = FakeSqs(clock)
    made.create_queue("jobs", dead_letters="dead")
    for number in range(MESSAGES):
        note = {"reason": "it failed", "source_queue": "jobs", "task": "registerUser"}
        attribute = {"DataType": "String", "StringValue": json.dumps(note)}
        body = {"id": f"m-{number}", "action": "registerUser", "data": {}}
        made.put(dead_url(made), json.dumps(body), attributes={"dead-letter": attribute})
    clock.advance(60)
    return made


@pytest.fixture
def letters(fake: FakeSqs) -> Letters:
    return Letters(fake.options(decode_json=decode_json), fake)


def dead_url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").dead_letter_url or ""


def ids(fake: FakeSqs, url: str) -> Counter[str]:
    return Counter(json.loads(body)["id"] for body in fake.bodies(url))


def all_ids(fake: FakeSqs) -> Counter[str]:
    """Those of the queue and of its dead letters."""
    return ids(fake, fake.options().queue("jobs").url) + ids(fake, dead_url(fake))


EACH_ONCE = Counter(f"m-{number}" for number in range(MESSAGES))


def command(fake: FakeSqs, *arguments: str) -> str:
    """Run a command to its end, as somebody else. Returns what it said."""
    transport = fake.transport_options(decode_json=decode_json)
    conf = SimpleNamespace(
        broker_transport_options=transport, broker_transport="sqs_broker:Transport"
    )
    result = CliRunner().invoke(
        sqs, ["dlq", *arguments], obj=SimpleNamespace(app=SimpleNamespace(conf=conf))
    )
    assert result.exit_code == 0, result.output
    return result.stderr


def ended(letters: Letters, began: bool) -> Job:
    assert began
    job = letters.job
    assert job is not None
    wait_until(lambda: job.is_over, DEADLINE, "the end of the job")
    assert job.error is None
    return job


@contextmanager
def held_at(fake: FakeSqs, action: str, start: Callable[[], bool]) -> Iterator[None]:
    """Start a job. Its first call of this action waits for the end of the block, which begins with
    that call."""
    began, may_go_on, here = threading.Event(), threading.Event(), threading.get_ident()

    def on_call(call: Call) -> None:
        if call.action == action and threading.get_ident() != here and not began.is_set():
            began.set()
            may_go_on.wait(DEADLINE)

    fake.on_call = on_call
    assert start()
    assert began.wait(DEADLINE)
    try:
        yield
    finally:
        may_go_on.set()


@pytest.mark.parametrize("action", ["ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch"])
@pytest.mark.parametrize("what", ["redrive", "purge"])
def test_a_command_beside_a_redrive_in_the_browser_leaves_each_message_once(
    letters: Letters, fake: FakeSqs, action: str, what: str
) -> None:
    ended(letters, letters.read(Filter(), "kim"))
    with held_at(fake, action, lambda: letters.redrive(None, "kim", is_dry=False)):
        command(fake, what, "--yes", "--unrecorded")
    job = ended(letters, True)
    assert job.results["redriven"] + job.results[NOT_FOUND] == MESSAGES
    assert job.results[NOT_FOUND] >= MESSAGES - 10
    moved = ids(fake, fake.options().queue("jobs").url)
    if what == "redrive":
        assert moved == EACH_ONCE
    else:
        assert set(moved.values()) == {1} or not moved
        assert moved.total() == job.results["redriven"]
    assert fake.bodies(dead_url(fake)) == []


def test_a_redrive_of_what_somebody_else_has_read_says_that_it_was_not_found(
    letters: Letters, fake: FakeSqs
) -> None:
    ended(letters, letters.read(Filter(), "kim"))
    options = fake.options(decode_json=decode_json)
    with Reader(Queue(dead_url(fake), fake), options, expected=MESSAGES) as reader:
        held = next(reader.batches())
        job = ended(letters, letters.redrive(None, "kim", is_dry=False))
    assert job.results[NOT_FOUND] == len(held)
    assert f"{len(held)} {NOT_FOUND}" in job.text
    assert all_ids(fake) == EACH_ONCE


class Slow(NoLedger):
    """A control database that takes its time to record a redrive, in which something happens."""

    def __init__(self, meanwhile: Any) -> None:
        self._meanwhile = meanwhile

    def redriving(self, messages: Sequence[DeadLetterMessage]) -> None:
        self._meanwhile()

    def counts(self, messages: Sequence[DeadLetterMessage]) -> Mapping[str, int]:
        return {}


def test_a_redrive_sends_nothing_that_another_may_have_received_meanwhile(
    fake: FakeSqs, clock: Clock
) -> None:
    options = fake.options(decode_json=decode_json)
    dead = Queue(dead_url(fake), fake)
    reader = Reader(dead, options, expected=0, clock=clock, more_time=HELD)

    def another_redrives() -> None:
        clock.advance(reader.visibility_timeout)
        command(fake, "redrive", "--yes", "--unrecorded")

    slow = Slow(another_redrives)
    with (
        reader,
        closing(Redrive(fake, options, dead.url, reader.seconds_left, ledger=slow)) as redrive,
    ):
        results = redrive(next(reader.batches()))
    assert {each.why for each in results} == {OUT_OF_TIME}
    assert ids(fake, options.queue("jobs").url) == EACH_ONCE
    assert fake.bodies(dead.url) == []


def test_a_message_is_sent_only_while_it_stays_hidden_for_the_send_and_the_delete(
    fake: FakeSqs, clock: Clock
) -> None:
    options = fake.options(decode_json=decode_json)
    dead = Queue(dead_url(fake), fake)
    with Reader(dead, options, expected=0, clock=clock, more_time=HELD) as reader:
        batch = next(reader.batches())
        clock.advance(reader.seconds_left() - HELD)
        with closing(Redrive(fake, options, dead.url, reader.seconds_left)) as redrive:
            assert {str(each.result) for each in redrive(batch[:1])} == {"redriven"}
            clock.advance(1)
            assert {each.why for each in redrive(batch[1:])} == {OUT_OF_TIME}
    assert all_ids(fake) == EACH_ONCE
