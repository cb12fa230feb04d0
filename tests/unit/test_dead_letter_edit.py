"""`sqs dlq redrive --edit`: a private file, a check as a worker's, and no value in any record."""

import base64
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from app.messages import Registration, decode_json
from app.typed_task import TypedTask
from sqs_broker.options import Options
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import Clock, FakeSqs
from sqs_broker.tools.commands import sqs
from sqs_broker.tools.dead_letters import DeadLetterMessage, Reader
from sqs_broker.tools.edit import EditError, differences, edited, readable, written

DATA = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim", "secret": "marker"}}
BODY = json.dumps({"id": "id-1", "action": "registerUser", "data": DATA})
NOTE = {"dead-letter": {"DataType": "String", "StringValue": '{"source_queue": "jobs"}'}}

Change = Callable[[Any], Any]


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    made = FakeSqs(clock)
    made.create_queue("jobs", dead_letters="dead")
    return made


@pytest.fixture
def options(fake: FakeSqs) -> Options:
    return fake.options(decode_json=decode_json)


@pytest.fixture
def message(fake: FakeSqs, options: Options) -> DeadLetterMessage:
    dead = options.queue("jobs").dead_letter_url or ""
    fake.put(dead, BODY, attributes=NOTE)
    with Reader(Queue(dead, fake), options, expected=1) as reader:
        ((found,),) = reader.batches()
    return found


def editor(change: Change, seen: list[Path] | None = None) -> Callable[[Path], None]:
    """A person who changes the file."""

    def edit(path: Path) -> None:
        if seen is not None:
            seen.append(path)
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content) or content))

    return edit


def renamed(content: Any) -> None:
    content["data"]["userInfo"]["nickname"] = "lee"


def an_app(fake: FakeSqs) -> Celery:
    """An app with the task."""
    made = Celery("tests", broker="sqs://", set_as_current=False, task_cls=TypedTask)
    made.conf.broker_transport = "sqs_broker:Transport"
    made.conf.broker_transport_options = fake.transport_options(decode_json=decode_json)

    @made.task(name="registerUser", model=Registration, shared=False)
    def register_user(message: Any, provenance: Any) -> None: ...

    return made


@pytest.fixture
def tasks(fake: FakeSqs) -> Any:
    return an_app(fake).tasks


def test_the_file_is_private_and_gone_afterwards(
    message: DeadLetterMessage, options: Options, tasks: Any
) -> None:
    seen: list[Path] = []
    new = edited(message, editor(renamed, seen), options, tasks)
    assert new.changed == ("data.userInfo.nickname",)
    assert json.loads(new.message.delivery.body)["data"]["userInfo"]["nickname"] == "lee"
    assert not seen[0].parent.exists()


def test_what_a_killed_edit_left_is_removed_by_the_next_one_and_nothing_else(
    message: DeadLetterMessage,
    options: Options,
    tasks: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere, shared = tmp_path / "elsewhere", tmp_path / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    left, new, held = (shared / f"dead-letter-{name}" for name in ("left", "new", "held"))
    for directory in (elsewhere, left, new, held):
        directory.mkdir(parents=True)
        (directory / "body.json").write_text("{}")
    hour_ago = time.time() - 3_600
    for directory in (elsewhere, left, held):
        os.utime(directory, (hour_ago, hour_ago))
    (shared / "dead-letter-link").symlink_to(elsewhere)
    descriptor = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        edited(message, editor(renamed), options, tasks)
    finally:
        os.close(descriptor)
    assert sorted(path.name for path in shared.iterdir()) == [
        "dead-letter-held",
        "dead-letter-link",
        "dead-letter-new",
    ]
    assert (elsewhere / "body.json").exists()


def test_a_directory_in_which_somebody_edits_is_not_removed(
    message: DeadLetterMessage, options: Options, tasks: Any
) -> None:
    def edit(path: Path) -> None:
        os.utime(path.parent, (0, 0))
        edited(message, editor(renamed), options, tasks)
        editor(renamed)(path)

    assert edited(message, edit, options, tasks).changed


def test_the_file_is_gone_if_the_editor_fails(
    message: DeadLetterMessage, options: Options, tasks: Any
) -> None:
    seen: list[Path] = []

    def fail(path: Path) -> None:
        seen.append(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edited(message, fail, options, tasks)
    assert not seen[0].parent.exists()


def without_user(content: Any) -> None:
    del content["data"]["userId"]


def other_id(content: Any) -> None:
    content["id"] = "id-2"


def other_task(content: Any) -> None:
    content["action"] = "nobody"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: None, "Nothing was changed"),
        (without_user, "refuses the arguments|would not run"),
        (other_id, "keeps its id"),
        (other_task, "no such task"),
        (lambda content: ["marker"], "not a JSON object"),
    ],
)
def test_what_a_worker_would_not_run_is_not_sent(
    message: DeadLetterMessage, options: Options, tasks: Any, change: Change, why: str
) -> None:
    with pytest.raises(EditError, match=why) as raised:
        edited(message, editor(change), options, tasks)
    assert "marker" not in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "why"),
    [(Path.unlink, "was removed"), (lambda path: path.write_bytes(b'{"a":"\xe9"}'), "not UTF-8")],
    ids=["removed", "not UTF-8"],
)
def test_a_file_that_cannot_be_read_is_not_sent(
    message: DeadLetterMessage, options: Options, tasks: Any, edit: Any, why: str
) -> None:
    with pytest.raises(EditError, match=why):
        edited(message, edit, options, tasks)


