"""What kombu's own suite asks of every transport, and of its own for SQS, asked of this one.

`tests.suites` puts this file beside kombu's tests, which it imports.
"""

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import boto3
import kombu
import pytest
from kombu.asynchronous import Hub, get_event_loop, set_event_loop

from sqs_broker.sqs.boto import Boto
from sqs_broker.sqs.requests import Request

from . import test_sqs
from .common import BaseEventLoop, BaseExchangeTypes, BaseMessage, BasePriority, BaseTimeToLive
from .common import BasicFunctionality as Basic

#: Each queue that a test names. Here none is created on its way.
QUEUES = (
    "test", "test_empty", "simple_queue_test", "simple_buffer_test", "direct1", "rk_direct1",
    "rk_direct2", "fanout1", "fanout2", "topic1", "topic2", "topic3", "ttl_test",
    "ttl_simple_queue_test", "ttl_simple_buffer_test", "priority_test", "priority_requeue_test",
    "priority_simple_queue_test", "priority_simple_buffer_test", "test_ack", "test_requeue",
    "test_reject_no_requeue", "test_reject_requeue", "reject_no_requeue_vt", "delayq",
)  # fmt: skip


class TestBasicFunctionality(Basic):
    """Connections, channels, a queue that is empty, one message."""


class TestExchangeTypes(BaseExchangeTypes):
    """Direct, topic, fanout."""


class TestTimeToLive(BaseTimeToLive):
    """Messages that expire."""


class TestPriority(BasePriority):
    """Messages with a priority."""


class TestMessage(BaseMessage):
    """Ack, reject, requeue."""


class TestEventLoop(BaseEventLoop):
    """Settling from another thread."""


class Recording(Boto):
    """Keeps what the requests say that send a message. kombu's tests look into boto3's client."""

    said: ClassVar[list[Any]] = []

    def carry(self, request: Request[Any]) -> Any:
        if request.action == "SendMessage":
            self.said.append(request.parameters)
        return super().carry(request)


class TestDelaySeconds(test_sqs.test_SQSDelaySeconds):
    """The delay of a message."""

    @pytest.fixture
    def delay_setup(self, connection: Any, client: Any) -> Iterator[Any]:
        Recording.said.clear()
        connection.transport_options["driver"] = f"{__name__}:Recording"
        url = connection.transport_options["predefined_queues"]["delayq"]["url"]
        with connection as conn:
            yield "delayq", url, conn.default_channel, client, Recording.said


test_reject_no_requeue_is_not_redelivered = test_sqs.test_reject_no_requeue_is_not_redelivered


def connect(endpoint_url: str, predefined: dict[str, Any]) -> Any:
    """kombu's connection, with this transport."""
    options = json.loads(os.environ["SUITE_SETTINGS"])["broker_transport_options"]
    return kombu.Connection(
        "sqs://",
        transport="sqs_broker:Transport",
        transport_options=options | {"endpoint_url": endpoint_url, "predefined_queues": predefined},
    )


@pytest.fixture
def endpoint_url() -> str:
    return str(json.loads(os.environ["SUITE_SETTINGS"])["broker_transport_options"]["endpoint_url"])


@pytest.fixture
def test_queue_prefix() -> str:
    return f"{uuid.uuid4().hex}_"


@pytest.fixture
def hub() -> Iterator[Hub]:
    previous, made = get_event_loop(), Hub()
    set_event_loop(made)
    yield made
    made.close()
    set_event_loop(previous)


@pytest.fixture
def client(endpoint_url: str) -> Any:
    return boto3.client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=endpoint_url,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@pytest.fixture
def connection(client: Any, endpoint_url: str, test_queue_prefix: str) -> Any:
    """On new queues, with the names of the tests."""
    made = {
        name: client.create_queue(QueueName=test_queue_prefix + name)["QueueUrl"]
        for name in (*QUEUES, "dead")
    }
    dead = made.pop("dead")
    return connect(
        endpoint_url,
        {name: {"url": url, "dead_letter_url": dead} for name, url in made.items()},
    )


@pytest.fixture
def invalid_connection() -> Any:
    return connect("http://127.0.0.1:1", {"test": {"url": "http://127.0.0.1:1/1/test"}})
