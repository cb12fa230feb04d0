"""`sqs dlq` under faults: a message is sent before it is deleted, and none is lost."""

import base64
import json
import os
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from app.messages import decode_json
from sqs_broker.observers.observer import Observer
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import restored
from sqs_broker.rules.facts import Facts
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import Call, Clock, FakeSqs, State
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.commands.dlq import summary
from sqs_broker.tools.commands.output import print_note, printable
from sqs_broker.tools.dead_letters import MOVED_BY_SQS, NO_ROOM, DeadLetterMessage, Reader

RECEIVE, SEND, DELETE = "ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch"
MAKE_VISIBLE = "ChangeMessageVisibilityBatch"

#: Bytes of the largest message.
LIMIT = 1_048_576

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

    def run(
        *arguments: str,
        queues: tuple[str, ...] = ("jobs",),
        observers: Sequence[Observer] = (),
        typed: str = "",
    ) -> Result:
        clock.advance(60)
        options = options_for(fake, *queues) | {"observers": observers}
        conf = SimpleNamespace(
            broker_transport="sqs_broker:Transport", broker_transport_options=options
        )
        obj = SimpleNamespace(app=SimpleNamespace(conf=conf))
        return CliRunner().invoke(sqs, ["dlq", *arguments], input=typed, obj=obj)

    return run


class Noting(Observer):
    """Keeps what it is told of a redrive."""

    def __init__(self) -> None:
        self.told: list[tuple[Sequence[Facts], datetime]] = []

    def redriven(self, messages: Sequence[Facts], began_at: datetime) -> None:
        self.told.append((messages, began_at))


class Failing(Observer):
    def redriven(self, messages: Sequence[Facts], began_at: datetime) -> None:
        raise KeyError


def options_for(fake: FakeSqs, *queues: str) -> dict[str, Any]:
    options = fake.transport_options(decode_json=decode_json)
    named = {name: options["predefined_queues"][name] for name in queues}
    return options | {"predefined_queues": named}


def visible(fake: FakeSqs, url: str) -> int:
    return sum(message.state is State.VISIBLE for message in fake.messages(url))


def actions(fake: FakeSqs) -> list[str]:
    return [call.action for call in fake.calls]


def redrive(run: Commands, *arguments: str, **options: Any) -> tuple[Result, list[Any]]:
    ran = run("redrive", "--yes", "--json", *arguments, **options)
    return ran, [json.loads(line) for line in ran.stdout.splitlines()]


def became(lines: list[Any]) -> list[tuple[str, str]]:
    return [(line["id"], line["became"]) for line in lines]


def waiting(fake: FakeSqs, queue: str) -> list[str]:
    """The bodies of what waits in a queue."""
    return fake.bodies(fake.options().queue(queue).url)


# Redrive


