"""Queues full of task messages, as a stock Celery producer writes them."""

import base64
import json
import uuid
from typing import TYPE_CHECKING, Any

from celery import Celery

from devstack import sqs
from devstack.sqs import QueuePair, SqsServer

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

QUEUE = "bench"
#: Messages in one call, SQS's limit.
BATCH = 10


def fill(server: SqsServer, task: str, size: int) -> QueuePair:
    """A new queue with `size` messages for `bench.<task>`, each with arguments of its own."""
    client = server.client()
    try:
        queues = sqs.create_queues(client, QUEUE, visibility_timeout=60, max_receive_count=10)
        body = _body(f"bench.{task}")
        for start in range(0, size, BATCH):
            _send(client, queues.url, body, range(start, min(start + BATCH, size)))
        return queues
    finally:
        client.close()


def _send(client: "SQSClient", url: str, body: dict[str, Any], numbers: range) -> None:
    entries: Any = [{"Id": str(n), "MessageBody": _renewed(body)} for n in numbers]
    answer = client.send_message_batch(QueueUrl=url, Entries=entries)
    assert not answer.get("Failed"), answer


def _body(task: str) -> dict[str, Any]:
    """kombu's envelope of one call, as kombu 5.7 writes it (`virtual.Channel.basic_publish`)."""
    app = Celery("producer", set_as_current=False)
    message = app.amqp.as_task_v2(str(uuid.uuid4()), task, kwargs={"user_id": ""})
    return {
        "body": "",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": message.headers,
        "properties": {
            **message.properties,
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "delivery_mode": 2,
            "priority": 0,
        },
    }


def _renewed(body: dict[str, Any]) -> str:
    """The message with an id of its own, in the base64 that kombu's SQS transport puts around."""
    id_ = str(uuid.uuid4())
    arguments = json.dumps([[], {"user_id": id_}, {}]).encode()
    body["body"] = base64.b64encode(arguments).decode()
    body["headers"] |= {"id": id_, "root_id": id_}
    body["properties"] |= {"correlation_id": id_, "delivery_tag": id_}
    return base64.b64encode(json.dumps(body).encode()).decode()
