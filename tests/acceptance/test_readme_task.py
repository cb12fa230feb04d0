"""README.md, "Add a task": what it says is typed, then linted, tested and run through all three
doors."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.acceptance.worker import StartWorker
from tests.services import Queues, wait_until

ROOT = Path(__file__).parents[2]
#: How the name of a file ends if the block replaces one of its lines.
REPLACES = ", in place of its import of app.messages"
CODE = re.compile(rf"```python\n# (\S+(?:{re.escape(REPLACES)})?)\n(.*?)```", re.DOTALL)
USER = {"stockId": "s1", "userId": "u1"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tree with the README's task added: each block at the end of the file it names, or in
    place of the import that it replaces."""
    checkout = tmp_path / "checkout"
    for package in ("app", "sqs_broker"):
        shutil.copytree(ROOT / package, checkout / package)
    for name in ("celeryconfig.py", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    for name, code in CODE.findall((ROOT / "README.md").read_text()):
        path = checkout / name.removesuffix(REPLACES)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if name.endswith(REPLACES):
            [imported] = re.findall(r"^from app\.messages import .*\n", text, re.MULTILINE)
            path.write_text(text.replace(imported, code))
        else:
            # Two empty lines between definitions, as everywhere.
            path.write_text(text + ("\n\n" if text else "") + code)
    return checkout


def test_a_task_is_added_in_twenty_lines() -> None:
    blocks = CODE.findall((ROOT / "README.md").read_text())
    lines = [
        line
        for _, code in blocks
        for line in code.splitlines()
        if line.strip() and not line.startswith(("import", "from"))
    ]

    assert [name for name, _ in blocks] == [
        "app/messages.py",
        "app/tasks.py",
        f"app/tasks.py{REPLACES}",
        "tests/unit/test_activity.py",
    ]
    assert len(lines) <= 20


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_it_passes_lint(checkout: Path, command: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "app", "tests"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout


def test_its_test_passes(checkout: Path, environment: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests"],
        cwd=checkout,
        env=environment | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )

    assert (run.returncode, "1 passed" in run.stdout) == (0, True), run.stdout


def test_all_three_doors_lead_to_it(
    checkout: Path,
    environment: dict[str, str],
    queues: Queues,
    start_worker: StartWorker,
    mongo_client: MongoClient[Any],
) -> None:
    environment["PYTHONPATH"] = str(checkout)
    worker = start_worker(environment, "-c", "1")
    database: Database[Any] = mongo_client[environment["MONGO_URI"].rsplit("/")[-1].split("?")[0]]
    plain = {"id": "j1", "action": "registerUser", "data": USER | {"userInfo": {"nickname": "kim"}}}
    queues.client.send_message(QueueUrl=queues.url, MessageBody=json.dumps(plain))
    wait_until(lambda: database.users.find_one(), 20, "the user")
    seen = [database.users.find_one()["last_activity_time"]]

    def send_celery() -> None:
        call = "from app.tasks import record_activity as r; r.delay(stock_id='s1', user_id='u1')"
        subprocess.run([sys.executable, "-c", call], env=environment, cwd=checkout, check=True)

    def send_json() -> None:
        activity = {"id": "j2", "type": "recordActivity", "data": USER}
        queues.client.send_message(QueueUrl=queues.url, MessageBody=json.dumps(activity))

    def send_sns() -> None:
        activity = json.dumps({"id": "j3", "action": "recordActivity", "data": USER})
        wrapped = {"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": activity}
        queues.client.send_message(QueueUrl=queues.url, MessageBody=json.dumps(wrapped))

    for send in (send_celery, send_json, send_sns):
        send()
        worker.wait_for(
            lambda: database.users.find_one()["last_activity_time"] > seen[-1], 20, send.__name__
        )
        seen.append(database.users.find_one()["last_activity_time"])

    wait_until(queues.is_empty, 20, "an empty queue")
    assert queues.dead_letters() == []