def test_a_body_with_a_lone_surrogate_can_be_edited(
    message: DeadLetterMessage, options: Options, tasks: Any
) -> None:
    content = json.loads(message.delivery.body)
    content["data"]["userInfo"]["nickname"] = "\ud800"
    old = replace(message, delivery=replace(message.delivery, body=json.dumps(content)))
    new = edited(old, editor(renamed), options, tasks)
    assert json.loads(new.message.delivery.body)["data"]["userInfo"]["nickname"] == "lee"


@pytest.mark.parametrize("is_base64", [False, True])
def test_a_nested_body_is_shown_decoded_and_sent_in_its_own_form(is_base64: bool) -> None:
    inner = json.dumps([[1], {}, {}])
    text = base64.b64encode(inner.encode()).decode() if is_base64 else inner
    body = json.dumps({"body": text, "headers": {"id": "x"}, "properties": {}})
    content = readable(body)
    assert content["body"] == [[1], {}, {}]
    assert json.loads(written(content, body)) == json.loads(body)
    content["body"][0][0] = 2
    new = json.loads(written(content, body))["body"]
    assert json.loads(base64.b64decode(new) if is_base64 else new) == [[2], {}, {}]


def test_differences_name_paths_and_no_values() -> None:
    before = {"a": 1, "b": [1, {"c": 2}], "d": {"e": True}, "gone": 0}
    after = {"a": 1, "b": [1, {"c": 3}], "d": {"e": 1}, "new": 0}
    assert sorted(differences(before, after)) == ["b[1].c", "d.e", "gone", "new"]


# The command


def run(fake: FakeSqs, *arguments: str) -> Result:
    return CliRunner().invoke(
        sqs,
        ["dlq", "redrive", "--edit", *arguments],
        obj=SimpleNamespace(app=an_app(fake)),
        input="y\n",
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; the editor replaces kim with lee."""
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nsed -i s/kim/lee/ "$1"\n')
    script.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(script))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_original_is_in_a_private_file_and_the_new_one_is_sent(
    fake: FakeSqs, message: DeadLetterMessage, home: Path
) -> None:
    ran = run(fake, "--id", "id-1")
    assert ran.exit_code == 0, ran.output
    assert "Changed: data.userInfo.nickname" in ran.stderr
    (sent,) = fake.bodies(fake.options().queue("jobs").url)
    assert json.loads(sent)["data"]["userInfo"]["nickname"] == "lee"
    (kept,) = home.glob("dead-letter-*.jsonl")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["body"] == BODY
    assert "lee" not in ran.output
    assert "marker" not in ran.output


@pytest.mark.usefixtures("message", "home")
def test_edit_needs_one_message(fake: FakeSqs) -> None:
    assert run(fake).exit_code == 2
    assert "No dead letter matches" in run(fake, "--id", "id-9").stderr
    fake.put(fake.options().queue("jobs").dead_letter_url or "", BODY, attributes=NOTE)
    assert "Several dead letters match" in run(fake, "--id", "id-1").stderr
    assert fake.bodies(fake.options().queue("jobs").url) == []
