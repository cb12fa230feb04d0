"""What is put on the queue: one user, in the words of each consumer."""

import base64
import json
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery

from sqs_broker.rules.short_form import shortened

#: The measured tasks by the names that Celery knows them by.
TASKS = {
    "noop": "bench.noop",
    "register": "registerUser",
    "wait": "bench.wait",
    "long": "bench.long",
    "delayed": "bench.delayed",
}

#: The body of the message for one user id.
Body = Callable[[str], str]


def arguments(user_id: str) -> dict[str, Any]:
    """Of every measured task."""
    return {
        "stock_id": "s1",
        "user_id": user_id,
        "user_info": {"nickname": "kim", "gender": "F", "introduction": "hello"},
    }


def plain(task: str, _queue: str) -> Body:
    """JSON as a program in any language writes it."""

    def body(user_id: str) -> str:
        return json.dumps({"id": user_id, "action": task, "data": arguments(user_id)})

    return body


def celery(task: str, queue: str) -> Body:
    """The envelope that `.delay` of this project puts on the queue: short, and without base64."""
    envelope = _envelope(TASKS[task], queue)
    envelope["properties"]["body_encoding"] = None

    def body(user_id: str) -> str:
        return json.dumps(shortened(_renewed(envelope, _content(user_id))), separators=(",", ":"))

    return body


def stock_celery(task: str, queue: str) -> Body:
    """The same with the base64 in and around it of kombu's SQS transport (kombu 5.7, `_put`)."""
    envelope = _envelope(TASKS[task], queue)
    envelope["properties"]["body_encoding"] = "base64"

    def body(user_id: str) -> str:
        renewed = _renewed(envelope, _base64(_content(user_id)))
        return _base64(json.dumps(renewed))

    return body


def dramatiq(task: str, queue: str) -> Body:
    """dramatiq's message, in dramatiq-sqs's base64 (dramatiq-sqs 0.4, `enqueue`)."""
    from dramatiq import Message

    def body(user_id: str) -> str:
        message = Message[None](queue, task, (), arguments(user_id), {})
        return base64.b64encode(message.encode()).decode()

    return body


def _envelope(task: str, queue: str) -> dict[str, Any]:
    """kombu's envelope of one call, as kombu 5.7 writes it (`virtual.Channel.basic_publish`)."""
    app = Celery("producer", set_as_current=False)
    message = app.amqp.as_task_v2(str(uuid.uuid4()), task, kwargs=arguments(""))
    return {
        "body": "",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": message.headers,
        "properties": {
            **message.properties,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_mode": 2,
            "priority": 0,
        },
    }


def _renewed(envelope: dict[str, Any], content: str) -> dict[str, Any]:
    """The envelope of another call, with an id of its own."""
    id_ = str(uuid.uuid4())
    envelope["body"] = content
    envelope["headers"] |= {"id": id_, "root_id": id_}
    envelope["properties"] |= {"correlation_id": id_, "delivery_tag": id_}
    return envelope


def _content(user_id: str) -> str:
    return json.dumps([[], arguments(user_id), {}])


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
