"""`sqs dlq` on 300 dead letters of five kinds: each command moves exactly the chosen ones."""

import json
import os
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from app.messages import decode_json
from sqs_broker.rules.dead_letter import attributes_of, restored
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import DeadLetter
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Answer, Request
from sqs_broker.testing import Call, Clock, FakeSqs
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.commands.dead_letter_queues import Filter
from sqs_broker.tools.commands.pace import Pace
from sqs_broker.tools.dead_letters import DeadLetterMessage, Reader
from sqs_broker.tools.ledger import NoLedger
from sqs_broker.tools.letter_file import BadLine, letter_in, line_of
from sqs_broker.tools.redrive import HELD, Redrive
from sqs_broker.tools.redrive import Result as Became

SEND, DELETE, RECEIVE = "SendMessageBatch", "DeleteMessageBatch", "ReceiveMessage"
LIMIT = 1_048_576

#: A message without its ids: body, attributes, group, X-Ray's header.
Content = tuple[str, str, str | None, str | None]
Commands = Callable[..., Result]


def text(value: str) -> dict[str, Any]:
    return {"DataType": "String.custom", "StringValue": value}


TEN: dict[str, Any] = {f"a{n}": text(f"v{n}") for n in range(9)} | {
    "z": {"DataType": "Binary.raw", "BinaryValue": bytes(range(256))}
}

#: By kind: task, error, reason, the producer's attributes, message group.
KINDS: dict[str, tuple[str, str, str, Mapping[str, Any], str | None]] = {
    "conflict": ("registerUser", "Conflict", "registered already", {}, None),
    "timeout": ("registerUser", "MongoTimeout", "no answer: 5 s", TEN, "shop-7"),
    "unknown": ("registerUsr", "KeyError", "unknown task 'registerUsr'", {}, None),
    "binary": ("increment", "ValueError", "bad \u00fcmlaut \u2028", {"b": TEN["z"]}, None),
    "moved": ("registerUser", "", "", {"one": text("1")}, "shop-8"),
}

#: The kinds whose messages have X-Ray's header, which is an attribute of SQS's own.
XRAY = dict.fromkeys(
    ("binary", "moved"),
    "Root=1-67a1b2c3-0123456789abcdef01234567;Parent=0123456789abcdef;Sampled=1",
)


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    made = FakeSqs(clock)
    made.create_queue("jobs", dead_letters="dead")
    return made


