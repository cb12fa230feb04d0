"""Bodies near SQS's limit of 1 MiB, body and attributes together.

On moto, since the SQS server of the other tests stops at 256 KiB.
"""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from pymongo import MongoClient

from devstack import ports
from devstack.mongo import MongoServer
from devstack.process import Process
from devstack.sqs import SqsServer
from tests.acceptance.worker import Service, place, serving
from tests.services import wait_until

START_SECONDS = 30
LARGE = 900_000
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
LARGEST = 1_048_576


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqsServer]:
    """A moto server. It is slow with many messages, and each test sends one."""
    port = ports.preferred_or_any(None)
    program = Path(sys.executable).with_name("moto_server")
    command = [program, "-H", ports.HOST, "-p", str(port)]
    log = tmp_path_factory.mktemp("moto") / "moto.log"
    with Process("moto", command, log=log, grace=5) as process:
        server = SqsServer(process, port)
        wait_until(lambda: answers(server), START_SECONDS, "an answer of moto")
        yield server


@pytest.fixture(scope="module")
def service(
    moto: SqsServer,
    mongo_server: MongoServer,
    mongo_client: MongoClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A worker on moto's queues."""
    client = moto.client()
    home = tmp_path_factory.mktemp("service")
    with (
        place(client, moto.endpoint_url, mongo_server, mongo_client, home) as where,
        serving(where, home) as running,
    ):
        yield running
    client.close()


def test_a_good_message_of_900_kb_is_registered(service: Service) -> None:
    service.send(registration("large", more="x" * LARGE))

    assert service.user("large")["registration"]["deliveries"] == 1
    service.settle()
    assert service.dead_letters('"large"') == []


def test_a_bad_message_of_900_kb_is_dead_lettered_uncut_with_its_reason(service: Service) -> None:
    body = registration(f"s-{uuid.uuid4()}", userId={"$gt": ""}, more="x" * LARGE)

    letter = dead_letter_of(service, body, {})

    note = json.loads(letter["MessageAttributes"].pop("dead-letter")["StringValue"])
    assert note["reason"] == "registerUser: user_id: Input should be a valid string"
    assert letter["Body"] == body
    assert letter["MessageAttributes"] == {}


def test_of_a_bad_message_of_900_kb_with_ten_attributes_nothing_is_lost(service: Service) -> None:
    body = f"s-{uuid.uuid4()}" + "x" * LARGE
    ten = {f"a{number}": {"DataType": "String", "StringValue": "é" * 500} for number in range(10)}

    letter = dead_letter_of(service, body, ten)

    note = json.loads(letter["MessageAttributes"].pop("dead-letter")["StringValue"])
    displaced = note["displaced"]
    kept = letter["MessageAttributes"] | {displaced.pop("name"): displaced}
    assert (letter["Body"], kept) == (body, ten)


@pytest.mark.parametrize("room", [0, 100, 400])
def test_a_bad_message_that_fills_the_limit_is_dead_lettered_uncut_within_it(
    service: Service, room: int
) -> None:
    start = f"s-{uuid.uuid4()}"
    body = start + "x" * (LARGEST - room - len(start))

    letter = dead_letter_of(service, body, {})

    assert letter["Body"] == body
    assert len(body) + sum(map(size, letter["MessageAttributes"].items())) <= LARGEST


def registration(stock_id: str, **changed: Any) -> str:
    data = {"stockId": stock_id, "userId": "u1", "userInfo": {"nickname": "kim"}} | changed
    return json.dumps({"id": stock_id, "action": "registerUser", "data": data})


def dead_letter_of(service: Service, body: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Send the message; its one dead letter."""
    service.send(body, attributes)
    service.settle()
    [letter] = service.dead_letters(body[:40])
    return {"MessageAttributes": {}} | letter


def size(attribute: tuple[str, dict[str, str]]) -> int:
    """Bytes of an attribute as SQS counts them."""
    name, value = attribute
    return sum(len(text.encode()) for text in (name, value["DataType"], value["StringValue"]))


def answers(server: SqsServer) -> bool:
    server.process.check()
    try:
        with urlopen(f"{server.endpoint_url}/moto-api/data.json") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
