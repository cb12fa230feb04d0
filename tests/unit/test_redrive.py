"""`sqs dlq` under faults: a letter is sent before it is deleted, and none is lost."""

import json
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from app.messages import decode_json
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import restored
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import Call, Clock, FakeSqs, State
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.commands.dlq import told
from sqs_broker.tools.commands.output import printable, say
from sqs_broker.tools.letters import MOVED_BY_SQS, Letter, Look

RECEIVE, SEND, DELETE = "ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch"
LET_GO = "ChangeMessageVisibilityBatch"

Commands = Callable[..., Result]
Bury = Callable[..., None]


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    """Two queues that share their dead letters."""
    made = FakeSqs(clock)
    for name in ("jobs", "mail"):
        made.create_queue(name, dead_letters="dead")
    return made


@pytest.fixture
def dead(fake: FakeSqs) -> str:
    """The URL of the dead letters."""
    return fake.options().queue("jobs").dead_letter_url or ""


@pytest.fixture
def bury(fake: FakeSqs, dead: str) -> Bury:
    """Puts dead letters there."""

    def bury_them(*ids: str, note: Any = None, source: str | None = None, body: str = "") -> None:
        for id_ in ids:
            text = json.dumps(
                {"reason": "it failed", "source_queue": "jobs"} if note is None else note
            )
            attribute = {"dead-letter": {"DataType": "String", "StringValue": text}}
            fake.put(
                dead,
                json.dumps({"id": id_, "action": "registerUser", "data": {}}),
                attributes=attribute if note != "" else {},
                source_arn=None if source is None else fake.arn(fake.options().queue(source).url),
            )

    return bury_them


@pytest.fixture
def run(fake: FakeSqs, clock: Clock) -> Commands:
    """Runs a command a minute later; `queues` are the configured ones."""

    def run(*arguments: str, queues: tuple[str, ...] = ("jobs",)) -> Result:
        clock.advance(60)
        options = options_for(fake, *queues)
        conf = SimpleNamespace(
            broker_transport="sqs_broker:Transport", broker_transport_options=options
        )
        obj = SimpleNamespace(app=SimpleNamespace(conf=conf))
        return CliRunner().invoke(sqs, ["dlq", *arguments], obj=obj)

    return run


def options_for(fake: FakeSqs, *queues: str) -> dict[str, Any]:
    options = fake.transport_options(decode_json=decode_json)
    named = {name: options["predefined_queues"][name] for name in queues}
    return options | {"predefined_queues": named}


def visible(fake: FakeSqs, url: str) -> int:
    return sum(message.state is State.VISIBLE for message in fake.messages(url))


def actions(fake: FakeSqs) -> list[str]:
    return [call.action for call in fake.calls]


def redrive(run: Commands, *arguments: str, **options: Any) -> tuple[Result, list[Any]]:
    told = run("redrive", "--yes", "--json", *arguments, **options)
    return told, [json.loads(line) for line in told.stdout.splitlines()]


def became(lines: list[Any]) -> list[tuple[str, str]]:
    return [(line["id"], line["became"]) for line in lines]


def waiting(fake: FakeSqs, queue: str) -> list[str]:
    """The bodies of what waits in a queue."""
    return fake.bodies(fake.options().queue(queue).url)


# Redrive


