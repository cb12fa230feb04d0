"""What becomes of change sets that ministack calculates: it knows which changes replace a resource,
and imports. moto knows neither."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from infra.retained import find
from infra.stacks import StackError, Stacks
from infra.templates import path_of
from tests import ministack
from tests.ministack import Ministack

# Installs ministack, once.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEMPLATE = path_of("queue").read_text()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ministack]:
    with ministack.running(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="module")
def stacks(aws: Ministack) -> Iterator[Stacks]:
    with closing(aws.client("cloudformation")) as client:
        yield Stacks(client, pause=0.1, timeout=60)


@pytest.fixture(scope="module")
def sqs(aws: Ministack) -> Iterator[Any]:
    with closing(aws.client("sqs")) as client:
        yield client


@pytest.fixture
def name() -> str:
    """Of a queue and of its stack."""
    return f"q-{uuid.uuid4().hex[:8]}"


def make(stacks: Stacks, name: str, **parameters: str) -> None:
    """Deploy the queues, or change them."""
    plan = stacks.plan(name, TEMPLATE, {"QueueName": name, **parameters})
    assert plan is not None
    stacks.execute(plan)


def urls(sqs: Any, name: str) -> set[str]:
    """The URLs of the queues whose names begin so."""
    return set(sqs.list_queues(QueueNamePrefix=name).get("QueueUrls", ()))


def test_a_change_that_would_replace_a_queue_is_refused_and_the_queues_stay(
    stacks: Stacks, sqs: Any, name: str
) -> None:
    make(stacks, name)
    before = urls(sqs, name)
    with pytest.raises(StackError, match="would leave messages behind in DeadLetterQueue, Queue,"):
        stacks.plan(name, TEMPLATE, {"QueueName": f"{name}-other"})
    assert urls(sqs, name) == before
    assert stacks.plan(name, TEMPLATE, {"QueueName": name}) is None


def test_a_change_of_a_queue_in_its_place_is_made(stacks: Stacks, sqs: Any, name: str) -> None:
    make(stacks, name)
    make(stacks, name, WorkerVisibilityTimeout="90")
    attributes = sqs.get_queue_attributes(
        QueueUrl=stacks.outputs(name)["QueueUrl"], AttributeNames=["VisibilityTimeout"]
    )["Attributes"]
    assert attributes == {"VisibilityTimeout": "90"}


@pytest.mark.parametrize("encryption", ["sqs", "kms"])
def test_what_a_deleted_stack_has_left_is_imported_with_its_messages(
    aws: Ministack, stacks: Stacks, sqs: Any, name: str, encryption: str
) -> None:
    make(stacks, name, Encryption=encryption)
    url = stacks.outputs(name)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="kept")
    stacks.delete(name)
    with closing(aws.client("kms")) as kms:
        left = find(sqs, kms, name)
    assert left is not None
    assert left.has_key == (encryption == "kms")
    stacks.execute(stacks.plan_import(name, left.template, {"QueueName": name}, left.identifiers))
    make(stacks, name, Encryption=encryption)
    assert stacks.outputs(name)["QueueUrl"] == url
    (message,) = sqs.receive_message(QueueUrl=url)["Messages"]
    assert message["Body"] == "kept"
