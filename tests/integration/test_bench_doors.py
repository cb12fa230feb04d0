"""What the benchmark copies is what each door's own producer sends."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from app.messages import Registration, decode_json
from bench.bodies import arguments
from bench.doors import DOORS, USER, copies
from bench.lab import Lab
from bench.servers import Server
from devstack.mongo import MongoServer
from devstack.sqs import SqsServer
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.lease import Delivery


@pytest.fixture(scope="module")
def sent(sqs_server: SqsServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By each door, what stood in the queue."""
    # No producer asks for a MongoDB.
    nobody = MongoServer(cast(Any, None), port=9)
    server = Server(sqs_server, "a server", None)
    return Lab(server, nobody, cast(Any, None), tmp_path_factory.mktemp("lab"), None).sent


def delivery(body: str) -> Delivery:
    return Delivery("1", "bench", "m", "r", body, {}, 1, datetime.now(UTC), 0.0)


@pytest.mark.parametrize("door", DOORS)
def test_each_door_has_sent_the_one_registration(sent: dict[str, str], door: str) -> None:
    for body, user in ((sent[door], USER), (copies(sent[door])("u1"), "u1")):
        payload = decode(delivery(body), decode_json)
        assert payload["headers"]["task"] == "registerUser"
        assert payload["body"][1] == arguments(user)
        assert Registration.model_validate(payload["body"][1]).user_id == user


def test_a_stock_producer_names_the_time_limits_of_its_settings(sent: dict[str, str]) -> None:
    def limits(door: str) -> Any:
        return decode(delivery(sent[door]), decode_json)["headers"]["timelimit"]

    assert limits("stock producer") == [30, 25]
    assert limits(".delay") == limits("publish_many") == [None, None]


def test_a_notification_is_of_sns(sent: dict[str, str]) -> None:
    source = decode(delivery(sent["SNS"]), decode_json)["headers"]["delivery"].source
    assert source == "sns"
