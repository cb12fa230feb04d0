"""Flower's dead letters: a snapshot without bodies, one job at a time, exactly the chosen ones."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.messages import decode_json
from devstack.waiting import wait_until
from sqs_broker.rules.bounded_pattern import compiled
from sqs_broker.sqs.errors import SqsError
from sqs_broker.testing import Call, Clock, FakeSqs, State
from sqs_broker.tools.commands.dead_letter_queues import Filter
from sqs_broker.tools.edit import EditError, form_of
from sqs_broker.tools.flower.letters import HIDDEN, MOST_REASONS, Edit, Job, Letters, masked
from sqs_broker.tools.letter_file import letters_in
from tests.unit.test_dead_letter_edit import an_app

#: Seconds that nothing here comes near to.
DEADLINE = 30


@pytest.fixture
def fake(clock: Clock) -> FakeSqs:
    """Its dead letters are 30 conflicts and 30 timeouts."""
    made = FakeSqs(clock)
    made.create_queue("jobs", dead_letters="dead")
    for error in ("Conflict", "Timeout"):
        for number in range(30):
            bury(made, f"{error}-{number}", error)
    clock.advance(60)
    return made


@pytest.fixture
def letters(fake: FakeSqs) -> Letters:
    return Letters(fake.options(decode_json=decode_json), fake)


def bury(fake: FakeSqs, id_: str, error: str, reason: str = "it failed") -> None:
    note = {"reason": reason, "error": error, "source_queue": "jobs", "task": "registerUser"}
    attribute = {"DataType": "String", "StringValue": json.dumps(note)}
    data = {"stockId": "s1", "userId": id_, "userInfo": {"nickname": "marker"}}
    body = {"id": id_, "action": "registerUser", "data": data}
    fake.put(dead_url(fake), json.dumps(body), attributes={"dead-letter": attribute})


def dead_url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").dead_letter_url or ""


def ids(fake: FakeSqs, url: str) -> Counter[str]:
    return Counter(json.loads(body)["id"] for body in fake.bodies(url))


def ended(letters: Letters, began: bool = True) -> Job:
    """The job, once it is over."""
    assert began
    job = letters.job
    assert job is not None
    wait_until(lambda: job.is_over, DEADLINE, "the end of the job")
    return job


def read(letters: Letters, filter_: Filter | None = None) -> list[str]:
    """The MessageIds of a new snapshot."""
    job = ended(letters, letters.read(filter_ or Filter(), "kim"))
    assert job.error is None
    assert letters.snapshot is not None
    return [str(key) for pack in letters.snapshot.rows.packs(100) for key, _ in pack]


def test_nothing_is_read_until_it_is_told(letters: Letters, fake: FakeSqs) -> None:
    assert (letters.snapshot, letters.job, dict(fake.counts)) == (None, None, {})


def test_a_snapshot_counts_by_reason_and_has_no_body(letters: Letters, fake: FakeSqs) -> None:
    assert len(read(letters)) == 60
    snapshot = letters.snapshot
    assert snapshot is not None
    assert (snapshot.seen, snapshot.expected, snapshot.hidden) == (60, 60, 0)
    assert snapshot.reasons == {
        ("registerUser", "Conflict", "it failed"): 30,
        ("registerUser", "Timeout", "it failed"): 30,
    }
    rows = [*snapshot.page(0), *snapshot.page(1)]
    assert len(rows) == 60
    assert "marker" not in str(rows)
    assert {message.state for message in fake.messages(dead_url(fake))} == {State.VISIBLE}


def test_the_number_of_reasons_is_bounded(letters: Letters, fake: FakeSqs, clock: Clock) -> None:
    for number in range(MOST_REASONS + 50):
        bury(fake, f"x-{number}", "Odd", f"reason {number}")
    read(letters)
    assert letters.snapshot is not None
    assert len(letters.snapshot.reasons) == MOST_REASONS + 1
    assert letters.snapshot.reasons.total() == 60 + MOST_REASONS + 50


def test_a_redrive_of_the_selected_moves_these(letters: Letters, fake: FakeSqs) -> None:
    chosen = read(letters)[5:8]
    job = ended(letters, letters.redrive(chosen, "kim", is_dry=False))
    assert job.results["redriven"] == 3
    jobs = fake.options().queue("jobs").url
    assert ids(fake, jobs) == Counter({"Conflict-5": 1, "Conflict-6": 1, "Conflict-7": 1})
    assert len(fake.messages(dead_url(fake))) == 57


def test_a_redrive_of_all_moves_those_that_matched_and_no_later_ones(
    letters: Letters, fake: FakeSqs, clock: Clock
) -> None:
    read(letters, Filter(match=compiled("conflict")))
    bury(fake, "Conflict-late", "Conflict")
    clock.advance(60)
    ended(letters, letters.redrive(None, "kim", is_dry=False))
    moved = ids(fake, fake.options().queue("jobs").url)
    assert moved == Counter(f"Conflict-{n}" for n in range(30))


def test_a_letter_has_its_last_failed_attempt_though_there_is_no_control_database(
    letters: Letters,
) -> None:
    found = letters.find(read(letters)[0])
    assert found is not None
    (attempt,) = found.attempts.known or ()
    assert (attempt.error, found.attempts.fault) == ("Conflict", None)


def test_a_dry_run_changes_nothing(letters: Letters, fake: FakeSqs) -> None:
    read(letters)
    job = ended(letters, letters.redrive(None, "kim", is_dry=True))
    assert job.results["would be redriven"] == 60
    assert "60 would be redriven" in job.text
    assert len(fake.messages(dead_url(fake))) == 60


def test_a_purge_deletes_the_chosen_ones(letters: Letters, fake: FakeSqs) -> None:
    read(letters, Filter(error="Timeout"))
    assert ended(letters, letters.purge(None, "kim")).results["deleted"] == 30
    assert ids(fake, dead_url(fake)) == Counter(f"Conflict-{n}" for n in range(30))


def test_of_two_operators_one_waits(letters: Letters, fake: FakeSqs) -> None:
    others: list[bool] = []

    def start_another(call: Call) -> None:
        if call.action == "ReceiveMessage" and not others:
            others.append(letters.purge(None, "lee"))

    fake.on_call = start_another
    job = ended(letters, letters.read(Filter(), "kim"))
    assert (others, job.by) == ([False], "kim")
    fake.on_call = lambda call: None
    ended(letters, letters.read(Filter(), "lee"))


def test_a_job_that_fails_says_so_and_ends(letters: Letters, fake: FakeSqs) -> None:
    fake.fail("ReceiveMessage", error=SqsError("AccessDenied"))
    job = ended(letters, letters.read(Filter(), "kim"))
    assert "sqs:ReceiveMessage" in (job.error or "") or "AccessDenied" in (job.error or "")
    assert letters.snapshot is None


def test_one_letter_is_found_by_its_id(letters: Letters, fake: FakeSqs) -> None:
    sqs_id = read(letters)[3]
    found = letters.find(sqs_id)
    assert found is not None
    assert found.content["body"]["id"] == "Conflict-3"
    assert json.loads(found.form or "") == found.content["body"]
    assert letters.find("sqs-none") is None
    assert {message.state for message in fake.messages(dead_url(fake))} == {State.VISIBLE}


# Edit


@pytest.fixture
def tasks(fake: FakeSqs) -> Mapping[str, Any]:
    return an_app(fake).tasks


def changed(letters: Letters, sqs_id: str, old: str, new: str) -> str:
    """The body of a dead letter, with a change."""
    found = letters.find(sqs_id)
    assert found is not None
    assert found.form is not None
    assert old in found.form
    return found.form.replace(old, new)


def test_an_edited_letter_is_sent_and_its_original_is_in_a_private_file(
    letters: Letters, fake: FakeSqs, tasks: Mapping[str, Any], tmp_path: Path
) -> None:
    sqs_id = read(letters)[3]
    text = changed(letters, sqs_id, "marker", "lee")
    checked = letters.edit(sqs_id, text, "kim", tasks, None)
    assert checked == Edit(("data.userInfo.nickname",))
    assert len(fake.messages(dead_url(fake))) == 60

    done = letters.edit(sqs_id, text, "kim", tasks, tmp_path)
    assert done is not None
    assert (done.changed, done.result, done.why) == (checked.changed, "redriven", None)
    assert done.kept is not None
    assert done.kept.stat().st_mode & 0o777 == 0o600
    (original,) = letters_in(done.kept)
    assert "marker" in original.body
    (sent,) = fake.bodies(fake.options().queue("jobs").url)
    assert json.loads(sent) == json.loads(text)
    assert len(fake.messages(dead_url(fake))) == 59
    assert {message.state for message in fake.messages(dead_url(fake))} == {State.VISIBLE}
    assert letters.edit(sqs_id, text, "kim", tasks, tmp_path) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{", "["),
        ('"id": "Conflict-3"', '"id": "Conflict-4"'),
        ("registerUser", "nobody"),
        ('"marker"', "7"),
        ("marker", "marker"),
    ],
    ids=["no JSON", "another id", "no such task", "invalid data", "no change"],
)
def test_an_edit_that_a_worker_would_not_run_sends_and_writes_nothing(
    letters: Letters, fake: FakeSqs, tasks: Mapping[str, Any], tmp_path: Path, old: str, new: str
) -> None:
    sqs_id = read(letters)[3]
    text = changed(letters, sqs_id, old, new)
    for kept_in in (None, tmp_path):
        with pytest.raises(EditError, match="othing is sent"):
            letters.edit(sqs_id, text, "kim", tasks, kept_in)
    assert fake.bodies(fake.options().queue("jobs").url) == []
    assert {message.state for message in fake.messages(dead_url(fake))} == {State.VISIBLE}
    assert list(tmp_path.iterdir()) == []


def test_an_original_that_cannot_be_kept_is_not_replaced(
    letters: Letters, fake: FakeSqs, tasks: Mapping[str, Any], tmp_path: Path
) -> None:
    sqs_id = read(letters)[3]
    text = changed(letters, sqs_id, "marker", "lee")
    with pytest.raises(EditError, match="Nothing was sent"):
        letters.edit(sqs_id, text, "kim", tasks, tmp_path / "missing")
    assert fake.bodies(fake.options().queue("jobs").url) == []


def test_a_body_that_is_no_object_has_no_form(
    letters: Letters, fake: FakeSqs, clock: Clock
) -> None:
    fake.put(dead_url(fake), "[1]")
    clock.advance(60)
    found = letters.find(read(letters)[-1])
    assert found is not None
    assert found.form is None


def test_a_form_can_be_encoded_whatever_the_body_escapes() -> None:
    assert form_of(r'{"half": "\ud83d"}').encode()


def test_what_may_be_personal_is_masked() -> None:
    content = {"id": "id-1", "body": {"action": "a", "data": {"n": 1, "l": ["x"], "none": None}}}
    assert masked(content) == {
        "id": "id-1",
        "body": {"action": "a", "data": {"n": HIDDEN, "l": [HIDDEN], "none": None}},
    }


def test_only_the_envelope_says_what_a_message_is() -> None:
    personal = {
        "id": "kim@example.com",
        "task": "t",
        "action": "a",
        "version": 1,
        "body": {"id": 1},
    }
    hidden = dict.fromkeys(("id", "task", "action", "version"), HIDDEN) | {"body": {"id": HIDDEN}}
    body = {"id": "id-1", "action": "registerUser", "data": personal}
    assert masked({"body": body})["body"] == body | {"data": hidden}
    assert masked({"body": {"Message": body}})["body"]["Message"] == body | {"data": hidden}

    headers = {"id": "id-1", "task": "registerUser"}
    celery = {"headers": headers, "body": [[personal], personal, {}]}
    assert masked({"body": celery})["body"] == {"headers": headers, "body": [[hidden], hidden, {}]}
    assert masked({"attributes": {"id": personal}})["attributes"] == {"id": hidden}
    assert masked({"body": {"id": personal, "action": [personal]}})["body"] == {
        "id": hidden,
        "action": [hidden],
    }


def test_the_state_of_a_job_is_a_sentence() -> None:
    job = Job("Redrive", "Flower: kim", 3, is_over=True, error="MongoDB does not answer.")
    assert job.text == "Redrive by Flower: kim: MongoDB does not answer. 0 of about 3 read."


def test_a_filter_says_what_it_selects() -> None:
    assert Filter().text == ""
    narrow = Filter(ids=("a", "b"), task="t*", older_than=timedelta(hours=2), match=compiled("x"))
    assert narrow.text == "id: a, b, task: t*, older than: 2:00:00, regular expression: x"
    others = Filter("jobs", "it failed", "Conflict", newer_than=timedelta(days=1))
    text = "queue: jobs, error: Conflict, reason: it failed, newer than: 1 day, 0:00:00"
    assert others.text == text