def test_letters_are_sent_before_they_are_deleted(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury(*(f"m-{n}" for n in range(12)))
    told, lines = redrive(run)
    assert told.exit_code == 0, told.output
    turn = [RECEIVE, SEND, DELETE]
    assert actions(fake) == ["GetQueueAttributes", *turn, *turn, RECEIVE]
    assert len(waiting(fake, "jobs")) == len(lines) == 12
    assert fake.messages(dead) == []


def test_a_letter_that_was_not_sent_is_not_deleted(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-1")
    fake.fail(SEND, "Refused", entries=[1], sender_fault=True)
    told, lines = redrive(run)
    assert told.exit_code == 1
    assert became(lines) == [("m-1", "not sent"), ("m-0", "redriven")]
    assert lines[0]["why"] == "Refused"
    assert visible(fake, dead) == 1


@pytest.mark.parametrize("error", [SqsError("AccessDenied"), Unreached("EndpointConnectionError")])
def test_where_nothing_can_be_sent_it_stops_and_every_letter_stays(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury, error: SqsError
) -> None:
    bury(*(f"m-{n}" for n in range(25)))
    fake.fail(SEND, error=error, times=100)
    told, lines = redrive(run)
    assert told.exit_code == 1
    assert len(lines) == 10
    assert lines[0]["why"] == error.code
    assert visible(fake, dead) == 25


def test_what_is_sent_and_cannot_be_deleted_is_said(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-1")
    fake.fail(DELETE, "Refused", entries=["receipt-2"], times=3)
    told, lines = redrive(run)
    assert told.exit_code == 1
    assert ("m-1", "not deleted") in became(lines)
    assert fake.counts[DELETE] == 3
    assert visible(fake, dead) == 1


def test_a_delete_that_fails_is_tried_again(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-1")
    fake.fail(DELETE, error=Unreached("ReadTimeoutError"))
    fake.fail(DELETE, entries=["receipt-2"])
    told, lines = redrive(run)
    assert told.exit_code == 0
    assert became(lines) == [("m-0", "redriven"), ("m-1", "redriven")]
    assert [len(call["Entries"]) for call in fake.asked(DELETE)] == [2, 2, 1]
    assert fake.messages(dead) == []


def test_the_twin_of_a_letter_that_was_not_sent_stays(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-0", "m-1")
    fake.fail(SEND, "Refused", entries=[0], sender_fault=True)
    _, lines = redrive(run)
    assert ("m-0", "dropped") not in became(lines)
    assert visible(fake, dead) == 2


def test_what_arrives_during_the_redrive_is_no_twin_and_stays(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    # It may be what was just redriven, and failed again.
    bury("m-0")

    def arrive(call: Call) -> None:
        if call.action == RECEIVE and len(fake.asked(RECEIVE)) == 1:
            bury("m-0")

    fake.on_call = arrive
    told, lines = redrive(run)
    assert became(lines) == [("m-0", "redriven")]
    assert "1 arrived since the start" in told.stderr
    assert visible(fake, dead) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_after_the_call_and_loses_nothing(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury, number: signal.Signals
) -> None:
    bury(*(f"m-{n}" for n in range(25)))
    fake.on_call = lambda call: call.action == SEND and os.kill(os.getpid(), number)
    told, lines = redrive(run)
    assert told.exit_code == 1
    assert [line["became"] for line in lines] == ["redriven"] * 10
    assert len(waiting(fake, "jobs")) == 10
    assert visible(fake, dead) == 15


def test_the_second_interruption_is_at_once_and_lets_go(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury(*(f"m-{n}" for n in range(25)))

    def interrupt(call: Call) -> None:
        if call.action == SEND:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    fake.on_call = interrupt
    told, _ = redrive(run)
    assert told.exit_code == 1
    assert waiting(fake, "jobs") == []
    assert visible(fake, dead) == 25


# Whose letter it is


def test_letters_of_queues_that_share_their_dead_letters_go_each_to_its_own(
    run: Commands, fake: FakeSqs, bury: Bury
) -> None:
    bury("m-0")
    bury("m-1", note="", source="mail")
    redrive(run, queues=("jobs", "mail"))
    assert (len(waiting(fake, "jobs")), len(waiting(fake, "mail"))) == (1, 1)


def test_a_letter_of_nobody_knows_which_queue_stays_unless_it_is_named(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", note="")
    told, [line] = redrive(run, queues=("jobs", "mail"))
    assert told.exit_code == 1
    assert line["became"] == "not sent"
    assert "--queue" in line["why"]
    assert visible(fake, dead) == 1

    _, [line] = redrive(run, "--queue", "mail", queues=("jobs", "mail"))
    assert line["became"] == "redriven"
    assert (len(waiting(fake, "jobs")), len(waiting(fake, "mail"))) == (0, 1)


def test_letters_of_nobody_knows_which_queue_do_not_hold_up_the_others(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury(*(f"m-{n}" for n in range(10)), note="")
    bury("m-10")
    _, lines = redrive(run, queues=("jobs", "mail"))
    assert [line["id"] for line in lines if line["became"] == "redriven"] == ["m-10"]
    assert visible(fake, dead) == 10


def letter_with(note: Any, body: str | None = None) -> Letter:
    """The letter that a message with this note is read as."""
    fake = FakeSqs(Clock())
    url = fake.create_queue("dead")
    fake.create_queue("jobs", dead_letters="dead")
    text = json.dumps(note)
    attributes = {"dead-letter": {"DataType": "String", "StringValue": text}}
    plain = json.dumps({"id": "m-0", "action": "registerUser", "data": {}})
    fake.put(url, body or plain, attributes=attributes if note != "" else {})
    with Look(Queue(url, fake), fake.options(decode_json=decode_json), expected=1) as look:
        ((letter,),) = look.batches()
    return letter


@pytest.mark.parametrize("note", [[], "no note", 7, {"reason": 7, "deliveries": "x", "task": []}])
def test_a_note_that_somebody_else_wrote_is_read_for_what_it_is(note: Any) -> None:
    read = letter_with(note)
    assert (read.id, read.queue, read.deliveries) == ("m-0", "jobs", None)
    assert read.reason in ("", MOVED_BY_SQS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["reason", "error", "task", "message_id", "deliveries", "source_queue", "at",
                 "displaced", "name", "DataType", "base64", "StringValue"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(note=JSON)
def test_no_note_keeps_a_letter_from_being_read_told_and_restored(note: Any) -> None:
    read = letter_with(note)
    assert printable(json.dumps(told(read))).isprintable()
    assert "dead-letter" not in restored(read.delivery.attributes) or "displaced" in str(note)


@pytest.mark.parametrize("data", ["A", "!", "AAAAA"])
def test_a_displaced_attribute_that_is_no_base64_is_left_off(data: str) -> None:
    displaced = {"name": "a", "DataType": "Binary", "base64": data}
    text = json.dumps({"displaced": displaced})
    note = {"dead-letter": {"DataType": "String", "StringValue": text}}
    assert restored(note) in ({}, {"a": {"DataType": "Binary", "BinaryValue": b""}})


def test_a_body_that_is_no_message_is_a_letter_too() -> None:
    read = letter_with("", body="\x00no message")
    assert (read.id, read.task) == (read.delivery.message_id, None)


# The look


def test_a_look_that_cannot_let_go_says_for_how_long(
    run: Commands, fake: FakeSqs, bury: Bury
) -> None:
    bury("m-0")
    fake.deny(LET_GO)
    assert "1 stay hidden for up to 30 s" in run("list").stderr


def test_a_look_ends_before_its_letters_show_up_again(
    fake: FakeSqs, dead: str, bury: Bury, options: Options, clock: Clock
) -> None:
    bury(*(f"m-{n}" for n in range(40)))
    with Look(Queue(dead, fake), options, expected=0, clock=clock) as look:
        for _ in look.batches():
            clock.advance(15)
    assert look.is_cut_short
    assert actions(fake) == [RECEIVE, RECEIVE, LET_GO, LET_GO]
    assert visible(fake, dead) == 40


def test_a_letter_is_given_once_though_sqs_delivers_it_twice(
    fake: FakeSqs, dead: str, bury: Bury, options: Options, clock: Clock
) -> None:
    bury("m-0")
    given = []
    # Its clock stands still: SQS's own is ahead.
    with Look(Queue(dead, fake), options, expected=1) as look:
        for letters in look.batches():
            given += letters
            if fake.counts[RECEIVE] < 3:
                clock.advance(look.hold)
    assert len(given) == 1
    assert fake.counts[RECEIVE] == 4
    assert visible(fake, dead) == 1


def test_a_denied_receive_is_one_line_that_names_it(
    run: Commands, fake: FakeSqs, bury: Bury
) -> None:
    bury("m-0")
    fake.deny(RECEIVE)
    told = run("list")
    assert told.exit_code == 1
    assert "sqs:ReceiveMessage" in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_talk_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")