@pytest.fixture
def dead(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").dead_letter_url or ""


@pytest.fixture
def jobs(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


def body_of(kind: str, number: int) -> str:
    info = {"nickname": "k\u00efm \U0001f600", "n": number}
    return json.dumps(
        {"id": f"{kind}-{number}", "action": KINDS[kind][0], "data": {"userInfo": info}},
        ensure_ascii=False,
    )


@pytest.fixture
def three_hundred(fake: FakeSqs, dead: str, clock: Clock) -> dict[str, list[Content]]:
    """60 of each kind are in the dead-letter queue; what the producer had sent, by kind."""
    sent: dict[str, list[Content]] = {}
    for kind, (task, error, reason, attributes, group) in KINDS.items():
        for number in range(60):
            body = body_of(kind, number)
            own: Mapping[str, Any] = attributes
            if kind != "moved":
                delivery = Delivery(
                    "1", "jobs", "s", "h", body, attributes, 3, datetime.now(UTC), 0.0
                )
                id_ = f"{kind}-{number}"
                own = attributes_of(delivery, DeadLetter(reason, error), task, id_, LIMIT)
            header = XRAY.get(kind)
            fake.put(dead, body, attributes=own, group=group, trace_header=header)
            sent.setdefault(kind, []).append(content_of(body, attributes, group, header))
    clock.advance(60)
    fake.forget_calls()
    return sent


def content_of(
    body: str, attributes: Mapping[str, Any], group: str | None, header: str | None
) -> Content:
    own = repr(sorted((name, sorted(value.items())) for name, value in attributes.items()))
    return body, own, group, header


def contents(fake: FakeSqs, url: str) -> Counter[Content]:
    """All that is in a queue, hidden or not."""
    return Counter(
        content_of(m.body, m.attributes, m.group, m.trace_header) for m in fake.messages(url)
    )


@pytest.fixture
def run(fake: FakeSqs) -> Commands:
    def run(*arguments: str, typed: str = "") -> Result:
        options = fake.transport_options(decode_json=decode_json)
        conf = SimpleNamespace(
            broker_transport="sqs_broker:Transport", broker_transport_options=options
        )
        obj = SimpleNamespace(app=SimpleNamespace(conf=conf))
        return CliRunner().invoke(sqs, ["dlq", *arguments], input=typed, obj=obj)

    return run


FILTERS = [
    (["--task", "registerUser"], {"conflict", "timeout", "moved"}),
    (["--error", "*Timeout"], {"timeout"}),
    (["--reason", "ALREADY"], {"conflict"}),
    (["--match", "unknown.{1,9}registerusr"], {"unknown"}),
    (["--match", "^binary-"], {"binary"}),
    (["--task", "registerUser", "--error", "Conflict"], {"conflict"}),
]


@pytest.mark.parametrize(("criteria", "kinds"), FILTERS)
def test_a_filtered_redrive_moves_exactly_the_chosen_ones_byte_for_byte(
    run: Commands,
    fake: FakeSqs,
    jobs: str,
    dead: str,
    three_hundred: dict[str, list[Content]],
    criteria: list[str],
    kinds: set[str],
) -> None:
    before = contents(fake, dead)
    ran = run("redrive", "--yes", *criteria)
    assert ran.exit_code == 0, ran.output
    chosen = Counter(content for kind in kinds for content in three_hundred[kind])
    assert contents(fake, jobs) == chosen
    left = contents(fake, dead)
    assert left <= before
    assert left.total() == 300 - chosen.total()


def test_a_dry_run_counts_and_changes_nothing(
    run: Commands, fake: FakeSqs, jobs: str, dead: str, three_hundred: dict[str, list[Content]]
) -> None:
    before = contents(fake, dead)
    ran = run("redrive", "--dry-run", "--error", "Conflict")
    assert "60 would be redriven." in ran.stderr
    assert contents(fake, dead) == before
    assert contents(fake, jobs).total() == 0
    assert not {SEND, DELETE} & set(fake.counts)


def test_the_age_of_a_dead_letter_counts_from_its_note(fake: FakeSqs, dead: str) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    for days in (1, 5, 9):
        note = {"reason": "x", "at": (now - timedelta(days=days)).isoformat()}
        attribute = {"DataType": "String", "StringValue": json.dumps(note)}
        fake.put(dead, json.dumps({"id": str(days)}), attributes={"dead-letter": attribute})
    options = fake.options(decode_json=decode_json)
    with Reader(Queue(dead, fake), options, expected=3) as reader:
        found = [message for batch in reader.batches() for message in batch]
    older = Filter(older_than=timedelta(days=3), now=now)
    between = Filter(older_than=timedelta(days=3), newer_than=timedelta(days=7), now=now)
    assert [json.loads(m.delivery.body)["id"] for m in found if older.matches(m)] == ["5", "9"]
    assert [json.loads(m.delivery.body)["id"] for m in found if between.matches(m)] == ["5"]


def test_a_pattern_that_could_take_too_long_is_refused(run: Commands) -> None:
    ran = run("list", "--match", "(a+)+b")
    assert ran.exit_code == 2
    assert "too long" in ran.stderr


def test_a_rate_takes_its_time() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(10.0, 300, lambda: False, clock=lambda: now, sleep=sleep)
    for _ in range(30):
        assert pace.wait(10)
    assert now == pytest.approx(29)


def test_an_interruption_ends_the_wait_of_a_rate() -> None:
    pace = Pace(1.0, 300, lambda: True, clock=lambda: 0.0, sleep=lambda seconds: None)
    assert pace.wait(10)
    assert not pace.wait(10)


def test_limit_moves_as_many(
    run: Commands, fake: FakeSqs, jobs: str, three_hundred: dict[str, list[Content]]
) -> None:
    run("redrive", "--yes", "--limit", "25", "--task", "registerUser")
    assert contents(fake, jobs).total() == 25


# Killed and run again


@pytest.mark.parametrize("at", [1, 3, 7])
def test_a_redrive_that_is_interrupted_half_way_and_run_again_moves_each_once(
    run: Commands,
    fake: FakeSqs,
    jobs: str,
    clock: Clock,
    three_hundred: dict[str, list[Content]],
    at: int,
) -> None:
    def interrupt(call: Call) -> None:
        if call.action == SEND and fake.counts[SEND] == at:
            os.kill(os.getpid(), signal.SIGTERM)

    fake.on_call = interrupt
    assert run("redrive", "--yes", "--task", "registerUser").exit_code == 1
    assert 0 < contents(fake, jobs).total() < 180
    fake.on_call = lambda call: None
    clock.advance(60)
    assert run("redrive", "--yes", "--task", "registerUser").exit_code == 0
    wanted = [*three_hundred["conflict"], *three_hundred["timeout"], *three_hundred["moved"]]
    assert contents(fake, jobs) == Counter(wanted)


class Many:
    """A dead-letter queue with as many messages as asked for, none of which is kept here."""

    def __init__(self, count: int, size: int) -> None:
        self.left, self._size = count, size

    def carry(self, request: Request[Any]) -> Answer:
        match request.action:
            case "GetQueueAttributes":
                count = {"ApproximateNumberOfMessages": str(self.left)}
                return Answer(
                    {"Attributes": count | {"ApproximateNumberOfMessagesNotVisible": "0"}}
                )
            case "ReceiveMessage":
                ten = [self._message(self.left - n) for n in range(min(self.left, 10))]
                self.left -= len(ten)
                return Answer({"Messages": ten} if ten else {})
        entries = request.parameters["Entries"]
        return Answer({"Successful": [{"Id": entry["Id"]} for entry in entries]})

    def _message(self, number: int) -> dict[str, Any]:
        data = {"userInfo": {"introduction": "x" * self._size}}
        return {
            "MessageId": f"sqs-{number}",
            "ReceiptHandle": f"handle-{number}" * 20,
            "Body": json.dumps({"id": f"m-{number}", "action": "registerUser", "data": data}),
            "Attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1000"},
        }

    def open(self) -> None: ...

    def close(self) -> None: ...

    def pause(self, seconds: float) -> None: ...


@pytest.mark.parametrize("arguments", [["redrive", "--dry-run"], ["redrive"], ["purge"]])
def test_memory_does_not_grow_with_the_number_of_dead_letters(
    fake: FakeSqs, arguments: list[str]
) -> None:
    # 600 bodies of 64 KiB are 38 MB.
    options = fake.transport_options(decode_json=decode_json)
    options["driver"] = lambda *_, **__: Many(600, 65_536)
    conf = SimpleNamespace(
        broker_transport="sqs_broker:Transport", broker_transport_options=options
    )
    tracemalloc.start()
    try:
        ran = CliRunner().invoke(
            sqs, ["dlq", *arguments, "--yes"], obj=SimpleNamespace(app=SimpleNamespace(conf=conf))
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ran.exit_code == 0, ran.output
    assert "600" in ran.stderr
    assert peak < 12_000_000


# The cap


class Memory(NoLedger):
    """A ledger in memory. It fails if it is told to."""

    def __init__(self) -> None:
        self.letters: dict[str, set[str]] = {}
        self.is_away = False

    def counts(self, messages: Sequence[DeadLetterMessage]) -> Mapping[str, int]:
        return {m.id: len(self.letters[m.id]) for m in messages if m.id in self.letters}

    def redriving(self, messages: Sequence[DeadLetterMessage]) -> None:
        if self.is_away:
            raise click.ClickException("away")
        for message in messages:
            self.letters.setdefault(message.id, set()).add(message.delivery.message_id)


def redrive(fake: FakeSqs, dead: str, ledger: Memory, most: int) -> Counter[str]:
    results: Counter[str] = Counter()
    options = fake.options(decode_json=decode_json)
    with Reader(Queue(dead, fake), options, expected=10, more_time=HELD) as reader:
        run = Redrive(fake, options, dead, reader.seconds_left, ledger=ledger, most_redrives=most)
        for batch in reader.batches():
            for each in run([message for message in batch if message.queue]):
                results[str(each.result)] += 1
                if each.result == Became.REDRIVEN:
                    reader.forget([each.message.delivery.message_id])
    run.close()
    return results


def test_a_message_is_redriven_as_often_as_the_cap_says(fake: FakeSqs, dead: str) -> None:
    ledger = Memory()
    for _ in range(3):
        fake.put(dead, body_of("conflict", 1))
        assert redrive(fake, dead, ledger, 3) == {"redriven": 1}
    fake.put(dead, body_of("conflict", 1))
    fake.put(dead, body_of("conflict", 2))
    assert redrive(fake, dead, ledger, 3) == {"not sent": 1, "redriven": 1}
    assert fake.bodies(dead) == [body_of("conflict", 1)]


def test_a_redrive_that_is_repeated_counts_once(fake: FakeSqs, dead: str) -> None:
    ledger = Memory()
    fake.put(dead, body_of("conflict", 1))
    fake.fail(DELETE, error=SqsError("AccessDenied"), times=99)
    redrive(fake, dead, ledger, 5)
    redrive(fake, dead, ledger, 5)
    assert [len(letters) for letters in ledger.letters.values()] == [1]


def test_if_the_record_fails_nothing_is_sent(fake: FakeSqs, dead: str, jobs: str) -> None:
    ledger = Memory()
    ledger.is_away = True
    fake.put(dead, body_of("conflict", 1))
    with pytest.raises(click.ClickException):
        redrive(fake, dead, ledger, 5)
    assert (len(fake.messages(dead)), len(fake.messages(jobs))) == (1, 0)


# Purge


def test_purge_deletes_exactly_what_it_lists(
    run: Commands, fake: FakeSqs, dead: str, three_hundred: dict[str, list[Content]]
) -> None:
    before = contents(fake, dead)
    ran = run("purge", "--error", "KeyError", "--json", typed="y\n")
    assert ran.exit_code == 0, ran.output
    listed = {json.loads(line)["id"] for line in ran.stdout.splitlines()}
    assert listed == {f"unknown-{n}" for n in range(60)}
    gone = before - contents(fake, dead)
    assert {json.loads(body)["id"] for body, *_ in gone} == listed
    assert "PurgeQueue" not in fake.counts


def test_purge_by_ids_deletes_these(
    run: Commands, fake: FakeSqs, dead: str, three_hundred: dict[str, list[Content]]
) -> None:
    ran = run("purge", "--id", "moved-3", "--id", "binary-4", "--yes")
    assert "2 deleted." in ran.stderr
    left = {json.loads(body)["id"] for body in fake.bodies(dead)}
    assert len(left) == 298
    assert not {"moved-3", "binary-4"} & left


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_purge_without_a_yes_deletes_nothing(
    run: Commands, fake: FakeSqs, how: list[str], three_hundred: dict[str, list[Content]]
) -> None:
    ran = run("purge", "--error", "KeyError", *how, typed="n\n")
    assert ran.exit_code == (0 if how else 1)
    assert DELETE not in fake.counts


def test_what_arrives_while_a_person_decides_stays(
    run: Commands, fake: FakeSqs, dead: str, clock: Clock
) -> None:
    fake.put(dead, body_of("conflict", 1))
    clock.advance(60)

    def arrive(call: Call) -> None:
        if call.action == RECEIVE and fake.counts[RECEIVE] == 1:
            fake.put(dead, body_of("conflict", 2))

    fake.on_call = arrive
    run("purge", "--yes")
    assert fake.bodies(dead) == [body_of("conflict", 2)]


def test_a_purge_that_is_interrupted_can_be_run_again(
    run: Commands, fake: FakeSqs, dead: str, clock: Clock, three_hundred: dict[str, list[Content]]
) -> None:
    fake.on_call = lambda call: (
        call.action == DELETE and fake.counts[DELETE] == 2 and os.kill(os.getpid(), signal.SIGINT)
    )
    assert run("purge", "--error", "KeyError", "--yes").exit_code == 1
    left = 300 - len(fake.messages(dead))
    assert 0 < left < 60
    fake.on_call = lambda call: None
    clock.advance(60)
    assert f"{60 - left} deleted." in run("purge", "--error", "KeyError", "--yes").stderr


# Export and import


def test_export_purge_and_import_give_the_same_back(
    run: Commands,
    fake: FakeSqs,
    dead: str,
    tmp_path: Path,
    three_hundred: dict[str, list[Content]],
) -> None:
    before, file = contents(fake, dead), tmp_path / "letters.jsonl"
    assert run("export", "--file", str(file)).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert contents(fake, dead) == before
    assert "300 deleted." in run("purge", "--yes").stderr
    ran = run("import", str(file))
    assert ran.exit_code == 0, ran.output
    assert contents(fake, dead) == before


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_rate_is_a_finite_number_above_zero(run: Commands, rate: str) -> None:
    ran = run("redrive", "--rate", rate, "--yes")
    assert ran.exit_code == 2
    assert "--rate" in ran.stderr


def test_an_export_has_what_the_filter_selects(
    run: Commands, tmp_path: Path, three_hundred: dict[str, list[Content]]
) -> None:
    file = tmp_path / "letters.jsonl"
    run("export", "--file", str(file), "--error", "KeyError")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["id"] for line in lines} == {f"unknown-{n}" for n in range(60)}


def test_an_import_that_fails_half_way_goes_on_where_it_stopped(
    run: Commands,
    fake: FakeSqs,
    dead: str,
    tmp_path: Path,
    three_hundred: dict[str, list[Content]],
) -> None:
    before, file = contents(fake, dead), tmp_path / "letters.jsonl"
    run("export", "--file", str(file))
    run("purge", "--yes")
    fake.forget_calls()

    def fail(call: Call) -> None:
        if call.action == SEND and fake.counts[SEND] == 4:
            raise SqsError("AccessDenied")

    fake.on_call = fail
    ran = run("import", str(file))
    assert ran.exit_code == 1
    assert "30 of 300 lines are imported" in ran.stderr
    fake.on_call = lambda call: None
    assert run("import", str(file)).exit_code == 0
    assert contents(fake, dead) == before
    assert "imported already" in run("import", str(file)).stderr
    assert contents(fake, dead) == before


def test_an_import_takes_all_lines_of_another_file_of_the_same_name(
    run: Commands, fake: FakeSqs, dead: str, clock: Clock, tmp_path: Path
) -> None:
    file = tmp_path / "letters.jsonl"
    for numbers in (range(30), range(30, 45)):
        for number in numbers:
            fake.put(dead, body_of("conflict", number))
        clock.advance(60)
        run("export", "--file", str(file))
        run("purge", "--yes")
        before = f"{len(numbers)} of {len(numbers)} lines are imported."
        assert before in run("import", str(file)).stderr
        assert len(fake.messages(dead)) == len(numbers)
        clock.advance(60)
        run("purge", "--yes")
        file.unlink()


def test_an_import_goes_on_with_lines_that_were_added_to_its_file(
    run: Commands, fake: FakeSqs, dead: str, clock: Clock, tmp_path: Path
) -> None:
    fake.put(dead, body_of("conflict", 1))
    fake.put(dead, body_of("conflict", 2))
    clock.advance(60)
    file = tmp_path / "letters.jsonl"
    run("export", "--file", str(file))
    run("purge", "--yes")
    first, second = file.read_text().splitlines(keepends=True)
    file.write_text(first)
    run("import", str(file))
    file.write_text(first + second)
    assert "2 of 2 lines are imported." in run("import", str(file)).stderr
    assert sorted(fake.bodies(dead)) == [body_of("conflict", 1), body_of("conflict", 2)]


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "{}", '{"version": 2}', '{"version": 1}', '{"version": 1, "body": 7}'],
)
def test_a_line_that_is_no_dead_letter_is_refused(line: str) -> None:
    with pytest.raises(BadLine):
        letter_in(line)


