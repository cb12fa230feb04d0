"""`celery -A app sqs` as it is typed: in a checkout, from the wheel, and beside other projects."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from devstack.sqs import LARGEST_MESSAGE
from tests.acceptance.worker import Service
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

COMMAND_SECONDS = 60

#: Another project of the environment, whose package has the name of ours.
THEIRS = """
from celery import Celery
app = Celery("theirs", broker="memory://")
"""


def received(queues: Queues, url: str) -> list[Any]:
    """What a receive brings, within a long poll. The messages stay visible."""
    answer = queues.client.receive_message(
        QueueUrl=url,
        MaxNumberOfMessages=10,
        VisibilityTimeout=0,
        WaitTimeSeconds=2,
        MessageAttributeNames=["All"],
        MessageSystemAttributeNames=["ApproximateReceiveCount"],
    )
    return answer.get("Messages", [])


def celery(
    environment: Mapping[str, str], directory: Path, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command of `celery -A app` with only this environment."""
    return subprocess.run(
        ["celery", "-A", "app", *arguments],
        env=dict(environment),
        cwd=directory,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )


def test_the_group_is_there_in_a_checkout(
    environment: dict[str, str], queues: Queues, tmp_path: Path
) -> None:
    queues.client.send_message(QueueUrl=queues.url, MessageBody="{}")

    ran = celery(environment, tmp_path, "sqs", "queues", "--json")

    assert ran.returncode == 0, ran.stderr
    first, second = map(json.loads, ran.stdout.splitlines())
    assert (first["queue"], first["visible"], first["oldest"]) == (queues.name, 1, None)
    assert (second["dead_letters_of"], second["visible"]) == (queues.name, 0)


@pytest.mark.contract
def test_each_permission_is_known_and_no_message_is_touched(
    environment: dict[str, str], queues: Queues, tmp_path: Path
) -> None:
    queues.client.send_message(QueueUrl=queues.url, MessageBody="{}")

    ran = celery(environment, tmp_path, "sqs", "doctor", "--json")

    findings = [json.loads(line) for line in ran.stdout.splitlines()]
    tried = [finding for finding in findings if finding["check"].startswith("sqs:")]
    assert len(tried) == 7, ran.stderr
    assert {finding["level"] for finding in tried} == {"ok"}, tried
    [message] = received(queues, queues.url)
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert received(queues, queues.dead_letter_url) == []


@pytest.mark.contract
def test_a_message_that_was_listed_can_be_redriven(
    environment: dict[str, str], queues: Queues, tmp_path: Path
) -> None:
    body = json.dumps({"id": "m-1", "action": "increment", "data": {"input": 1}})
    queues.client.send_message(
        QueueUrl=queues.dead_letter_url,
        MessageBody=body,
        MessageAttributes={"trace": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}},
    )

    def dlq(*arguments: str) -> str:
        return celery(environment, tmp_path, "sqs", "dlq", *arguments).stdout

    wait_until(lambda: "m-1" in dlq("list"), COMMAND_SECONDS, "the message in the list")
    wait_until(lambda: "redriven" in dlq("redrive", "--yes"), COMMAND_SECONDS, "the redrive")

    [message] = received(queues, queues.url)
    assert message["Body"] == body
    assert message["MessageAttributes"]["trace"]["BinaryValue"] == b"\x00\xff"
    assert received(queues, queues.dead_letter_url) == []


def test_the_group_is_there_from_the_wheel(
    environment: dict[str, str], tmp_path: Path, site: Path
) -> None:
    ran = celery(environment | {"PYTHONPATH": str(site)}, tmp_path, "sqs", "queues")

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("QUEUE ")


def test_another_projects_celery_works_though_its_package_is_named_app_too(
    tmp_path: Path, environment: dict[str, str], site: Path
) -> None:
    (tmp_path / "app.py").write_text(THEIRS)
    environment = {"PATH": environment["PATH"], "PYTHONPATH": str(site)}

    report = celery(environment, tmp_path, "report")
    ours = celery(environment, tmp_path, "sqs", "queues")

    assert "memory" in report.stdout, report.stderr
    assert ours.returncode == 1
    assert "does not use" in ours.stderr
    assert "Traceback" not in ours.stderr


def test_the_help_of_celery_names_the_group_and_nothing_else_of_ours(
    environment: dict[str, str], tmp_path: Path
) -> None:
    said = celery(environment, tmp_path, "--help").stdout.split("Commands:")[1]

    assert [line.split()[0] for line in said.splitlines() if "SQS" in line] == ["sqs"]
    assert "Warning" not in said


@pytest.mark.contract
def test_messages_are_sent_from_the_command_line(
    environment: dict[str, str], queues: Queues, tmp_path: Path
) -> None:
    del environment["MONGO_URI"]
    right = '{"action": "registerUser", "data": {"stockId": "s", "userId": "u", "userInfo": %s}}'
    lines = [right % '{"nickname": "kim"}', right % "{}"]

    refused = celery(environment, tmp_path, "sqs", "send", stdin="\n".join(lines))
    sent = celery(environment, tmp_path, "sqs", "send", lines[0])

    assert refused.returncode == 1
    assert "line 2: user_info.nickname" in refused.stderr
    assert sent.returncode == 0, sent.stderr
    [message] = received(queues, queues.url)
    assert json.loads(message["Body"])["id"] == sent.stdout.strip()


@pytest.mark.contract
def test_a_dead_letter_of_a_worker_is_listed_shown_redriven_and_done(
    service: Service, tmp_path: Path
) -> None:
    def registration(id_: str, nickname: str) -> str:
        data = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": nickname}}
        return json.dumps({"id": id_, "action": "registerUser", "data": data})

    def dlq(*arguments: str) -> str:
        ran = celery(service.environment, tmp_path, "sqs", "dlq", *arguments)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    service.send(registration("m-1", "lee"))
    service.user("s1")
    service.send(registration("m-2", "kim"))
    service.settle()

    [listed] = map(json.loads, dlq("list", "--reason", "conflict", "--json").splitlines())
    shown = json.loads(dlq("show", "m-2"))
    assert (listed["id"], listed["task"], listed["error"]) == ("m-2", "registerUser", "Conflict")
    assert listed["queue"] == service.queues.name
    assert "kim" not in json.dumps(listed)
    assert shown["body"] == json.loads(registration("m-2", "kim"))

    service.database["users"].delete_one({"stock_id": "s1"})
    # Messages of the second in which it starts are not redriven.
    wait_until(
        lambda: "redriven" in dlq("redrive", "--id", "m-2", "--yes"), COMMAND_SECONDS, "a redrive"
    )

    assert service.user("s1")["user_info"]["nickname"] == "kim"
    service.settle()
    assert service.queues.dead_letters() == []


def test_the_doctor_finds_nothing_wrong_beside_a_worker(service: Service, tmp_path: Path) -> None:
    environment = {**service.environment, "SQS_MAX_MESSAGE_BYTES": str(LARGEST_MESSAGE)}

    ran = celery(environment, tmp_path, "sqs", "doctor")
    wrong = celery(environment | {"SQS_MAX_RECEIVE_COUNT": "11"}, tmp_path, "sqs", "doctor")

    assert ran.returncode == 0, ran.stdout
    assert wrong.returncode == 1
    assert "FAULT" in wrong.stdout
    assert "maxReceiveCount" in wrong.stdout
