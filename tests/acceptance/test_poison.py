"""One message harms no other: good registrations share jobs with messages that nobody would write,
and each of them is stored at its first delivery, even where the first failure is the last.
"""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from pymongo import MongoClient

from tests.acceptance.worker import SETTLE_SECONDS, StartWorker
from tests.services import Queues

GOOD = 60

#: Planted wherever a user's own words can be.
MARKER = "Zqx7MarkerOfAUser"


def plain(user_id: str, **more: Any) -> str:
    """A registration in plain JSON, with what its model does not know."""
    data = {"stockId": "s1", "userId": user_id, "userInfo": {"nickname": "kim"}} | more
    return json.dumps({"id": user_id, "action": "registerUser", "data": data})


def envelope(user_id: str, timelimit: Any = (None, None), **more: Any) -> str:
    """The same in Celery's envelope, as its text is on the wire."""
    kwargs = {"stock_id": "s1", "user_id": user_id, "user_info": {"nickname": "kim"}} | more
    return json.dumps(
        {
            "body": json.dumps([[], kwargs, {}]),
            "headers": {"task": "registerUser", "id": user_id, "timelimit": list(timelimit)},
            "properties": {"body_encoding": None},
            "content-type": "application/json",
            "content-encoding": "utf-8",
        }
    )


def typed(type_: Any, value: Any = MARKER) -> dict[str, Any]:
    """What kombu's JSON reads as a value of a type."""
    return {"__type__": type_, "__value__": value}


#: In plain JSON it is data that no field of the model asks for.
REGISTERED = {
    "p-unknown": plain("p-unknown", note=typed("nosuch")),
    "p-date": plain("p-date", notes=[{"deep": [typed("datetime")]}]),
    # Seconds that would end its process before it began, at each delivery.
    "p-limits": envelope("p-limits", timelimit=[1e-9, 1e-9]),
}
#: In an envelope kombu reads it, or cannot.
DEAD = {
    "p-decimal": envelope("p-decimal", note=typed("decimal")),
    "p-nothing": envelope("p-nothing", note=typed("base64", None)),
    "p-field": plain("p-field", money=typed("nosuch")),
}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("attempts", [1, 3])
def test_good_messages_beside_poison_are_stored_at_their_first_delivery(
    start_worker: StartWorker,
    queues: Queues,
    environment: dict[str, str],
    attempts: int,
    pool: str,
) -> None:
    good = [plain(f"u{n}") for n in range(GOOD)]
    poison = [*REGISTERED.values(), *DEAD.values()]
    # One of them in each ten that are sent, and so received, together.
    bodies = [
        body
        for n, bad in enumerate(poison)
        for body in (*good[10 * n : 10 * n + 5], bad, *good[10 * n + 5 : 10 * n + 10])
    ]
    send(queues, bodies)

    worker = start_worker(
        environment | {"SQS_MAX_ATTEMPTS": str(attempts), "WORKER_CONCURRENCY": "1"},
        f"--pool={pool}",
    )
    worker.wait_for(queues.is_empty, SETTLE_SECONDS, "an empty queue")

    with MongoClient[dict[str, Any]](environment["MONGO_URI"]) as client:
        users = list(client.get_default_database()["users"].find())
    assert {user["user_id"]: user["registration"]["deliveries"] for user in users} == dict.fromkeys(
        [*(f"u{n}" for n in range(GOOD)), *REGISTERED], 1
    )
    letters = queues.dead_letters()
    assert sorted(letter["Body"] for letter in letters) == sorted(DEAD.values())
    notes = [letter["MessageAttributes"]["dead-letter"]["StringValue"] for letter in letters]
    assert [json.loads(note)["deliveries"] for note in notes] == [1] * len(DEAD)
    assert worker.log_lines("message.retry") == []
    assert MARKER not in worker.log_text() + "".join(notes)


def send(queues: Queues, bodies: list[str]) -> None:
    """Ten a call."""
    for n in range(0, len(bodies), 10):
        queues.client.send_message_batch(QueueUrl=queues.url, Entries=entries(bodies[n : n + 10]))


def entries(bodies: Iterable[str]) -> Any:
    return [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)]