def test_messages_are_sent_before_they_are_deleted(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury(*(f"m-{n}" for n in range(12)))
    ran, lines = redrive(run)
    assert ran.exit_code == 0, ran.output
    turn = [RECEIVE, SEND, DELETE]
    assert actions(fake) == ["GetQueueAttributes", *turn, *turn, RECEIVE]
    assert len(waiting(fake, "jobs")) == len(lines) == 12
    assert fake.messages(dead) == []


def test_observers_are_told_what_was_sent_and_when_the_send_began(
    run: Commands, fake: FakeSqs, bury: Bury
) -> None:
    bury("m-0", "m-1", "m-1")
    fake.fail(SEND, "Refused", entries=[0], sender_fault=True)
    sent: list[datetime] = []
    fake.on_call = lambda call: sent.append(datetime.now(UTC)) if call.action == SEND else None
    noting, failing = Noting(), Failing()

    assert redrive(run, "--dry-run", observers=[noting])[0].exit_code == 0
    assert noting.told == []
    _, lines = redrive(run, observers=[failing, noting])

    assert ("m-1", "redriven") in became(lines)
    ((messages, began_at),) = noting.told
    assert [(message.id, message.task) for message in messages] == [("m-1", "registerUser")]
    # A worker may have run it a moment after it was sent.
    assert began_at <= sent[0]


def test_a_redriven_message_keeps_its_group(run: Commands, fake: FakeSqs, dead: str) -> None:
    fake.put(dead, "{}", group="shop-7")
    redrive(run)
    [entry] = fake.asked(SEND)[0]["Entries"]
    assert entry["MessageGroupId"] == "shop-7"


def test_a_message_that_was_not_sent_is_not_deleted(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-1")
    fake.fail(SEND, "Refused", entries=[1], sender_fault=True)
    ran, lines = redrive(run)
    assert ran.exit_code == 1
    assert became(lines) == [("m-1", "not sent"), ("m-0", "redriven")]
    assert lines[0]["why"] == "Refused"
    assert visible(fake, dead) == 1


@pytest.mark.parametrize("error", [SqsError("AccessDenied"), Unreached("EndpointConnectionError")])
def test_if_nothing_can_be_sent_it_stops_and_every_message_stays(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury, error: SqsError
) -> None:
    bury(*(f"m-{n}" for n in range(25)))
    fake.fail(SEND, error=error, times=100)
    ran, lines = redrive(run)
    assert ran.exit_code == 1
    assert len(lines) == 10
    assert lines[0]["why"] == error.code
    assert visible(fake, dead) == 25


def test_a_message_that_is_sent_and_cannot_be_deleted_is_reported(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-1")
    fake.fail(DELETE, "Refused", entries=["receipt-2"], times=3)
    ran, lines = redrive(run)
    assert ran.exit_code == 1
    assert ("m-1", "not deleted") in became(lines)
    assert fake.counts[DELETE] == 3
    assert visible(fake, dead) == 1


def test_a_delete_that_fails_is_tried_again(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-1")
    fake.fail(DELETE, error=Unreached("ReadTimeoutError"))
    fake.fail(DELETE, entries=["receipt-2"])
    ran, lines = redrive(run)
    assert ran.exit_code == 0
    assert became(lines) == [("m-0", "redriven"), ("m-1", "redriven")]
    assert [len(call["Entries"]) for call in fake.asked(DELETE)] == [2, 2, 1]
    assert fake.messages(dead) == []


def test_the_duplicate_of_a_message_that_was_not_sent_stays(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", "m-0", "m-1")
    fake.fail(SEND, "Refused", entries=[0], sender_fault=True)
    _, lines = redrive(run)
    assert ("m-0", "dropped") not in became(lines)
    assert visible(fake, dead) == 2


def test_a_message_that_arrives_during_the_redrive_is_no_duplicate_and_stays(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    # It may be what was just redriven, and failed again.
    bury("m-0")

    def arrive(call: Call) -> None:
        if call.action == RECEIVE and len(fake.asked(RECEIVE)) == 1:
            bury("m-0")

    fake.on_call = arrive
    ran, lines = redrive(run)
    assert became(lines) == [("m-0", "redriven")]
    assert "1 arrived since the start" in ran.stderr
    assert visible(fake, dead) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_after_the_call_and_loses_nothing(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury, number: signal.Signals
) -> None:
    bury(*(f"m-{n}" for n in range(25)))
    fake.on_call = lambda call: call.action == SEND and os.kill(os.getpid(), number)
    ran, lines = redrive(run)
    assert ran.exit_code == 1
    assert [line["became"] for line in lines] == ["redriven"] * 10
    assert len(waiting(fake, "jobs")) == 10
    assert visible(fake, dead) == 15


def test_the_second_interruption_ends_at_once_and_makes_all_messages_visible(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury(*(f"m-{n}" for n in range(25)))

    def interrupt(call: Call) -> None:
        if call.action == SEND:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    fake.on_call = interrupt
    ran, _ = redrive(run)
    assert ran.exit_code == 1
    assert waiting(fake, "jobs") == []
    assert visible(fake, dead) == 25


# The queue that a message came from


def test_if_queues_share_a_dead_letter_queue_each_message_goes_to_its_own_queue(
    run: Commands, fake: FakeSqs, bury: Bury
) -> None:
    bury("m-0")
    bury("m-1", note="", source="mail")
    redrive(run, queues=("jobs", "mail"))
    assert (len(waiting(fake, "jobs")), len(waiting(fake, "mail"))) == (1, 1)


def test_a_message_of_an_unknown_queue_stays_unless_the_queue_is_named(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury("m-0", note="")
    ran, [line] = redrive(run, queues=("jobs", "mail"))
    assert ran.exit_code == 1
    assert line["became"] == "not sent"
    assert "--queue" in line["why"]
    assert visible(fake, dead) == 1

    _, [line] = redrive(run, "--queue", "mail", queues=("jobs", "mail"))
    assert line["became"] == "redriven"
    assert (len(waiting(fake, "jobs")), len(waiting(fake, "mail"))) == (0, 1)


def test_messages_of_an_unknown_queue_do_not_delay_the_others(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury(*(f"m-{n}" for n in range(10)), note="")
    bury("m-10")
    _, lines = redrive(run, queues=("jobs", "mail"))
    assert [line["id"] for line in lines if line["became"] == "redriven"] == ["m-10"]
    assert visible(fake, dead) == 10


def read_with(note: Any, body: str | None = None) -> DeadLetterMessage:
    """A message with this note, as the reader reads it."""
    fake = FakeSqs(Clock())
    url = fake.create_queue("dead")
    fake.create_queue("jobs", dead_letters="dead")
    text = json.dumps(note)
    attributes = {"dead-letter": {"DataType": "String", "StringValue": text}}
    plain = json.dumps({"id": "m-0", "action": "registerUser", "data": {}})
    fake.put(url, body or plain, attributes=attributes if note != "" else {})
    with Reader(Queue(url, fake), fake.options(decode_json=decode_json), expected=1) as reader:
        ((message,),) = reader.batches()
    return message


@pytest.mark.parametrize("note", [[], "no note", 7, {"reason": 7, "deliveries": "x", "task": []}])
def test_a_note_that_somebody_else_wrote_is_read_for_what_it_is(note: Any) -> None:
    read = read_with(note)
    assert (read.id, read.queue, read.deliveries) == ("m-0", "jobs", None)
    assert read.reason in ("", MOVED_BY_SQS)


def test_a_message_whose_note_did_not_fit_is_not_said_to_be_moved_by_sqs() -> None:
    assert read_with("", "x" * LIMIT).reason == NO_ROOM
    assert read_with("", "x" * (LIMIT - 1_000)).reason == MOVED_BY_SQS


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
def test_a_message_with_any_note_is_read_shown_and_restored(note: Any) -> None:
    read = read_with(note)
    assert printable(json.dumps(summary(read))).isprintable()
    assert "dead-letter" not in restored(read.delivery.attributes) or "displaced" in str(note)


@pytest.mark.parametrize("data", ["A", "!", "AAAAA"])
def test_a_displaced_attribute_that_is_no_base64_is_left_off(data: str) -> None:
    displaced = {"name": "a", "DataType": "Binary", "base64": data}
    text = json.dumps({"displaced": displaced})
    note = {"dead-letter": {"DataType": "String", "StringValue": text}}
    assert restored(note) in ({}, {"a": {"DataType": "Binary", "BinaryValue": b""}})


def test_a_body_that_cannot_be_decoded_is_read_too() -> None:
    read = read_with("", body="\x00no message")
    assert (read.id, read.task) == (read.delivery.message_id, None)


# The reader


def test_if_messages_stay_hidden_stderr_says_for_how_long(
    run: Commands, fake: FakeSqs, bury: Bury
) -> None:
    bury("m-0")
    fake.deny(MAKE_VISIBLE)
    assert "1 stay hidden for up to 30 s" in run("list").stderr


def test_a_reader_stops_before_its_first_message_is_visible_again(
    fake: FakeSqs, dead: str, bury: Bury, options: Options, clock: Clock
) -> None:
    bury(*(f"m-{n}" for n in range(40)))
    with Reader(Queue(dead, fake), options, expected=0, clock=clock) as reader:
        for _ in reader.batches():
            clock.advance(15)
    assert reader.is_out_of_time
    assert actions(fake) == [RECEIVE, RECEIVE, MAKE_VISIBLE, MAKE_VISIBLE]
    assert visible(fake, dead) == 40


def test_a_message_is_returned_once_though_sqs_delivers_it_twice(
    fake: FakeSqs, dead: str, bury: Bury, options: Options, clock: Clock
) -> None:
    bury("m-0")
    given = []
    # Its clock stands still: SQS's own is ahead.
    with Reader(Queue(dead, fake), options, expected=1) as reader:
        for messages in reader.batches():
            given += messages
            if fake.counts[RECEIVE] < 3:
                clock.advance(reader.visibility_timeout)
    assert len(given) == 1
    assert fake.counts[RECEIVE] == 4
    assert visible(fake, dead) == 1


def test_a_denied_receive_is_one_line_that_names_it(
    run: Commands, fake: FakeSqs, bury: Bury
) -> None:
    bury("m-0")
    fake.deny(RECEIVE)
    ran = run("list")
    assert ran.exit_code == 1
    assert "sqs:ReceiveMessage" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_notes_are_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_note("hello")
    assert capsys.readouterr() == ("", "hello\n")


# What it asks


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        ([], "Redrive about 11 dead letters?"),
        (["--limit", "3"], "Redrive up to 3 of about 11 dead letters?"),
        (["--id", "m-7"], "Redrive 1 of about 11 dead letters?"),
        (["--reason", "FAILED"], "Redrive 11 of about 11 dead letters?"),
        (["--reason", "failed", "--limit", "3"], "Redrive up to 3 of 11 of about 11 dead letters?"),
    ],
    ids=" ".join,
)
def test_the_question_has_the_number_of_those_that_match(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury, arguments: list[str], question: str
) -> None:
    bury(*(f"m-{n}" for n in range(11)))
    asked = run("redrive", *arguments, typed="n\n")
    assert question in asked.stderr
    assert asked.exit_code == 1
    # After a no, all of them can be read again.
    assert visible(fake, dead) == 11


def test_after_a_yes_it_redrives_those_that_match(
    run: Commands, fake: FakeSqs, dead: str, bury: Bury
) -> None:
    bury(*(f"m-{n}" for n in range(11)))
    assert run("redrive", "--id", "m-7", typed="y\n").exit_code == 0
    assert [json.loads(body)["id"] for body in waiting(fake, "jobs")] == ["m-7"]
    assert visible(fake, dead) == 10


def test_if_none_matches_it_does_not_ask(run: Commands, fake: FakeSqs, bury: Bury) -> None:
    bury(*(f"m-{n}" for n in range(11)))
    ran = run("redrive", "--task", "nope")
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert ran.stderr == "There was nothing to redrive.\n"
    assert waiting(fake, "jobs") == []


def test_of_an_empty_dead_letter_queue_it_does_not_ask(run: Commands) -> None:
    ran = run("redrive")
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert ran.stderr == "There was nothing to redrive.\n"


def test_the_question_counts_those_of_the_queue_that_is_named(run: Commands, bury: Bury) -> None:
    bury("m-1", "m-2", note={"reason": "r", "source_queue": "jobs"})
    bury("m-3", note={"reason": "r", "source_queue": "mail"})
    asked = run("redrive", "--queue", "mail", queues=("jobs", "mail"), typed="n\n")
    assert "Redrive 1 of about 3 dead letters?" in asked.stderr


# What is shown of a body

ENVELOPE = {"headers": {"id": "c-1"}, "properties": {}, "content-type": "application/json"}
ARGUMENTS = [[], {"nickname": "정보"}, {"callbacks": None}]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (ENVELOPE | {"body": json.dumps(ARGUMENTS)}, ENVELOPE | {"body": ARGUMENTS}),
        (ENVELOPE | {"body": encoded(json.dumps(ARGUMENTS))}, ENVELOPE | {"body": ARGUMENTS}),
        (encoded(json.dumps(ENVELOPE | {"body": encoded("[]")})), ENVELOPE | {"body": []}),
        ({"Type": "Notification", "Message": '{"id": "1"}'},
         {"Type": "Notification", "Message": {"id": "1"}}),
        ({"body": "12", "Message": "true"}, {"body": "12", "Message": "true"}),
        ({"body": {"a": "{}"}}, {"body": {"a": "{}"}}),
        ("no JSON", "no JSON"),
        ("abcd", "abcd"),
        ("[" * 5_000, "[" * 5_000),
    ],
    ids=["celery", "base64 in it", "all base64", "sns", "no object", "nested", "text",
         "like base64", "too deep"],
)  # fmt: skip
def test_a_body_is_shown_decoded(
    run: Commands, fake: FakeSqs, dead: str, body: Any, shown: Any
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    id_ = fake.put(dead, text)
    ran = run("show", id_)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["body"] == shown
    assert json.loads(run("show", id_, "--raw").stdout)["body"] == text


# X-Ray


def test_a_redriven_message_keeps_the_tracing_header_of_xray(
    fake: FakeSqs, dead: str, run: Commands
) -> None:
    fake.put(dead, "{}", trace_header="Root=1-a-b")
    redrive(run)
    (sent,) = fake.entries(SEND)
    assert sent["MessageSystemAttributes"]["AWSTraceHeader"]["StringValue"] == "Root=1-a-b"
