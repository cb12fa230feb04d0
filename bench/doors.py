"""The doors that a message comes in by: the producer of each sends one registration, and rows of
the benchmark have copies of what stood in the queue then.

Also the program that sends it: python -m bench.doors DOOR
"""

import base64
import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from uuid import uuid4

import boto3

from bench.bodies import TASKS, Body, arguments

#: The user of the message that is copied, as long as the others' ids are.
USER = "0123456789abcdef" * 2

#: In place of one door: the messages of all of them, in turn.
MIXED = "mixed"


def copies(sent: str) -> Body:
    """Makes messages as this one of USER, each of another user, and with an id of its own."""
    text, layers = sent, 0
    while (inside := _from_base64(text)) is not None:
        text, layers = inside, layers + 1
    envelope = json.loads(text)
    id_ = envelope.get("headers", {}).get("id", USER)
    inner = envelope.get("body", "")
    content = _from_base64(inner) if inner else None

    def body(user_id: str) -> str:
        new = {id_: str(uuid4()), USER: user_id}
        copied = text
        if content is not None:
            copied = copied.replace(inner, _to_base64(_replaced(content, new)))
        copied = _replaced(copied, new)
        for _ in range(layers):
            copied = _to_base64(copied)
        return copied

    return body


def in_turn(bodies: Sequence[Body]) -> Body:
    """One of each after the other."""
    turns = cycle(bodies)
    return lambda user_id: next(turns)(user_id)


def _replaced(text: str, new: dict[str, str]) -> str:
    for old, value in new.items():
        text = text.replace(old, value)
    return text


def _from_base64(text: str) -> str | None:
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:
        return None


def _to_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _delay() -> None:
    from app.tasks import register_user

    register_user.delay(**arguments(USER))


def _publish_many() -> None:
    from app.tasks import register_user
    from sqs_broker.sqs.publisher import publish_many

    assert publish_many(register_user, [arguments(USER)]).sent == 1


def _stock() -> None:
    from bench.stock import app

    app.tasks[TASKS["register"]].delay(**arguments(USER))


def _json() -> None:
    boto3.client("sqs").send_message(QueueUrl=os.environ["AWS_SQS_QUEUE_URL"], MessageBody=_plain())


def _sns() -> None:
    queue = os.environ["AWS_SQS_QUEUE_URL"]
    answer = boto3.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    sns = boto3.client("sns")
    topic = sns.create_topic(Name=queue.rsplit("/", 1)[1])["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=answer["Attributes"]["QueueArn"])
    sns.publish(TopicArn=topic, Message=_plain())


def _plain() -> str:
    return json.dumps({"id": USER, "action": TASKS["register"], "data": arguments(USER)})


#: How each sends.
DOORS: dict[str, Callable[[], None]] = {
    ".delay": _delay,
    "publish_many": _publish_many,
    "stock producer": _stock,
    "plain JSON": _json,
    "SNS": _sns,
}


if __name__ == "__main__":
    DOORS[sys.argv[1]]()
