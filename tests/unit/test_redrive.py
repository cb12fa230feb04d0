"""`sqs dlq` under faults: a letter is sent before it is deleted, and none is lost."""

import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from app.messages import decode_json
from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.dead_letter import restored
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.commands.dlq import told
from sqs_broker.tools.commands.output import printable, say
from sqs_broker.tools.letters import MOVED_BY_SQS, Look, read_letter

JOBS, MAIL, DEAD = "https://sqs.test/1/jobs", "https://sqs.test/1/mail", "https://sqs.test/1/dead"
NOW = 1_800_000_000
DATE = "Fri, 15 Jan 2027 08:00:00 GMT"

Commands = Callable[..., Result]


class Sqs:
    """A dead-letter queue and what was sent, in the order of the calls. `fault(action, call)` may
    raise, or give the ids of the entries that fail."""

    def __init__(self, *letters: dict[str, Any]) -> None:
        self.letters = {f"handle-{n}": letter for n, letter in enumerate(letters)}
        self.hidden: set[str] = set()
        self.calls: list[tuple[str, Any]] = []
        self.sent: list[tuple[str, str]] = []
        self.fault: Callable[[str, Any], Any] = lambda action, call: ()

    def get_queue_attributes(self, **call: Any) -> dict[str, Any]:
        counts = {"ApproximateNumberOfMessages": "2", "ApproximateNumberOfMessagesNotVisible": "0"}
        return {"Attributes": counts, "ResponseMetadata": {"HTTPHeaders": {"date": DATE}}}

    def receive_message(self, **call: Any) -> dict[str, Any]:
        self.calls.append(("receive", call))
        self.fault("receive", call)
        visible = [handle for handle in self.letters if handle not in self.hidden][:10]
        self.hidden |= set(visible)
        return {"Messages": [self.letters[h] | {"ReceiptHandle": h} for h in visible]}

    def send_message_batch(self, **call: Any) -> dict[str, Any]:
        failed = self._batch("send", call)
        taken = [entry for entry in call["Entries"] if entry["Id"] not in failed]
        self.sent += [(call["QueueUrl"], entry["MessageBody"]) for entry in taken]
        return self._answer(call, failed)

    def delete_message_batch(self, **call: Any) -> dict[str, Any]:
        failed = self._batch("delete", call)
        for entry in call["Entries"]:
            if entry["Id"] not in failed:
                del self.letters[entry["ReceiptHandle"]]
        return self._answer(call, failed)

    def change_message_visibility_batch(self, **call: Any) -> dict[str, Any]:
        failed = self._batch("let go", call)
        assert all(entry["VisibilityTimeout"] == 0 for entry in call["Entries"])
        self.hidden -= {e["ReceiptHandle"] for e in call["Entries"] if e["Id"] not in failed}
        return self._answer(call, failed)

    def _batch(self, action: str, call: Any) -> Any:
        self.calls.append((action, call))
        assert 1 <= len(call["Entries"]) <= 10
        return self.fault(action, call)

    @staticmethod
    def _answer(call: Any, failed: Any) -> dict[str, Any]:
        ids = [entry["Id"] for entry in call["Entries"]]
        return {
            "Successful": [{"Id": id_} for id_ in ids if id_ not in failed],
            "Failed": [
                {"Id": id_, "SenderFault": True, "Code": "Refused"} for id_ in ids if id_ in failed
            ],
        }

    @property
    def visible(self) -> int:
        return len(self.letters.keys() - self.hidden)

    @property
    def actions(self) -> list[str]:
        return [action for action, _ in self.calls]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Runs a command on a fake; `queues` are the configured ones."""
    monkeypatch.setattr("sqs_broker.sqs.publisher.FIRST_PAUSE", 0)

    def run(fake: Sqs, *arguments: str, queues: tuple[str, ...] = (JOBS,)) -> Result:
        monkeypatch.setattr("sqs_broker.tools.commands.desk.client_of", lambda _: fake)
        named = {u.rpartition("/")[2]: {"url": u, "dead_letter_url": DEAD} for u in queues}
        options = {
            "region": "us-east-1",
            "predefined_queues": named,
            "decode_json": "app.messages:decode_json",
        }
        conf = SimpleNamespace(
            broker_transport="sqs_broker:Transport", broker_transport_options=options
        )
        obj = SimpleNamespace(app=SimpleNamespace(conf=conf))
        return CliRunner().invoke(sqs, ["dlq", *arguments], obj=obj)

    return run


def letter(
    id_: str, *, sent: int = NOW - 60, note: Any = None, arn: str | None = None
) -> dict[str, Any]:
    text = json.dumps({"reason": "it failed", "source_queue": "jobs"} if note is None else note)
    facts = {"ApproximateReceiveCount": "1", "SentTimestamp": str(sent * 1000)}
    if arn is not None:
        facts["DeadLetterQueueSourceArn"] = arn
    attribute = {"dead-letter": {"DataType": "String", "StringValue": text}}
    return {
        "MessageId": f"sqs-{id_}-{sent}",
        "Body": json.dumps({"id": id_, "action": "registerUser", "data": {}}),
        "Attributes": facts,
        "MessageAttributes": attribute if note != "" else {},
    }


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "Any")


def redrive(run: Commands, fake: Sqs, *arguments: str, **options: Any) -> tuple[Result, list[Any]]:
    told = run(fake, "redrive", "--yes", "--json", *arguments, **options)
    return told, [json.loads(line) for line in told.stdout.splitlines()]


# Redrive


def test_letters_are_sent_before_they_are_deleted(run: Commands) -> None:
    fake = Sqs(*(letter(f"m-{n}") for n in range(12)))
    told, lines = redrive(run, fake)
    assert told.exit_code == 0, told.output
    assert fake.actions == ["receive", "send", "delete", "receive", "send", "delete", "receive"]
    assert len(fake.sent) == len(lines) == 12
    assert fake.letters == {}


def test_a_letter_that_was_not_sent_is_not_deleted(run: Commands) -> None:
    fake = Sqs(letter("m-0"), letter("m-1"))
    fake.fault = lambda action, call: {"1"} if action == "send" else ()
    told, lines = redrive(run, fake)
    assert told.exit_code == 1
    assert [(line["id"], line["became"]) for line in lines] == [
        ("m-1", "not sent"),
        ("m-0", "redriven"),
    ]
    assert lines[0]["why"] == "Refused"
    assert fake.visible == 1


@pytest.mark.parametrize(
    "fault", [refused("AccessDenied"), EndpointConnectionError(endpoint_url=JOBS)]
)
def test_where_nothing_can_be_sent_it_stops_and_every_letter_stays(
    run: Commands, fault: Exception
) -> None:
    fake = Sqs(*(letter(f"m-{n}") for n in range(25)))

    def fails(action: str, call: Any) -> Any:
        if action == "send":
            raise fault
        return ()

    fake.fault = fails
    told, lines = redrive(run, fake)
    assert told.exit_code == 1
    assert len(lines) == 10
    assert lines[0]["why"] in ("AccessDenied", "EndpointConnectionError")
    assert fake.visible == 25


def test_what_is_sent_and_cannot_be_deleted_is_said(run: Commands) -> None:
    fake = Sqs(letter("m-0"), letter("m-1"))
    fake.fault = lambda action, call: (
        {e["Id"] for e in call["Entries"] if e["ReceiptHandle"] == "handle-1"}
        if action == "delete"
        else ()
    )
    told, lines = redrive(run, fake)
    assert told.exit_code == 1
    assert ("m-1", "not deleted") in [(line["id"], line["became"]) for line in lines]
    assert fake.actions.count("delete") == 3
    assert fake.visible == 1


def test_the_twin_of_a_letter_that_was_not_sent_stays(run: Commands) -> None:
    fake = Sqs(letter("m-0"), letter("m-0", sent=NOW - 50), letter("m-1"))
    fake.fault = lambda action, call: {"0"} if action == "send" else ()
    _, lines = redrive(run, fake)
    assert ("m-0", "dropped") not in [(line["id"], line["became"]) for line in lines]
    assert fake.visible == 2


def test_what_arrives_during_the_redrive_is_no_twin_and_stays(run: Commands) -> None:
    # It may be what was just redriven, and failed again.
    fake = Sqs(letter("m-0"), letter("m-0", sent=NOW))
    told, lines = redrive(run, fake)
    assert [line["became"] for line in lines] == ["redriven"]
    assert "1 arrived since the start" in told.stderr
    assert fake.visible == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_after_the_call_and_loses_nothing(
    run: Commands, number: signal.Signals
) -> None:
    fake = Sqs(*(letter(f"m-{n}") for n in range(25)))

    def interrupt(action: str, call: Any) -> Any:
        if action == "send":
            os.kill(os.getpid(), number)
        return ()

    fake.fault = interrupt
    told, lines = redrive(run, fake)
    assert told.exit_code == 1
    assert [line["became"] for line in lines] == ["redriven"] * 10
    assert len(fake.sent) == 10
    assert fake.visible == 15


def test_the_second_interruption_is_at_once_and_lets_go(run: Commands) -> None:
    fake = Sqs(*(letter(f"m-{n}") for n in range(25)))

    def interrupt(action: str, call: Any) -> Any:
        if action == "send":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return ()

    fake.fault = interrupt
    told, _ = redrive(run, fake)
    assert told.exit_code == 1
    assert fake.sent == []
    assert fake.visible == 25


# Whose letter it is


def test_letters_of_queues_that_share_their_dead_letters_go_each_to_its_own(run: Commands) -> None:
    arn = "arn:aws:sqs:us-east-1:1:mail"
    fake = Sqs(letter("m-0"), letter("m-1", note="", arn=arn))
    redrive(run, fake, queues=(JOBS, MAIL))
    assert sorted(url for url, _ in fake.sent) == [JOBS, MAIL]


def test_a_letter_of_nobody_knows_which_queue_stays_unless_it_is_named(run: Commands) -> None:
    fake = Sqs(letter("m-0", note=""))
    told, [line] = redrive(run, fake, queues=(JOBS, MAIL))
    assert told.exit_code == 1
    assert line["became"] == "not sent"
    assert "--queue" in line["why"]
    assert fake.visible == 1

    _, [line] = redrive(run, fake, "--queue", "mail", queues=(JOBS, MAIL))
    assert line["became"] == "redriven"
    assert [url for url, _ in fake.sent] == [MAIL]


def test_letters_of_nobody_knows_which_queue_do_not_hold_up_the_others(run: Commands) -> None:
    fake = Sqs(*(letter(f"m-{n}", note="") for n in range(10)), letter("m-10"))
    _, lines = redrive(run, fake, queues=(JOBS, MAIL))
    assert [line["id"] for line in lines if line["became"] == "redriven"] == ["m-10"]
    assert fake.visible == 10


OPTIONS = Options(
    region="us-east-1", queues={"jobs": QueueAddress(JOBS, DEAD)}, decode_json=decode_json
)


@pytest.mark.parametrize("note", [[], "no note", 7, {"reason": 7, "deliveries": "x", "task": []}])
def test_a_note_that_somebody_else_wrote_is_read_for_what_it_is(note: Any) -> None:
    message = letter("m-0", note=note) | {"ReceiptHandle": "handle"}
    read = read_letter(message, DEAD, OPTIONS, 0.0)
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
    message = letter("m-0", note=note) | {"ReceiptHandle": "handle"}
    read = read_letter(message, DEAD, OPTIONS, 0.0)
    assert printable(json.dumps(told(read))).isprintable()
    assert "dead-letter" not in restored(read.delivery.attributes) or "displaced" in str(note)


@pytest.mark.parametrize("data", ["A", "!", "AAAAA"])
def test_a_displaced_attribute_that_is_no_base64_is_left_off(data: str) -> None:
    displaced = {"name": "a", "DataType": "Binary", "base64": data}
    text = json.dumps({"displaced": displaced})
    note = {"dead-letter": {"DataType": "String", "StringValue": text}}
    assert restored(note) in ({}, {"a": {"DataType": "Binary", "BinaryValue": b""}})


def test_a_body_that_is_no_message_is_a_letter_too() -> None:
    message = letter("m-0", note="") | {"ReceiptHandle": "handle", "Body": "\x00no message"}
    read = read_letter(message, DEAD, OPTIONS, 0.0)
    assert (read.id, read.task) == (message["MessageId"], None)


# The look


def test_a_look_that_cannot_let_go_says_for_how_long(run: Commands) -> None:
    fake = Sqs(letter("m-0"))

    def fails(action: str, call: Any) -> Any:
        if action == "let go":
            raise refused("AccessDenied")
        return ()

    fake.fault = fails
    told = run(fake, "list")
    assert "1 stay hidden for up to 30 s" in told.stderr


def test_a_look_ends_before_its_letters_show_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sqs_broker.tools.letters.monotonic", lambda: now[0])
    fake = Sqs(*(letter(f"m-{n}") for n in range(40)))
    look = Look(fake, OPTIONS, DEAD, expected=0)  # type: ignore[arg-type]  # a fake
    with look:
        for _ in look.batches():
            now[0] += 15
    assert look.is_cut_short
    assert fake.actions == ["receive", "receive", "let go", "let go"]
    assert fake.visible == 40


def test_a_letter_is_given_once_though_sqs_delivers_it_twice() -> None:
    fake = Sqs(letter("m-0"))
    given = []
    with Look(fake, OPTIONS, DEAD, expected=1) as look:  # type: ignore[arg-type]  # a fake
        for letters in look.batches():
            given += letters
            if len(fake.calls) < 3:
                fake.hidden.clear()
    assert len(given) == 1
    assert fake.visible == 1


def test_a_denied_receive_is_one_line_that_names_it(run: Commands) -> None:
    fake = Sqs(letter("m-0"))

    def fails(action: str, call: Any) -> Any:
        raise refused("AccessDenied")

    fake.fault = fails
    told = run(fake, "list")
    assert told.exit_code == 1
    assert "sqs:ReceiveMessage" in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_talk_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_the_clock_of_the_fake_is_the_one_of_its_letters() -> None:
    assert datetime.fromtimestamp(NOW, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT") == DATE
