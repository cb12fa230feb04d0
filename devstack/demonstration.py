"""Registers one user by a Celery call and one by plain JSON, and shows the stored documents."""

import json
import os
import shlex
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from devstack.errors import StackError
from devstack.process import Process
from devstack.stack import DATABASE, ROOT, Say, Stack, client_environment
from devstack.waiting import wait_until

STOCK = "s1"
#: Seconds for a producer's process to start and send.
SEND_SECONDS = 30
#: Seconds until a sent registration is stored.
STORED_SECONDS = 60
LIST_USERS = (
    'import os, pymongo; print(*pymongo.MongoClient(os.environ["MONGO_URI"])'
    '.get_default_database()["users"].find(), sep="\\n")'
)


def show(stack: Stack, say: Say) -> None:
    """Register two users and show what was stored. Raises StackError if a user is not stored."""
    run = _suffix()
    with MongoClient[dict[str, Any]](stack.environment["MONGO_URI"], tz_aware=True) as client:
        users = client[DATABASE]["users"]

        def stored(user_id: str) -> Callable[[], dict[str, Any] | None]:
            def find() -> dict[str, Any] | None:
                stack.check()
                return users.find_one({"stock_id": STOCK, "user_id": user_id})

            return find

        ways = {
            f"kim-{run}": ("register_user.delay(...)", _delay),
            f"lee-{run}": ("plain JSON on the queue", _plain_json),
        }
        for user_id, (_, send) in ways.items():
            send(stack, user_id)
        for user_id, (way, _) in ways.items():
            try:
                user = wait_until(stored(user_id), STORED_SECONDS, f"the user sent by {way}")
            except TimeoutError as exc:
                raise StackError(f"{exc} (log: {stack.worker.log})") from None
            assert user is not None
            say(f"\nBy {way}:\n{_readable(user)}")


def what_next(stack: Stack) -> str:
    """The commands to try in another terminal."""
    python = shlex.quote(_short(Path(sys.executable)))
    run = _suffix()
    return f"""
Try next, in another terminal:

  set -a; . {shlex.quote(_short(stack.directory.environment_file))}; set +a
  {python} -c {shlex.quote(_delay_call(f"ann-{run}"))}
  {python} -c {shlex.quote(_plain_json_call(f"bob-{run}"))}
  {python} -c {shlex.quote(LIST_USERS)}

Logs: {_short(stack.worker.log)}; the logs of the servers are in the same directory."""


def _suffix() -> str:
    """A suffix for the user ids of this run: a user registers once, and the database is kept."""
    return uuid.uuid4().hex[:6]


def _delay_call(user_id: str) -> str:
    """Python code that registers a user as a Celery producer does."""
    return (
        "from app.tasks import register_user; "
        f'register_user.delay(stock_id="{STOCK}", user_id="{user_id}", '
        'user_info={"nickname": "kim", "gender": "F"})'
    )


def _plain_json_call(user_id: str) -> str:
    """Python code that sends plain JSON, as a program in any language can."""
    return (
        'import boto3, json, os; boto3.client("sqs").send_message('
        'QueueUrl=os.environ["AWS_SQS_QUEUE_URL"], '
        f"MessageBody=json.dumps({json.dumps(_registration(user_id))}))"
    )


def _delay(stack: Stack, user_id: str) -> None:
    # In a separate process with the stack's environment, like any producer.
    with Process(
        "the producer",
        [sys.executable, "-c", _delay_call(user_id)],
        log=stack.directory.log("producer"),
        grace=1,
        environment=client_environment(stack.environment),
        directory=ROOT,
    ) as producer:
        if producer.wait(SEND_SECONDS) != 0:
            producer.check()


def _plain_json(stack: Stack, user_id: str) -> None:
    client = stack.sqs.client()
    try:
        client.send_message(
            QueueUrl=stack.queues.url, MessageBody=json.dumps(_registration(user_id))
        )
    finally:
        client.close()


def _registration(user_id: str) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "action": "registerUser",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "stockId": STOCK,
            "userId": user_id,
            "userInfo": {"nickname": "lee", "gender": "F"},
        },
    }


def _readable(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, default=str)


def _short(path: Path) -> str:
    """The path relative to the current directory, if it is below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
