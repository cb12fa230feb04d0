"""`sqs send`: all lines are checked before one is sent; what was not sent is told by its line."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from kombu import Queue

from app.commands.send import command
from app.messages import Registration
from sqs_broker import install
from sqs_broker.options import Options
from sqs_broker.sqs.errors import Unreached
from sqs_broker.testing import FakeSqs
from tests.tools import ROOT

SEND = "SendMessageBatch"
LIMIT = 2_000

Run = Callable[..., Result]


def line(id_: str | None = "m-1", action: str = "registerUser", **data: Any) -> str:
    given = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim"}} | data
    return json.dumps(({"id": id_} if id_ else {}) | {"action": action, "data": given})


@pytest.fixture
def run(fake: FakeSqs) -> Run:
    """Runs the command on an app with a task that has a model, and one that has none."""
    app = Celery("tests", set_as_current=False, task_cls="app.typed_task:TypedTask")
    install(app)
    app.conf.update(
        task_queues=[Queue("jobs"), Queue("mail")],
        task_default_queue="jobs",
        task_routes={"mail*": {"queue": "mail"}},
        task_create_missing_queues=False,
        broker_transport_options=fake.transport_options(
            decode_json="app.messages:decode_json", max_message_bytes=LIMIT
        ),
    )
    app.task(shared=False, name="registerUser", model=Registration)(job)
    app.task(shared=False, name="mailUser", model=Registration)(job)
    app.task(shared=False, name="bare")(job)

    def run(*arguments: str, stdin: str | bytes = "") -> Result:
        obj = SimpleNamespace(app=app)
        return CliRunner().invoke(command, list(arguments), input=stdin, obj=obj)

    return run


def bodies(fake: FakeSqs) -> list[str]:
    return [entry["MessageBody"] for entry in fake.entries(SEND)]


def job(*arguments: Any) -> None:
    """The tasks."""


def test_one_message_is_sent_as_it_was_typed(run: Run, fake: FakeSqs) -> None:
    typed = line().replace(", ", " ,  ")
    told = run(typed)
    assert told.exit_code == 0, told.output
    assert told.stdout == "m-1\n"
    assert bodies(fake) == [typed]


def test_the_message_of_the_readme_is_sent(run: Run, fake: FakeSqs) -> None:
    text = (ROOT / "README.md").read_text()
    shown = text.partition("**Plain JSON")[2].partition("```json\n")[2].partition("```")[0]
    told = run(" ".join(shown.split()))
    assert told.exit_code == 0, told.output
    assert json.loads(bodies(fake)[0]) == json.loads(shown)


@pytest.mark.parametrize("way", ["stdin", "file", "-"])
def test_lines_are_sent_ten_a_call(run: Run, fake: FakeSqs, way: str, tmp_path: Any) -> None:
    text = "\n\n".join(line(f"m-{n}") for n in range(12))
    (tmp_path / "lines").write_text(text)
    arguments = {"stdin": [], "file": ["--file", str(tmp_path / "lines")], "-": ["--file", "-"]}
    told = run(*arguments[way], stdin=text if way != "file" else "")
    assert told.stdout.split() == [f"m-{n}" for n in range(12)]
    assert "12 sent, 0 not sent." in told.stderr
    assert [len(call["Entries"]) for call in fake.asked(SEND)] == [10, 2]


def test_a_message_without_an_id_is_given_one(run: Run, fake: FakeSqs) -> None:
    told = run(stdin=f"{line(None)}\n{line(None)}")
    ids = [json.loads(body)["id"] for body in bodies(fake)]
    assert ids == told.stdout.split()
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("no JSON", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"id": 7, "action": "registerUser", "data": {}}', "id: "),
        ('{"action": "registerUser"}', "data"),
        (line(stockId=""), "stock_id"),
        (line(stockId=7, stock_id="s1"), "stock_id"),
        (line(action="nobody"), "there is no task 'nobody'"),
        (line(action="bare"), "no message model"),
        (line(action="celery.ping"), "Celery's own tasks"),
        (line(userInfo={"nickname": "secret" * 40}), "nickname"),
        (line(userInfo={"nickname": "kim", "introduction": "x" * 2_000}), "bytes"),
        (line(mony=5), "mony: there is no such field; did you mean money?"),
        (line(userInfo={"nickname": "kim", "gendr": "f"}), "did you mean user_info.gender?"),
        (line().replace('"id"', '"idd"'), "idd: there is no such field; did you mean id?"),
        ('{"properties": {}}', "envelope"),
        (
            json.dumps({"Type": "Notification", "TopicArn": "arn:x", "Message": line()}),
            "not a plain JSON message",
        ),
    ],
)
def test_nothing_is_sent_where_one_line_is_wrong(
    run: Run, fake: FakeSqs, wrong: str, why: str
) -> None:
    told = run(stdin=f"{line()}\n{wrong}\n{line()}")
    assert told.exit_code == 1
    assert "line 2: " in told.stderr
    assert why in told.stderr
    assert "secret" not in told.stderr
    assert told.stdout == ""
    assert fake.calls == []


@pytest.mark.parametrize("way", ["stdin", "file"])
def test_a_line_that_is_not_utf_8_is_named(
    run: Run, fake: FakeSqs, way: str, tmp_path: Any
) -> None:
    text = f"{line()}\n".encode() + b'"\xff"\n'
    (tmp_path / "lines").write_bytes(text)
    arguments = ["--file", str(tmp_path / "lines")] if way == "file" else []
    told = run(*arguments, stdin=text)
    assert "line 2: the line is not UTF-8" in told.stderr
    assert fake.calls == []


@pytest.mark.parametrize("way", ["stdin", "file"])
def test_a_file_may_begin_with_a_byte_order_mark(
    run: Run, fake: FakeSqs, way: str, tmp_path: Any
) -> None:
    (tmp_path / "lines").write_text(line(), encoding="utf-8-sig")
    arguments = ["--file", str(tmp_path / "lines")] if way == "file" else []
    assert run(*arguments, stdin=(tmp_path / "lines").read_bytes()).exit_code == 0
    assert bodies(fake) == [line()]


def test_of_many_wrong_lines_the_first_are_told(run: Run, fake: FakeSqs) -> None:
    told = run(stdin="x\n" * 30)
    assert "line 20: " in told.stderr
    assert "10 more" in told.stderr
    assert "invalid lines: 30" in told.stderr


def test_a_line_that_sqs_refuses_is_told_by_its_number(run: Run, fake: FakeSqs) -> None:
    fake.fail(SEND, "Refused", entries=[1], sender_fault=True)
    told = run("--json", stdin=f"\n{line('m-1')}\n\n{line('m-2')}\n{line('m-3')}")
    assert told.exit_code == 1
    assert "line 4: Refused" in told.stderr
    assert "2 sent, 1 not sent." in told.stderr
    assert [json.loads(each)["line"] for each in told.stdout.splitlines()] == [2, 5]


def test_where_sqs_cannot_be_reached_no_message_counts_as_sent(run: Run, fake: FakeSqs) -> None:
    fake.fail(SEND, error=Unreached("EndpointConnectionError"))
    told = run(stdin=f"{line('m-1')}\n{line('m-2')}")
    assert told.exit_code == 1
    assert told.stdout == ""
    assert "0 sent, 2 not sent." in told.stderr


def test_a_message_goes_to_the_queue_of_its_task_or_to_the_one_that_is_named(
    run: Run, fake: FakeSqs, options: Options
) -> None:
    def waiting(name: str) -> int:
        return len(fake.messages(options.queue(name).url))

    run(stdin=f"{line()}\n{line(action='mailUser')}")
    assert (waiting("jobs"), waiting("mail")) == (1, 1)
    run("--queue", "mail", line())
    assert (waiting("jobs"), waiting("mail")) == (1, 2)
    assert run("--queue", "nobody", line()).exit_code == 2


def test_a_message_and_a_file_at_once_are_refused(run: Run) -> None:
    assert run(line(), "--file", "-").exit_code == 2


@pytest.mark.parametrize("stdin", ["", "\n \n"])
@pytest.mark.parametrize("arguments", [(), ("--file", "-")])
def test_without_a_message_it_says_how_to_give_one(
    run: Run, fake: FakeSqs, arguments: tuple[str, ...], stdin: str
) -> None:
    ran = run(*arguments, stdin=stdin)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "There is no message: the input is empty. Give one MESSAGE, or --file" in ran.stderr
    assert "0 sent" not in ran.stderr
    assert fake.calls == []