def test_if_one_line_is_wrong_nothing_is_sent(
    run: Commands, fake: FakeSqs, tmp_path: Path, three_hundred: dict[str, list[Content]]
) -> None:
    file = tmp_path / "letters.jsonl"
    run("export", "--file", str(file))
    cut = file.read_bytes()[:-40]
    file.write_bytes(cut)
    ran = run("import", str(file))
    assert ran.exit_code == 1
    assert "line 300" in ran.stderr
    assert SEND not in fake.counts


def test_an_export_that_is_interrupted_leaves_no_file(
    run: Commands, fake: FakeSqs, tmp_path: Path, three_hundred: dict[str, list[Content]]
) -> None:
    file = tmp_path / "letters.jsonl"
    fake.on_call = lambda call: (
        call.action == RECEIVE and fake.counts[RECEIVE] == 3 and os.kill(os.getpid(), signal.SIGINT)
    )
    assert run("export", "--file", str(file)).exit_code == 1
    assert list(tmp_path.iterdir()) == []
    fake.on_call = lambda call: None
    assert run("export", "--file", str(file)).exit_code == 0
    assert run("export", "--file", str(file)).exit_code == 1


def test_a_message_that_sqs_moved_keeps_its_queue_through_a_file(
    fake: FakeSqs, clock: Clock, tmp_path: Path
) -> None:
    fake.create_queue("mail", dead_letters="dead")
    dead = fake.options().queue("mail").dead_letter_url or ""
    options = fake.options(decode_json=decode_json)
    fake.put(dead, "{}", source_arn=fake.arn(options.queue("mail").url))
    with Reader(Queue(dead, fake), options, expected=1) as reader:
        ((message,),) = reader.batches()
        outgoing = letter_in(line_of(message, dead)).outgoing(options, dead)
    assert message.queue == "mail"
    assert json.loads(outgoing.attributes["dead-letter"]["StringValue"])["source_queue"] == "mail"
    assert restored(outgoing.attributes) == {}
